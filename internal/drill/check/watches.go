package check

import (
	"fmt"
	"maps"
	"slices"
	"sort"

	"barque.dev/internal/drill/history"
)

// Watches checks every session of every watcher: its revisions rise, and between its first and its
// last it shows each change that anybody was told of.
func Watches(h *history.History, log *Log) (found []Violation) {
	for _, w := range h.Watches {
		for i, s := range w.Sessions {
			who := fmt.Sprintf("%s's session %d through %s, from revision %d on,", w.Name, i+1, w.Via, s.From)
			if i > 0 && s.List == nil && s.From != w.Sessions[i-1].To() {
				found = append(found, Violation{Watched, "", fmt.Sprintf("%s does not go on where the one before ended, at %d", who, w.Sessions[i-1].To())})
			}
			found = append(found, order(s, who)...)
			found = append(found, log.complain(s, who)...)
		}
	}
	return found
}

// order checks that a session's revisions rise. A bookmark may repeat one, and be repeated.
func order(s *history.Session, who string) (found []Violation) {
	last := history.Event{Revision: s.From, Type: history.Bookmark}
	for _, e := range s.Events {
		if e.Revision < last.Revision || e.Revision == last.Revision && e.Type != history.Bookmark {
			what := fmt.Sprintf("%s shows revision %d (%s) after %d", who, e.Revision, e.Type, last.Revision)
			if e.Revision == last.Revision && e.Type == last.Type {
				what += ": it repeats an event"
			}
			found = append(found, Violation{Watched, e.Key, what})
		}
		last = e
	}
	return found
}

// complain tells which changes a session should have shown and did not.
func (l *Log) complain(s *history.Session, who string) (found []Violation) {
	shown := make(map[int64]bool, len(s.Events))
	for _, e := range s.Events {
		if e.Type != history.Bookmark {
			shown[e.Revision] = true
		}
	}
	to := s.To()
	first := sort.Search(len(l.all), func(i int) bool { return l.all[i].Revision > s.From })
	for _, c := range l.all[first:] {
		if c.Revision > to {
			break
		}
		if !shown[c.Revision] {
			found = append(found, Violation{Watched, c.Key, fmt.Sprintf("%s went on to %d without %s, of which %s told: it missed an event",
				who, to, describe(c), c.source)})
		}
	}
	return found
}

// Folds checks that each watcher has in the end what the last list shows.
func Folds(h *history.History) (found []Violation) {
	if h.End == nil {
		return nil
	}
	want := objects(h.End)
	for _, w := range h.Watches {
		if n := len(w.Sessions); n == 0 || w.Sessions[n-1].To() < h.End.Revision {
			found = append(found, Violation{Folded, "", fmt.Sprintf("%s, through %s, never saw everything up to revision %d, the end", w.Name, w.Via, h.End.Revision)})
			continue
		}
		have := fold(w, h.End.Revision)
		for _, key := range slices.Sorted(maps.Keys(union(have, want))) {
			if have[key] != want[key] {
				found = append(found, Violation{Folded, key, fmt.Sprintf("%s, through %s, has %s by its list and events, and the last list %s",
					w.Name, w.Via, orNothing(have[key]), orNothing(want[key]))})
			}
		}
	}
	return found
}

func objects(l *history.List) map[string]history.Object {
	all := map[string]history.Object{}
	for _, o := range l.Objects {
		all[o.Key] = o
	}
	return all
}

// fold is what a watcher has of a revision.
func fold(w *history.Watch, revision int64) map[string]history.Object {
	have := map[string]history.Object{}
	for _, s := range w.Sessions {
		if s.List != nil {
			have = objects(s.List)
			// A list that was made later shows what came after the revision, too.
			maps.DeleteFunc(have, func(_ string, o history.Object) bool { return o.Revision > revision })
		}
		for _, e := range s.Events {
			switch {
			case e.Revision > revision || e.Type == history.Bookmark:
			case e.Type == history.Deleted:
				delete(have, e.Key)
			default:
				have[e.Key] = history.Object{Key: e.Key, Value: e.Value, Revision: e.Revision}
			}
		}
	}
	return have
}

func union(a, b map[string]history.Object) map[string]bool {
	all := map[string]bool{}
	for key := range a {
		all[key] = true
	}
	for key := range b {
		all[key] = true
	}
	return all
}

func orNothing(o history.Object) string {
	if o.Key == "" {
		return "nothing"
	}
	return fmt.Sprintf("revision %d (%q)", o.Revision, o.Value)
}

// Copies checks that all servers show the same, byte for byte.
func Copies(h *history.History) (found []Violation) {
	servers := slices.Sorted(maps.Keys(h.Copies))
	for i := 1; i < len(servers); i++ {
		a, b := h.Copies[servers[0]], h.Copies[servers[i]]
		if len(a) != len(b) {
			found = append(found, Violation{Converged, "", fmt.Sprintf("%s shows %d objects in the end, and %s %d", servers[0], len(a), servers[i], len(b))})
		}
		for j := range min(len(a), len(b)) {
			if a[j] != b[j] {
				found = append(found, Violation{Converged, "", fmt.Sprintf("%s and %s show object %d differently in the end: %s, and %s",
					servers[0], servers[i], j+1, short(a[j]), short(b[j]))})
				break
			}
		}
	}
	return found
}

func short(text string) string { return text[:min(len(text), 500)] }
