package check

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"barque.dev/internal/drill/history"
)

// Lists checks every list: it is as new as what was acknowledged before it was asked for, and shows
// each object as it was at the list's revision.
func Lists(h *history.History, log *Log) (found []Violation) {
	acknowledged := newAcknowledged(h)
	for _, l := range allLists(h) {
		if newest := acknowledged.before(l.Call); newest > l.Revision {
			found = append(found, Violation{Listed, "", fmt.Sprintf(
				"%s's list through %s is of revision %d, but %d was acknowledged before it was asked for: it is stale", l.Client, l.Via, l.Revision, newest)})
		}
		found = append(found, log.list(l)...)
	}
	return found
}

// allLists are the consistent lists of clients and watchers, and the last one.
func allLists(h *history.History) []*history.List {
	all := slices.Clone(h.Lists)
	for _, w := range h.Watches {
		for _, s := range w.Sessions {
			if s.List != nil {
				all = append(all, s.List)
			}
		}
	}
	if h.End != nil {
		all = append(all, h.End)
	}
	return all
}

// list checks one list against what is known of its revision.
func (l *Log) list(list *history.List) (found []Violation) {
	shown := map[string]bool{}
	wrong := func(key, what string, args ...any) {
		found = append(found, Violation{Listed, key, fmt.Sprintf("%s's list of revision %d through %s ", list.Client, list.Revision, list.Via) + fmt.Sprintf(what, args...)})
	}
	for _, o := range list.Objects {
		if shown[o.Key] {
			wrong(o.Key, "shows it twice")
		}
		shown[o.Key] = true
		if o.Revision > list.Revision {
			wrong(o.Key, "shows revision %d, which is later", o.Revision)
		} else if c, ok := l.at(o.Key, list.Revision); ok && c.Revision != o.Revision {
			wrong(o.Key, "shows revision %d, but it was at %s then, as %s told", o.Revision, describe(c), c.source)
		}
	}
	for key := range l.keys {
		c, ok := l.at(key, list.Revision)
		// It may have been deleted where no watcher looked.
		if ok && !shown[key] && c.Type != history.Deleted && l.complete(c.Revision, list.Revision) {
			wrong(key, "lacks it, but it was at %s then, as %s told", describe(c), c.source)
		}
	}
	return found
}

// acknowledged tells the newest revision that anybody had been told of at a moment.
type acknowledged []told

type told struct {
	at       time.Duration
	revision int64
}

func newAcknowledged(h *history.History) acknowledged {
	var all acknowledged
	for i := range h.Ops {
		if op := &h.Ops[i]; op.Outcome == history.OK && op.Revision > 0 {
			all = append(all, told{op.Return, op.Revision})
		}
	}
	for _, l := range allLists(h) {
		all = append(all, told{l.Return, l.Revision})
	}
	slices.SortFunc(all, func(a, b told) int { return cmp.Compare(a.at, b.at) })
	for i := 1; i < len(all); i++ {
		all[i].revision = max(all[i].revision, all[i-1].revision)
	}
	return all
}

func (a acknowledged) before(moment time.Duration) int64 {
	i, _ := slices.BinarySearchFunc(a, moment, func(t told, m time.Duration) int { return cmp.Compare(t.at, m) })
	if i == 0 {
		return 0
	}
	return a[i-1].revision
}
