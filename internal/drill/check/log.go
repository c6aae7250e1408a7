package check

import (
	"cmp"
	"fmt"
	"slices"
	"sort"

	"barque.dev/internal/drill/history"
)

// A Change is one committed change of one object. Its type is "" where only reads tell of it.
type Change struct {
	history.Event
	source string // who told of it first
}

// A Log is every change that somebody was told of, in the order of revisions, and which stretches of
// that order watchers have shown, so that nothing is missing there.
type Log struct {
	start   int64
	all     []Change
	keys    map[string][]Change
	byValue map[string]int64
	shown   []span
}

// span is the revisions after from, up to and with to.
type span struct{ from, to int64 }

// NewLog collects what a history tells of. Two who tell different things of one revision are a
// violation.
func NewLog(h *history.History) (*Log, []Violation) {
	g := gathering{changes: map[int64]Change{}}
	for i := range h.Ops {
		g.op(&h.Ops[i])
	}
	for _, l := range h.Lists {
		g.list(l)
	}
	for _, w := range h.Watches {
		for _, s := range w.Sessions {
			if s.List != nil {
				g.list(s.List)
			}
			for _, e := range s.Events {
				if e.Type != history.Bookmark {
					g.add(e, "the watch of "+w.Name)
				}
			}
		}
	}
	if h.End != nil {
		g.list(h.End)
	}
	l := &Log{start: h.Start, keys: map[string][]Change{}, byValue: map[string]int64{}, shown: spans(h)}
	for _, c := range g.changes {
		l.all = append(l.all, c)
	}
	slices.SortFunc(l.all, func(a, b Change) int { return cmp.Compare(a.Revision, b.Revision) })
	for _, c := range l.all {
		l.keys[c.Key] = append(l.keys[c.Key], c)
		if c.Type != history.Deleted {
			l.byValue[c.Value] = c.Revision
		}
	}
	return l, g.violations
}

type gathering struct {
	changes    map[int64]Change
	violations []Violation
}

func (g *gathering) op(op *history.Op) {
	if op.Outcome != history.OK || op.Kind == history.Delete {
		return
	}
	e := history.Event{Key: op.Key, Value: op.Value, Revision: op.Revision}
	switch op.Kind {
	case history.Create:
		e.Type = history.Added
	case history.Update:
		e.Type = history.Modified
	}
	g.add(e, fmt.Sprintf("a %s by %s", op.Kind, op.Client))
}

func (g *gathering) list(l *history.List) {
	for _, o := range l.Objects {
		g.add(history.Event{Key: o.Key, Value: o.Value, Revision: o.Revision}, "a list by "+l.Client)
	}
}

func (g *gathering) add(e history.Event, source string) {
	have, ok := g.changes[e.Revision]
	if !ok {
		g.changes[e.Revision] = Change{Event: e, source: source}
		return
	}
	if have.Key != e.Key || have.Value != e.Value || have.Type != "" && e.Type != "" && have.Type != e.Type {
		g.violations = append(g.violations, Violation{Listed, e.Key, fmt.Sprintf(
			"revision %d is %s for %s, and %s for %s", e.Revision, say(have.Event), have.source, say(e), source)})
		return
	}
	if have.Type == "" {
		have.Type = e.Type
		g.changes[e.Revision] = have
	}
}

func say(e history.Event) string {
	if e.Type == "" {
		return fmt.Sprintf("%s=%q", e.Key, e.Value)
	}
	return fmt.Sprintf("%s=%q %s", e.Key, e.Value, e.Type)
}

// spans are the stretches that watchers have shown, joined where they touch.
func spans(h *history.History) []span {
	var all []span
	for _, w := range h.Watches {
		for _, s := range w.Sessions {
			if s.To() > s.From {
				all = append(all, span{s.From, s.To()})
			}
		}
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var joined []span
	for _, s := range all {
		if n := len(joined); n > 0 && s.from <= joined[n-1].to {
			joined[n-1].to = max(joined[n-1].to, s.to)
			continue
		}
		joined = append(joined, s)
	}
	return joined
}

// complete tells whether watchers have shown everything after from, up to and with to.
func (l *Log) complete(from, to int64) bool {
	if from >= to {
		return true
	}
	i := sort.Search(len(l.shown), func(i int) bool { return l.shown[i].to >= to })
	return i < len(l.shown) && l.shown[i].from <= from
}

// at is an object's last change up to a revision. Without one the object has never been.
func (l *Log) at(key string, revision int64) (Change, bool) {
	changes := l.keys[key]
	i := sort.Search(len(changes), func(i int) bool { return changes[i].Revision > revision })
	if i == 0 {
		return Change{Event: history.Event{Type: history.Deleted, Key: key, Revision: l.start}}, false
	}
	return changes[i-1], true
}

// Changes checks that each change of an object can follow the one before it, as far as watchers have
// looked: what is added was not there, and what is modified or deleted was.
func (l *Log) Changes() (found []Violation) {
	for key, changes := range l.keys {
		for _, c := range changes {
			before, _ := l.at(key, c.Revision-1)
			there := before.Type != history.Deleted
			if c.Type == "" || there == (c.Type != history.Added) || !l.complete(before.Revision, c.Revision) {
				continue
			}
			was := "was not there"
			if there {
				was = fmt.Sprintf("was there since revision %d", before.Revision)
			}
			found = append(found, Violation{Watched, key, fmt.Sprintf("it was %s at revision %d (%s), but %s: watchers missed a change between",
				c.Type, c.Revision, c.source, was)})
		}
	}
	return found
}
