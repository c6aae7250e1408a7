package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"barque.dev/internal/drill/history"
)

const (
	// slots is how many objects clients work on at a time: few, so that they meet.
	slots = 6
	// An object is given up for a new one after so many operations, or so many writes whose outcome is
	// unknown: the search for an order takes longer with each.
	maxOps, maxUnknown = 60, 3
	// pause is the longest between two operations of a client, afterFailure that after one that failed.
	pause, afterFailure = 40 * time.Millisecond, 100 * time.Millisecond
)

// Objects are those that clients work on, and what they know of them together.
type Objects struct {
	mu     sync.Mutex
	made   int
	values int
	slots  [slots]slot
}

type slot struct {
	key          string
	there, known bool // known: there and revision are what somebody was told last
	revision     int64
	ops, unknown int
}

// next chooses an operation for a client.
func (o *Objects) next(random *rand.Rand, client string) history.Op {
	o.mu.Lock()
	defer o.mu.Unlock()
	s := &o.slots[random.IntN(slots)]
	if s.key == "" {
		o.made++
		*s = slot{key: fmt.Sprintf("object-%d", o.made), known: true}
	}
	s.ops++
	op := history.Op{Client: client, Key: s.key, Kind: history.Get}
	if s.ops >= maxOps || s.unknown >= maxUnknown {
		op.Kind = history.Delete
		*s = slot{}
		return op
	}
	dice := random.IntN(100)
	switch {
	case !s.known || dice < 30:
		return op
	case !s.there || dice < 35: // at times of what is there
		op.Kind = history.Create
	case dice < 45:
		op.Kind = history.Delete
		if dice < 40 {
			op.If = s.revision
		}
		return op
	default:
		op.Kind, op.If = history.Update, s.revision
	}
	o.values++
	op.Value = fmt.Sprintf("%s/%d", client, o.values)
	return op
}

// learn takes what a client was told.
func (o *Objects) learn(op *history.Op) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range o.slots {
		s := &o.slots[i]
		if s.key != op.Key {
			continue
		}
		switch op.Outcome {
		case history.OK:
			s.there, s.known = op.Kind != history.Delete, true
			if op.Revision != 0 {
				s.revision = op.Revision
			}
		case history.Absent:
			s.there, s.known = false, true
		case history.Unknown:
			if op.Kind != history.Get {
				s.unknown++
			}
			s.known = false
		case history.Exists, history.Conflict:
			s.known = false
		}
	}
}

// Work makes one operation after the other until ctx ends; the last one still gets its answer.
func (a *API) Work(ctx context.Context, rec *history.Recorder, objects *Objects, client string, random *rand.Rand) {
	for ctx.Err() == nil {
		wait := time.Duration(random.Int64N(int64(pause)))
		if rec.Room() && !a.once(context.WithoutCancel(ctx), rec, objects, client, random) {
			wait += afterFailure
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// once makes one operation, or a list, and tells whether it was answered.
func (a *API) once(ctx context.Context, rec *history.Recorder, objects *Objects, client string, random *rand.Rand) bool {
	if random.IntN(20) == 0 {
		l, err := a.List(ctx, rec, client)
		if err == nil {
			rec.List(l)
		}
		return err == nil
	}
	op := objects.next(random, client)
	a.Do(ctx, rec, &op)
	rec.Op(op)
	objects.learn(&op)
	return op.Outcome != history.Unknown && op.Outcome != history.Refused
}
