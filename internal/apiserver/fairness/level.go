package fairness

import (
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apiserver/pkg/util/shufflesharding"
)

// typicalService is how long a request is taken to run for before it is known how long it did.
const typicalService = 3 * time.Millisecond

// maxHand is the largest hand that a Dealer deals.
const maxHand = 15

// queuing is how a level lets requests wait. Without queues it lets none wait.
type queuing struct {
	queues, hand, length int
}

// level is one priority level: its seats, who is in them, and who waits for one.
//
// Those who wait are served by fair queuing (KEP-1040): each flow is dealt a hand of the queues and waits in the
// one of them with the least work. Progress is a virtual time that says how many seat-seconds every queue with
// something to do has been due so far; a queue's start is the progress at which its next request is due. The queue
// whose next request would finish first, by that measure, is served first. A level where nobody waits gives a seat
// at once and keeps the books all the same, so that who has had much waits when it becomes full.
//
// Nothing in here asks for the time: now is that since the Control was made.
type level struct {
	name   string
	exempt bool
	// width bounds what one request may be estimated to need, in seats.
	width atomic.Int64

	mu sync.Mutex
	// limit is how many seats may be taken now, negative before that is known, and share what the configuration says
	// about it.
	limit int
	share share
	queuing
	dealer *shufflesharding.Dealer

	queues  []*queue // made when first used
	waiting []*queue // those in which somebody waits
	active  int      // queues in which somebody waits or runs
	robin   int      // index of the queue that was served last
	dealt   uint

	// progress, in seat-seconds, begins anew whenever nobody waits or runs: nothing refers to it then.
	progress float64
	last     time.Duration // when progress and demand were brought up to date

	used, waitingSeats    int // seats
	running, waitingCount int // requests
	executing             ticketList

	demand   demand
	smoothed float64
	drops    drops
	stats    map[string]*stats // by flow schema
	timings  timings
	refused  struct{ total, timedOut, cancelled uint64 }
	given    uint64
}

// queue is where some of a level's flows wait.
type queue struct {
	index     int
	tickets   ticketList
	count     int
	seats     int     // of those that wait
	work      float64 // of those that wait, in seat-seconds
	used      int     // seats taken by requests of this queue
	executing int
	start     float64 // the progress at which the next request is due
}

// advance brings the level's books up to now. It comes before anything is changed.
func (l *level) advance(now time.Duration) {
	passed := now - l.last
	if passed <= 0 {
		return
	}
	l.last = now
	l.demand.add(float64(l.used+l.waitingSeats), passed)
	l.timings.add(l, passed)
	if l.active > 0 {
		// What was given, not what could have been: seats that stayed empty because the next request is wide would
		// else be owed to those who wait, who would then pass everybody who comes later.
		l.progress += float64(l.used) / float64(l.active) * passed.Seconds()
	}
}

// A refusal says why a request got no seat, in the words of the metrics.
type refusal string

const (
	full      refusal = "concurrency-limit" // and the level has no queues
	queueFull refusal = "queue-full"
	timedOut  refusal = "time-out" // while it waited
)

// enter gives t a seat, or lets it wait for one: then t.decided is closed when it has it. A refusal that is not empty
// says that it gets none.
func (l *level) enter(t *Ticket, hash uint64, now time.Duration) refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.advance(now)
	t.arrived = now
	st := t.flow.stats
	t.stats = st
	st.seats.observe(float64(t.most()))
	if t.mutating {
		st.watches.observe(float64(t.watchers))
	}
	if l.exempt || l.queuing.queues == 0 {
		if !l.fits(t.most()) {
			return l.refuse(st, full, now)
		}
		l.seat(t, nil, now)
		return ""
	}
	q := l.choose(hash)
	if l.used >= l.limit && q.count >= l.length {
		return l.refuse(st, queueFull, now)
	}
	if q.count == 0 && q.executing == 0 {
		q.start = l.progress
		l.active++
	}
	t.progress = l.progress
	if len(l.waiting) == 0 && l.used < l.limit && l.fits(t.most()) {
		st.lengths.observe(0)
		l.seat(t, q, now)
		return ""
	}
	l.push(q, t)
	st.lengths.observe(float64(q.count))
	l.serve(now)
	return ""
}

// choose picks a queue of the flow's hand: the one where the least work waits. It begins to look at another card each
// time, so that a flow that never waits spreads over its hand.
func (l *level) choose(hash uint64) *queue {
	var cards [maxHand]int
	hand := l.dealer.DealIntoHand(hash, cards[:])
	at := int(l.dealt % uint(len(hand)))
	l.dealt++
	var best *queue
	for i := range hand {
		q := l.queueAt(hand[(at+i)%len(hand)])
		if q.count == 0 {
			return q
		}
		if best == nil || q.work < best.work {
			best = q
		}
	}
	return best
}

func (l *level) queueAt(index int) *queue {
	q := l.queues[index]
	if q == nil {
		q = &queue{index: index}
		l.queues[index] = q
	}
	return q
}

// push makes t the last of a queue.
func (l *level) push(q *queue, t *Ticket) {
	t.queue, t.decided = q, make(chan struct{})
	if q.count == 0 {
		l.waiting = append(l.waiting, q)
	}
	q.tickets.push(t)
	l.count(q, t, 1)
	q.bound()
}

// count keeps the books of t coming to its queue or leaving it.
func (l *level) count(q *queue, t *Ticket, by int) {
	seats := by * t.most()
	q.count += by
	q.seats += seats
	q.work += float64(by) * t.work()
	if q.count == 0 {
		q.work = 0 // without what rounding leaves
	}
	l.waitingCount += by
	l.waitingSeats += seats
	t.stats.waiting += by
	t.stats.waitingSeats += seats
}

// pull takes t out of its queue.
func (l *level) pull(t *Ticket) {
	q := t.queue
	q.tickets.remove(t)
	l.count(q, t, -1)
	if q.count > 0 {
		return
	}
	for i, other := range l.waiting {
		if other == q {
			last := len(l.waiting) - 1
			l.waiting[i], l.waiting[last] = l.waiting[last], nil
			l.waiting = l.waiting[:last]
			return
		}
	}
}

// bound keeps a queue that could not use what was due to it from saving it up.
func (q *queue) bound() {
	if first := q.tickets.first; first != nil {
		q.start = max(q.start, first.progress)
	}
}

// serve gives seats to those who wait for as long as there are any.
func (l *level) serve(now time.Duration) {
	for len(l.waiting) > 0 && l.used < l.limit {
		q := l.next()
		t := q.tickets.first
		if !l.fits(t.most()) {
			t.stats.noRoom++
			return // it has waited longest: nobody passes it
		}
		l.pull(t)
		l.robin = q.index
		l.seat(t, q, now)
		q.bound()
		close(t.decided)
	}
}

// next is the queue whose first request would finish first; of several, the one that comes next in turn.
func (l *level) next() *queue {
	var best *queue
	var finish float64
	turn := func(q *queue) int {
		n := max(len(l.queues), 1)
		return ((q.index-l.robin-1)%n + n) % n
	}
	for _, q := range l.waiting {
		f := q.start + q.tickets.first.work()
		if best == nil || f < finish || f == finish && turn(q) < turn(best) {
			best, finish = q, f
		}
	}
	return best
}

// fits tells whether there is room for a request of that many seats. One that is wider than the level runs alone.
func (l *level) fits(seats int) bool {
	switch {
	case l.exempt:
		return true
	case seats > l.limit:
		return l.running == 0
	}
	return l.used+seats <= l.limit
}

// seat makes t one of those that run.
func (l *level) seat(t *Ticket, q *queue, now time.Duration) {
	if most := max(l.limit, 1); !l.exempt && t.final > most {
		// What it needs in the end is no more than there is, and for longer.
		t.linger = time.Duration(float64(t.linger) * float64(t.final) / float64(most))
		t.final = most
	}
	t.queue, t.started, t.seated = q, now, true
	seats := t.most()
	l.used += seats
	l.running++
	l.given++
	t.stats.dispatched++
	t.stats.executing++
	t.stats.executingSeats += seats
	if !l.exempt {
		t.stats.waits[1].observe((now - t.arrived).Seconds())
	}
	l.executing.push(t)
	if q != nil {
		q.used += seats
		q.executing++
		q.start += t.work()
	}
}

// leave ends what t runs. Its seats are free, unless what it caused goes on for a while: then they are once free is
// called, that much later.
func (l *level) leave(t *Ticket, now time.Duration) (linger time.Duration, free func(now time.Duration)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.advance(now)
	ran := now - t.started
	st, q, seats := t.stats, t.queue, t.most()
	l.running--
	l.executing.remove(t)
	st.executing--
	st.executions[t.kind()].observe(ran.Seconds())
	if q != nil {
		q.executing--
		// It was charged for the typical time: now what it took is known.
		q.start = max(0, q.start-float64(t.initial)*(typicalService-ran).Seconds())
		q.bound()
		if q.count == 0 && q.executing == 0 {
			l.active--
		}
	}
	if t.linger > 0 {
		l.serve(now) // whose turn it is may have changed
		return t.linger, func(now time.Duration) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.advance(now)
			l.vacate(q, st, seats, now)
		}
	}
	l.vacate(q, st, seats, now)
	return 0, nil
}

func (l *level) vacate(q *queue, st *stats, seats int, now time.Duration) {
	l.used -= seats
	st.executingSeats -= seats
	if q != nil {
		q.used -= seats
	}
	l.serve(now)
	if l.active == 0 {
		l.progress = 0
	}
}

// abandon ends the wait of t, whose time is up or whose client is gone; false if it has got a seat meanwhile.
func (l *level) abandon(t *Ticket, gone bool, now time.Duration) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if t.seated {
		return false
	}
	l.advance(now)
	q := t.queue
	l.pull(t)
	q.bound()
	if q.count == 0 && q.executing == 0 {
		l.active--
	}
	l.refuse(t.stats, timedOut, now)
	if gone {
		l.refused.cancelled++
	} else {
		l.refused.timedOut++
	}
	t.stats.waits[0].observe((now - t.arrived).Seconds())
	// It may have been the one that was too wide for the room there is.
	l.serve(now)
	return true
}

// refuse accounts for a request that gets no seat.
func (l *level) refuse(st *stats, why refusal, now time.Duration) refusal {
	l.refused.total++
	l.drops.record(int64(now / time.Second))
	switch why {
	case full:
		st.refused[0]++
		st.waits[0].observe(0)
	case queueFull:
		st.refused[1]++
		st.waits[0].observe(0)
	case timedOut:
		st.refused[2]++
	}
	return why
}

// retryAfter is how many seconds a refused client shall stay away.
func (l *level) retryAfter() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.drops.wait()
}

// configure gives a level its queues. Those that are too many are served until they are empty.
func (l *level) configure(q queuing, dealer *shufflesharding.Dealer, s share, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.advance(now)
	l.share, l.dealer = s, dealer
	l.width.Store(int64(s.width))
	if l.limit < 0 {
		l.limit = s.nominal - (s.nominal-s.least)/2 // until its demand is known
	}
	if q.queues != len(l.queues) {
		kept := make([]*queue, q.queues)
		copy(kept, l.queues)
		l.queues = kept
	}
	l.queuing = q
	l.serve(now)
}

// resize says how many seats there are from now on.
func (l *level) resize(limit int, now time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.advance(now)
	l.limit = limit
	l.serve(now)
}

// idle tells whether nobody waits or runs.
func (l *level) idle() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.running == 0 && l.waitingCount == 0
}
