package store

import (
	"runtime"
	"sync/atomic"
	"time"
)

const (
	// wakeCost is what it takes to wake one cursor and to send it one event over the network, of one processor;
	// less for one that passes most events over. Measured; docs/performance.md says what more and less of it do.
	wakeCost = 14 * time.Microsecond
	// crowdShare is the part of all processors that a crowd may take: one in so many. Were it much more, those who
	// write would wait behind those who watch, and each event would be sent by itself.
	crowdShare = 4
	// leastPace is what is not worth a timer, and mostPace bounds how long an event may wait for others.
	leastPace = time.Millisecond
	mostPace  = 50 * time.Millisecond
)

// pace is how far apart a crowd of cursors is woken, so that it takes no more than its share of the processors while
// there is one event to send at a time. One that is sent with another costs a third of that: a thousand watchers take 15 ms
// for the first and 5 for each further one.
func pace(crowd int64, processors int) time.Duration {
	d := time.Duration(crowd) * wakeCost * crowdShare / time.Duration(processors)
	if d < leastPace {
		return 0
	}
	return min(d, mostPace)
}

// gathering decides when a table's crowd gets to see events: at once after a quiet time, otherwise together with what comes
// within the pace. Except for the crowd's size, the table's lock guards it.
type gathering struct {
	crowd atomic.Int64 // cursors that are open, but for those that see everything at once
	last  time.Time    // when the crowd was woken last
	shown int64        // the log's end then: the crowd may read as far in any case
	later bool         // a timer will wake it
}

// wait is how long the crowd has to wait from now on; 0 for not at all.
func (g *gathering) wait(now time.Time) time.Duration {
	return max(0, pace(g.crowd.Load(), runtime.GOMAXPROCS(0))-now.Sub(g.last))
}

// hides tells whether a cursor of the crowd has to wait for its next event, which has this number.
func (g *gathering) hides(next int64) bool { return g.later && next >= g.shown }
