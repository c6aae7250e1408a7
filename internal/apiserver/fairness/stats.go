package fairness

import (
	"math"
	"time"
)

// stats are what a flow schema's requests did at a level. The level's lock guards them, so that counting costs a request
// an addition and no more; they are made into metrics when somebody reads those.
type stats struct {
	dispatched                uint64
	refused                   [3]uint64 // as refusals lists them
	noRoom                    uint64
	waiting, waitingSeats     int
	executing, executingSeats int

	waits      [2]histogram // seconds, of those that got no seat, and that did
	executions [2]histogram // seconds, of ordinary requests, and of the beginning of watches
	seats      histogram
	lengths    histogram // of queues, after a request has entered
	watches    histogram // watchers of what a request changes
}

func newStats() *stats {
	seconds := []float64{0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30}
	return &stats{
		waits:      [2]histogram{newHistogram(seconds), newHistogram(seconds)},
		executions: [2]histogram{newHistogram(seconds), newHistogram(seconds)},
		seats:      newHistogram([]float64{1, 2, 4, 8, 16, 32, 64, 100}),
		lengths:    newHistogram([]float64{0, 10, 25, 50, 100, 250, 500, 1000}),
		watches:    newHistogram([]float64{0, 1, 10, 100, 1000, 10000}),
	}
}

// statsOf are the stats of a schema, which outlive changes of the configuration.
func (l *level) statsOf(schema string) *stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.stats[schema]
	if st == nil {
		st = newStats()
		l.stats[schema] = st
	}
	return st
}

// histogram counts observations by the least bound that is not below them.
type histogram struct {
	bounds []float64
	counts []uint64 // one more than bounds
	sum    float64
}

func newHistogram(bounds []float64) histogram {
	return histogram{bounds: bounds, counts: make([]uint64, len(bounds)+1)}
}

func (h *histogram) observe(v float64) { h.weigh(v, 1) }

// weigh counts v as often as weight says.
func (h *histogram) weigh(v float64, weight uint64) {
	i := 0
	for i < len(h.bounds) && v > h.bounds[i] {
		i++
	}
	h.counts[i] += weight
	h.sum += v * float64(weight)
}

// total is the number of observations, and below how many of them each bound has, itself included.
func (h *histogram) total() (count uint64, below map[float64]uint64) {
	below = make(map[float64]uint64, len(h.bounds))
	for i, c := range h.counts {
		count += c
		if i < len(h.bounds) {
			below[h.bounds[i]] = count
		}
	}
	return count, below
}

// timings are ratios over time: histograms in which every nanosecond is an observation, as upstream's are.
type timings struct {
	seats     histogram // taken, of those there are
	executing histogram // requests, of the seats there are
	waiting   histogram // requests, of the places in queues
	demand    histogram // seats wanted, of those there are
}

func newTimings() timings {
	share := []float64{0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 1}
	return timings{
		seats:     newHistogram([]float64{0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1}),
		executing: newHistogram(share),
		waiting:   newHistogram(share),
		demand:    newHistogram([]float64{0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.7, 2, 2.8, 4, 6}),
	}
}

// add accounts for a time during which nothing changed at the level.
func (t *timings) add(l *level, passed time.Duration) {
	seats := float64(max(l.limit, 1))
	n := uint64(passed)
	t.seats.weigh(float64(l.used)/seats, n)
	t.executing.weigh(float64(l.running)/seats, n)
	t.waiting.weigh(float64(l.waitingCount)/float64(max(l.length, 1)*max(l.queuing.queues, 1)), n)
	t.demand.weigh(float64(l.used+l.waitingSeats)/seats, n)
}

// demand sums up how many seats were wanted since it was last read.
type demand struct {
	area, squares float64 // seats times seconds, and their squares
	seconds       float64
	most          float64
}

func (d *demand) add(seats float64, passed time.Duration) {
	s := passed.Seconds()
	d.seconds += s
	d.area += seats * s
	d.squares += seats * seats * s
	d.most = max(d.most, seats)
}

// read returns the average, the standard deviation and the maximum, and begins anew. now is how many are wanted at the
// moment, which counts even if it is new.
func (d *demand) read(now float64) (average, deviation, most float64) {
	most = max(d.most, now)
	if d.seconds > 0 {
		average = d.area / d.seconds
		deviation = math.Sqrt(max(0, d.squares/d.seconds-average*average))
	}
	*d = demand{}
	return average, deviation, most
}

// maxRetryAfter bounds for how many seconds clients are sent away.
const maxRetryAfter = 32

// drops finds out from the requests that were refused of late for how long clients shall stay away: twice as long when
// there were three a second and more of that time, a second less when there was less than one.
type drops struct {
	seconds [2 * maxRetryAfter]struct{ at, count int64 } // by second
	after   int64                                        // seconds; 0 before the first refusal
	raised  int64                                        // when after was last raised
	current int64
}

// record notes a refusal in the second now, counted from any moment.
func (d *drops) record(now int64) {
	if d.after == 0 {
		d.after, d.raised = 1, now-maxRetryAfter
	}
	slot := &d.seconds[now%int64(len(d.seconds))]
	if slot.at != now {
		slot.at, slot.count = now, 0
	}
	slot.count++
	if d.current == now {
		return
	}
	d.current = now
	d.adapt(now)
}

// adapt looks at the time before the second now, as long as clients are sent away for.
func (d *drops) adapt(now int64) {
	var dropped int64
	for _, s := range d.seconds {
		if s.at < now && now-s.at <= d.after {
			dropped += s.count
		}
	}
	switch {
	case dropped >= 3*d.after && now-d.raised >= d.after:
		d.after, d.raised = min(2*d.after, maxRetryAfter), now
	case dropped < d.after && d.after > 1:
		d.after--
	}
}

// wait is for how many seconds clients are to stay away.
func (d *drops) wait() int64 { return max(d.after, 1) }
