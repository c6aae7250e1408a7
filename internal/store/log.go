package store

import (
	"sort"
	"time"
)

// eventLog is a table's bounded, append-only history. It is a queue of chunks; a chunk's events
// never change once appended, so that a reader may hold a slice of them without a lock. The
// events of one revision stand in one chunk: a reader never sees half a transaction.
//
// Events are numbered; a reader's position is the number of the event it reads next. The
// table's lock guards the log.
type eventLog struct {
	chunks []*chunk
	first  int64 // number of the oldest event, or of the next one when there is none
	count  int
	bytes  int64
	floor  int64 // revision up to which history is missing: a reader must have seen it
	limits logLimits
}

type logLimits struct {
	events int           // most events to keep
	bytes  int64         // most bytes of versions to keep alive
	age    time.Duration // how long to keep an event at most
}

type chunk struct {
	first  int64
	events []Event
	bytes  int64
	last   time.Time // when the last event was added
}

const (
	chunkEvents = 128 // events in a chunk
	firstChunk  = 8   // events in the first one: most tables are quiet
	// chunkShare is the part of the log's bytes after which a chunk is full: eviction goes by
	// whole chunks, and shouldn't take much more than what is too much.
	chunkShare = 16
	// eventOverhead estimates what an event and its entry take beside the value.
	eventOverhead = 256
)

// reset empties the log; every reader has missed something, one at the end too.
func (l *eventLog) reset(floor int64) {
	l.first += int64(l.count) + 1
	l.chunks, l.count, l.bytes, l.floor = nil, 0, 0, floor
}

// append adds the events of one revision and drops what is over the limits.
func (l *eventLog) append(events []Event, now time.Time) {
	var cost int64
	for i := range events {
		cost += events[i].cost()
	}
	var c *chunk
	if n := len(l.chunks); n > 0 {
		c = l.chunks[n-1]
	}
	if c == nil || len(c.events)+len(events) > cap(c.events) || c.bytes > l.limits.bytes/chunkShare {
		room := chunkEvents
		if c == nil {
			room = firstChunk
		}
		c = &chunk{first: l.end(), events: make([]Event, 0, max(room, len(events)))}
		l.chunks = append(l.chunks, c)
	}
	c.events = append(c.events, events...)
	c.bytes += cost
	c.last = now
	l.count += len(events)
	l.bytes += cost
	for len(l.chunks) > 1 && (l.count > l.limits.events || l.bytes > l.limits.bytes) {
		l.dropFirst()
	}
}

// expire drops chunks whose last event is older than the limit.
func (l *eventLog) expire(now time.Time) {
	for len(l.chunks) > 0 && now.Sub(l.chunks[0].last) > l.limits.age {
		l.dropFirst()
	}
}

// quiet are the events of the chunks in which none is younger: who keeps up has read them.
func (l *eventLog) quiet(before time.Time) [][]Event {
	var quiet [][]Event
	for _, c := range l.chunks {
		if c.last.Before(before) {
			quiet = append(quiet, c.events)
		}
	}
	return quiet
}

func (l *eventLog) dropFirst() {
	c := l.chunks[0]
	l.chunks[0] = nil
	if l.chunks = l.chunks[1:]; len(l.chunks) == 0 {
		l.chunks = nil
	}
	l.first += int64(len(c.events))
	l.count -= len(c.events)
	l.bytes -= c.bytes
	l.floor = c.events[len(c.events)-1].Revision
}

// end is the number of the next event.
func (l *eventLog) end() int64 { return l.first + int64(l.count) }

// seek returns the number of the first event after revision. ok is false when history after
// revision is missing.
func (l *eventLog) seek(revision int64) (n int64, ok bool) {
	if revision < l.floor {
		return 0, false
	}
	i := sort.Search(len(l.chunks), func(i int) bool {
		events := l.chunks[i].events
		return events[len(events)-1].Revision > revision
	})
	if i == len(l.chunks) {
		return l.end(), true
	}
	c := l.chunks[i]
	return c.first + int64(sort.Search(len(c.events), func(j int) bool { return c.events[j].Revision > revision })), true
}

// read returns the events from number n to the end of their chunk; none at the log's end. ok is
// false when n has fallen off the log.
func (l *eventLog) read(n int64) (events []Event, ok bool) {
	if n < l.first {
		return nil, false
	}
	if n >= l.end() {
		return nil, true
	}
	// A reader that keeps up is in the last chunk.
	i := len(l.chunks) - 1
	if l.chunks[i].first > n {
		i = sort.Search(len(l.chunks), func(i int) bool { return l.chunks[i].first > n }) - 1
	}
	all := l.chunks[i].events
	return all[n-l.chunks[i].first : len(all) : len(all)], true
}

// backwards calls f with every event after revision, the newest first, until f returns false.
func (l *eventLog) backwards(revision int64, f func(*Event) bool) {
	for i := len(l.chunks) - 1; i >= 0; i-- {
		events := l.chunks[i].events
		for j := len(events) - 1; j >= 0; j-- {
			if events[j].Revision <= revision || !f(&events[j]) {
				return
			}
		}
	}
}

// cost estimates the memory that only the log keeps alive. It counts the version before a
// change too, which is right for the log's oldest events and cautious for the others.
func (e *Event) cost() int64 {
	n := int64(eventOverhead)
	if e.Entry != nil {
		n += e.Entry.cost()
	}
	if e.Prev != nil {
		n += e.Prev.cost()
	}
	return n
}

// cost is what is kept of a version as long as the history has it. Of one that is encrypted that is what it
// says too.
func (e *Entry) cost() int64 {
	n := int64(len(e.stored))
	if e.space.schema.Transform != nil {
		n *= 2
	}
	return n
}
