package fairness

import (
	"time"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// A Ticket is a request's place at its priority level, from [Control.Admit] to [Ticket.Release]. The zero value is a
// ticket to nothing, whose release does nothing. It must not be copied while it is in use; one goroutine at a time
// uses it.
type Ticket struct {
	control *Control
	flow    *flow
	info    *request.RequestInfo
	user    user.Info

	estimate
	refused, released bool
	stats             *stats

	// The level's lock guards the rest from when the ticket enters it.
	queue            *queue // nil at a level without queues
	prev, next       *Ticket
	decided          chan struct{} // closed when it has a seat after having waited
	seated           bool
	progress         float64 // the level's when it arrived
	arrived, started time.Duration
}

// estimate is what a request is expected to cost.
type estimate struct {
	initial int           // seats while it runs
	final   int           // seats for as long as what it caused lingers
	linger  time.Duration // after it has run
	// mutating requests cause events, for as many watchers.
	mutating bool
	watchers int
}

// most is how many seats are taken for the request, from beginning to end.
func (e *estimate) most() int { return max(e.initial, e.final) }

// work is what the request is expected to cost, in seat-seconds.
func (e *estimate) work() float64 {
	return float64(e.initial)*typicalService.Seconds() + float64(e.final)*e.linger.Seconds()
}

// kind is the index of the histogram of how long requests run: 1 for watches, of which only the beginning counts.
func (t *Ticket) kind() int {
	if t.info.Verb == "watch" {
		return 1
	}
	return 0
}

// Release gives the seat back. Only the first call does something.
func (t *Ticket) Release() {
	if t.flow == nil || t.refused || t.released {
		return
	}
	t.released = true
	c := t.control
	if linger, free := t.flow.level.leave(t, c.now()); free != nil {
		time.AfterFunc(linger, func() { free(c.now()) })
	}
}

// Waited is how long the request waited for its seat.
func (t *Ticket) Waited() time.Duration {
	if t.decided == nil || !t.seated {
		return 0
	}
	return t.started - t.arrived
}

// RetryAfter is how many seconds the client of a request that was refused shall stay away.
func (t *Ticket) RetryAfter() int64 { return t.flow.level.retryAfter() }

// UIDs are those of the flow schema and the priority level that the request was found to belong to: each the only
// element of a slice that is shared and must not be changed. They go into the response's headers.
func (t *Ticket) UIDs() (schema, level []string) { return t.flow.schemaUID, t.flow.levelUID }

// ticketList is a list of tickets in the order of their arrival. A ticket is on one list at a time.
type ticketList struct{ first, last *Ticket }

func (l *ticketList) push(t *Ticket) {
	t.prev, t.next = l.last, nil
	if l.last == nil {
		l.first = t
	} else {
		l.last.next = t
	}
	l.last = t
}

func (l *ticketList) remove(t *Ticket) {
	if t.prev == nil {
		l.first = t.next
	} else {
		t.prev.next = t.next
	}
	if t.next == nil {
		l.last = t.prev
	} else {
		t.next.prev = t.prev
	}
	t.prev, t.next = nil, nil
}
