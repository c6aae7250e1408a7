package check

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"barque.dev/internal/drill/history"
)

// A simulation is a store that does everything right, one operation after the other, and clients that are
// told about it early or late.
type simulation struct {
	t        *rapid.T
	h        *history.History
	revision int64
	now      time.Duration
	there    map[string]history.Object
	log      []history.Event
	// pending are writes without an answer that are not done yet; some are done later.
	pending []history.Op
	values  int
}

func (s *simulation) commit(e history.Event) {
	s.revision += rapid.Int64Range(1, 3).Draw(s.t, "others' writes")
	e.Revision = s.revision
	s.log = append(s.log, e)
	if e.Type == history.Deleted {
		delete(s.there, e.Key)
		return
	}
	s.there[e.Key] = history.Object{Key: e.Key, Value: e.Value, Revision: e.Revision}
}

// do takes an operation's effect, and fills in what the client is told.
func (s *simulation) do(op *history.Op) {
	have, there := s.there[op.Key]
	op.Outcome = history.OK
	switch {
	case op.Kind == history.Create && there:
		op.Outcome = history.Exists
	case op.Kind != history.Create && !there:
		op.Outcome = history.Absent
	case op.If != 0 && op.If != have.Revision:
		op.Outcome = history.Conflict
	case op.Kind == history.Get:
		op.Value, op.Revision = have.Value, have.Revision
	case op.Kind == history.Delete:
		s.commit(history.Event{Type: history.Deleted, Key: op.Key, Value: have.Value})
	case op.Kind == history.Create:
		s.commit(history.Event{Type: history.Added, Key: op.Key, Value: op.Value})
		op.Revision = s.revision
	default:
		s.commit(history.Event{Type: history.Modified, Key: op.Key, Value: op.Value})
		op.Revision = s.revision
	}
}

// interval are the times at which an operation that is done now was asked for and answered.
func (s *simulation) interval() (from, to time.Duration) {
	s.now += 10
	return s.now - rapid.Custom(func(t *rapid.T) time.Duration { return time.Duration(rapid.IntRange(1, 25).Draw(t, "early")) }).Draw(s.t, "call"),
		s.now + time.Duration(rapid.IntRange(1, 25).Draw(s.t, "late"))
}

func (s *simulation) step(i int) {
	if len(s.pending) > 0 && rapid.IntRange(0, 3).Draw(s.t, "an old write is done") == 0 {
		late := s.pending[0]
		s.pending = s.pending[1:]
		s.do(&late)
		s.now += 10
	}
	from, to := s.interval()
	if rapid.IntRange(0, 5).Draw(s.t, "list") == 0 {
		s.h.Lists = append(s.h.Lists, s.list("lister", from, to))
		return
	}
	s.values++
	op := history.Op{
		Client: fmt.Sprint("client-", i%4), Key: rapid.SampledFrom([]string{"x", "y", "z"}).Draw(s.t, "key"),
		Kind: rapid.SampledFrom([]history.Kind{history.Create, history.Update, history.Update, history.Get, history.Delete}).Draw(s.t, "kind"),
		Call: from, Return: to,
	}
	if op.Kind == history.Create || op.Kind == history.Update {
		op.Value = fmt.Sprint(s.values)
	}
	if changes := s.of(op.Key); len(changes) > 0 && (op.Kind == history.Update || op.Kind == history.Delete && i%2 == 0) {
		back := min(len(changes), rapid.IntRange(1, 2).Draw(s.t, "on top of"))
		op.If = changes[len(changes)-back].Revision
	} else if op.Kind == history.Update {
		op.Kind = history.Create
	}
	if rapid.IntRange(0, 9).Draw(s.t, "no answer") > 0 {
		s.do(&op)
	} else {
		op.Outcome = history.Unknown
		s.pending = append(s.pending, op)
		if op.Kind == history.Get {
			s.pending = s.pending[:len(s.pending)-1]
			op.Value = ""
		}
	}
	s.h.Ops = append(s.h.Ops, op)
}

// of are an object's changes that left something to write on top of.
func (s *simulation) of(key string) (changes []history.Event) {
	for _, e := range s.log {
		if e.Key == key && e.Type != history.Deleted {
			changes = append(changes, e)
		}
	}
	return changes
}

func (s *simulation) list(client string, from, to time.Duration) *history.List {
	l := &history.List{Client: client, Revision: s.revision, Call: from, Return: to}
	for _, o := range s.there {
		l.Objects = append(l.Objects, o)
	}
	slices.SortFunc(l.Objects, func(a, b history.Object) int { return int(a.Revision - b.Revision) })
	return l
}

// watch makes the record of a watcher that sees all, in sessions that end anywhere.
func (s *simulation) watch(name string) *history.Watch {
	w := &history.Watch{Name: name}
	session := &history.Session{From: s.h.Start, List: &history.List{Client: name, Revision: s.h.Start}}
	for _, e := range s.log {
		switch rapid.IntRange(0, 9).Draw(s.t, "next") {
		case 0:
			w.Sessions = append(w.Sessions, session)
			session = &history.Session{From: session.To()}
		case 1:
			session.Events = append(session.Events, history.Event{Type: history.Bookmark, Revision: e.Revision - 1})
		}
		session.Events = append(session.Events, e)
	}
	session.Events = append(session.Events, history.Event{Type: history.Bookmark, Revision: s.revision + 5})
	w.Sessions = append(w.Sessions, session)
	return w
}

func simulate(t *rapid.T) *simulation {
	s := &simulation{t: t, revision: 100, now: 100, there: map[string]history.Object{}, h: &history.History{Start: 100}}
	for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
		s.step(i)
	}
	for _, name := range []string{"v", "w"} {
		s.h.Watches = append(s.h.Watches, s.watch(name))
	}
	s.now += 100
	s.h.End = s.list("end", s.now, s.now+1)
	return s
}

// TestSimulatedHistoriesAreGood: whatever a right store does, however late its answers, is no violation.
func TestSimulatedHistoriesAreGood(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := simulate(t)
		if v := All(s.h, patience); len(v.Violations)+len(v.Undecided) > 0 {
			t.Fatalf("violations %v, undecided %v in %+v", v.Violations, v.Undecided, s.h.Ops)
		}
	})
}

// TestSpoiledHistoriesAreBad: any event that one watcher misses, sees twice or sees too early is found, and so
// is any acknowledged write that nothing shows.
func TestSpoiledHistoriesAreBad(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := simulate(t)
		if len(s.log) == 0 {
			return
		}
		w := s.h.Watches[0]
		var full []*history.Session
		for _, session := range w.Sessions {
			if len(session.Events) > 0 {
				full = append(full, session)
			}
		}
		session := full[rapid.IntRange(0, len(full)-1).Draw(t, "session")]
		i := rapid.IntRange(0, len(session.Events)-1).Draw(t, "event")
		e := session.Events[i]
		if e.Type == history.Bookmark {
			return
		}
		how := rapid.SampledFrom([]string{"missed", "repeated", "early", "lost"}).Draw(t, "how")
		switch {
		case how == "missed" && i+1 < len(session.Events):
			session.Events = slices.Delete(slices.Clone(session.Events), i, i+1)
		case how == "repeated":
			session.Events = slices.Insert(slices.Clone(session.Events), i, e)
		case how == "early" && i > 0 && session.Events[i-1].Revision < e.Revision:
			session.Events[i-1], session.Events[i] = e, session.Events[i-1]
		case how == "lost" && e.Type != history.Deleted && acknowledgedWrite(s.h, e.Revision):
			forget(s.h, e.Revision)
			s.h.End.Objects = slices.DeleteFunc(s.h.End.Objects, func(o history.Object) bool { return o.Revision == e.Revision })
		default:
			return
		}
		if v := All(s.h, patience); len(v.Violations) == 0 {
			t.Fatalf("event %+v was %s, and nothing is found", e, how)
		}
	})
}

func acknowledgedWrite(h *history.History, revision int64) bool {
	return slices.ContainsFunc(h.Ops, func(op history.Op) bool {
		return op.Revision == revision && op.Outcome == history.OK && op.Kind != history.Get
	})
}
