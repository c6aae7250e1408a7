package check

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"barque.dev/internal/drill/history"
)

const patience = 10 * time.Second

// good is a small history in which all is well: one object is made, written three times, once without
// an answer, and deleted; another one stays.
func good() *history.History {
	ops := []history.Op{
		{Client: "a", Kind: history.Create, Key: "x", Value: "1", Revision: 11, Outcome: history.OK, Call: 1, Return: 3},
		{Client: "b", Kind: history.Create, Key: "x", Value: "2", Outcome: history.Exists, Call: 4, Return: 6},
		{Client: "b", Kind: history.Get, Key: "x", Value: "1", Revision: 11, Outcome: history.OK, Call: 7, Return: 9},
		{Client: "a", Kind: history.Update, Key: "x", Value: "3", If: 11, Revision: 13, Outcome: history.OK, Call: 10, Return: 14},
		{Client: "b", Kind: history.Update, Key: "x", Value: "4", If: 11, Outcome: history.Conflict, Call: 11, Return: 15},
		{Client: "b", Kind: history.Update, Key: "x", Value: "5", If: 13, Outcome: history.Unknown, Call: 20, Return: 30},
		{Client: "a", Kind: history.Get, Key: "x", Value: "5", Revision: 15, Outcome: history.OK, Call: 40, Return: 44},
		{Client: "a", Kind: history.Update, Key: "x", Value: "6", If: 15, Revision: 16, Outcome: history.OK, Call: 50, Return: 54},
		{Client: "a", Kind: history.Create, Key: "y", Value: "7", Revision: 17, Outcome: history.OK, Call: 56, Return: 58},
		{Client: "b", Kind: history.Delete, Key: "x", If: 16, Outcome: history.OK, Call: 60, Return: 64},
		{Client: "b", Kind: history.Get, Key: "x", Outcome: history.Absent, Call: 70, Return: 74},
		{Client: "b", Kind: history.Update, Key: "y", Value: "8", If: 17, Outcome: history.Refused, Call: 75, Return: 76},
	}
	events := func() []history.Event {
		return []history.Event{
			{Type: history.Added, Key: "x", Value: "1", Revision: 11},
			{Type: history.Modified, Key: "x", Value: "3", Revision: 13},
			{Type: history.Bookmark, Revision: 14},
			{Type: history.Modified, Key: "x", Value: "5", Revision: 15},
			{Type: history.Modified, Key: "x", Value: "6", Revision: 16},
			{Type: history.Added, Key: "y", Value: "7", Revision: 17},
			{Type: history.Deleted, Key: "x", Value: "6", Revision: 18},
			{Type: history.Bookmark, Revision: 20},
		}
	}
	second := events()
	return &history.History{
		Start: 10, Ops: ops,
		Lists: []*history.List{{Client: "c", Revision: 14, Objects: []history.Object{{Key: "x", Value: "3", Revision: 13}}, Call: 16, Return: 18}},
		Watches: []*history.Watch{
			{Name: "w", Sessions: []*history.Session{{From: 10, List: &history.List{Client: "w", Revision: 10}, Events: events()}}},
			{Name: "v", Sessions: []*history.Session{
				{From: 9, List: &history.List{Client: "v", Revision: 9}, Events: second[:2]},
				{From: 13, Events: second[2:]},
			}},
		},
		End:    &history.List{Client: "end", Revision: 19, Objects: []history.Object{{Key: "y", Value: "7", Revision: 17}}, Call: 80, Return: 82},
		Copies: map[string][]string{"server-1": {"y"}, "server-2": {"y"}, "server-3": {"y"}},
	}
}

func TestGood(t *testing.T) {
	v := All(good(), patience)
	if len(v.Violations) != 0 || len(v.Undecided) != 0 {
		t.Fatalf("a good history has violations %v, undecided %v", v.Violations, v.Undecided)
	}
	if v.Operations != 12 || v.Unknown != 1 || v.Objects != 2 || v.Lists != 1 || v.Events != 16 {
		t.Errorf("counted %+v", v)
	}
}

// TestBad spoils the good history in one way after the other.
func TestBad(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(h *history.History)
		rule  Rule
		says  string
	}{
		"a stale get": {func(h *history.History) {
			h.Ops[6].Value, h.Ops[6].Revision = "1", 11
		}, Linearizable, "no order"},
		"a get of nothing where something is": {func(h *history.History) {
			h.Ops[2] = history.Op{Client: "b", Kind: history.Get, Key: "x", Outcome: history.Absent, Call: 7, Return: 9}
		}, Linearizable, "no order"},
		"a get of what was deleted": {func(h *history.History) {
			h.Ops[10].Outcome, h.Ops[10].Value, h.Ops[10].Revision = history.OK, "6", 16
		}, Linearizable, "no order"},
		"a refused write that was done": {func(h *history.History) {
			h.Ops[5].Outcome = history.Conflict
		}, Linearizable, "no order"},
		"a value that nobody wrote": {func(h *history.History) {
			h.Ops[2].Value = "9"
		}, Linearizable, "no order"},
		"a write over another one": {func(h *history.History) {
			h.Ops[7].If = 13
		}, Lost, `on top of 13, but revision 15 ("5") stands between`},
		"a write over a deletion": {func(h *history.History) {
			h.Ops[7].Revision = 19
		}, Lost, "but the deletion at revision 18 stands between"},
		"a write that makes no new revision": {func(h *history.History) {
			h.Ops[7].If = 16
		}, Lost, "which is no later"},
		"an acknowledged create that is lost": {func(h *history.History) {
			forget(h, 17)
			h.End.Objects = nil
		}, Lost, "nobody deleted it since, and the end does not show it"},
		"an acknowledged create that is lost, for porcupine": {func(h *history.History) {
			forget(h, 17)
			h.End.Objects = nil
		}, Linearizable, "no order"},
		"an acknowledged write that is undone": {func(h *history.History) {
			h.Ops = append(h.Ops, history.Op{Client: "a", Kind: history.Update, Key: "y", Value: "8", If: 17, Revision: 19, Outcome: history.OK, Call: 76, Return: 77})
		}, Lost, "shows revision 17: it is undone"},
		"a stale list": {func(h *history.History) {
			h.Lists[0].Revision, h.Lists[0].Objects = 12, []history.Object{{Key: "x", Value: "1", Revision: 11}}
		}, Listed, "but 13 was acknowledged before it was asked for: it is stale"},
		"a list that is older than one before": {func(h *history.History) {
			h.Lists = append(h.Lists, &history.List{Client: "c", Revision: 13, Objects: h.Lists[0].Objects, Call: 19, Return: 20})
		}, Listed, "it is stale"},
		"a list with an older object": {func(h *history.History) {
			h.Lists[0].Objects = []history.Object{{Key: "x", Value: "1", Revision: 11}}
		}, Listed, `shows revision 11, but it was at revision 13 ("3") then`},
		"a list with a later object": {func(h *history.History) {
			h.Lists[0].Revision = 13
			h.Lists[0].Objects = []history.Object{{Key: "x", Value: "5", Revision: 15}}
		}, Listed, "which is later"},
		"a list without an object": {func(h *history.History) {
			h.Lists[0].Objects = nil
		}, Listed, `lacks it, but it was at revision 13`},
		"a list with an object twice": {func(h *history.History) {
			h.Lists[0].Objects = append(h.Lists[0].Objects, h.Lists[0].Objects[0])
		}, Listed, "twice"},
		"a list with a deleted object": {func(h *history.History) {
			h.End.Objects = append(h.End.Objects, history.Object{Key: "x", Value: "6", Revision: 16})
		}, Listed, "but it was at the deletion at revision 18 then"},
		"two stories of one revision": {func(h *history.History) {
			h.Watches[1].Sessions[0].Events[1].Value = "4"
		}, Listed, "revision 13 is"},
		"an event that one watcher missed": {func(h *history.History) {
			s := h.Watches[0].Sessions[0]
			s.Events = append(s.Events[:1:1], s.Events[2:]...)
		}, Watched, `without revision 13 ("3"), of which a update by a told: it missed an event`},
		"a deletion that one watcher missed": {func(h *history.History) {
			s := h.Watches[0].Sessions[0]
			s.Events = append(s.Events[:6:6], s.Events[7])
		}, Watched, "without the deletion at revision 18"},
		"an event that is lost between two sessions": {func(h *history.History) {
			h.Watches[1].Sessions[1].From = 15
			h.Watches[1].Sessions[1].Events = h.Watches[1].Sessions[1].Events[2:]
		}, Watched, "does not go on where the one before ended, at 13"},
		"an event that all watchers missed": {func(h *history.History) {
			forgetEvent(h, 18)
		}, Folded, `has revision 16 ("6") by its list and events, and the last list nothing`},
		"a deletion between, that all watchers missed": {func(h *history.History) {
			for _, w := range h.Watches {
				for _, s := range w.Sessions {
					for i := range s.Events {
						if s.Events[i].Revision == 15 {
							s.Events[i].Type = history.Added
						}
					}
				}
			}
		}, Watched, "but was there since revision 13: watchers missed a change between"},
		"a repeated event": {func(h *history.History) {
			s := h.Watches[0].Sessions[0]
			s.Events = append(s.Events[:2:2], s.Events[1:]...)
		}, Watched, "it repeats an event"},
		"a session that repeats what the one before showed": {func(h *history.History) {
			s := h.Watches[1].Sessions[1]
			s.Events = append([]history.Event{{Type: history.Modified, Key: "x", Value: "3", Revision: 13}}, s.Events...)
		}, Watched, "shows revision 13 (modified) after 13"},
		"events in another order": {func(h *history.History) {
			e := h.Watches[0].Sessions[0].Events
			e[3], e[4] = e[4], e[3]
		}, Watched, "shows revision 15 (modified) after 16"},
		"an event after its bookmark": {func(h *history.History) {
			e := h.Watches[0].Sessions[0].Events
			e[1], e[2] = e[2], e[1]
		}, Watched, "shows revision 13 (modified) after 14"},
		"a watcher that stands still": {func(h *history.History) {
			s := h.Watches[0].Sessions[0]
			s.Events = s.Events[:5]
		}, Folded, "never saw everything up to revision 19"},
		"a watcher that never began": {func(h *history.History) {
			h.Watches[0].Sessions = nil
		}, Folded, "never saw everything"},
		"a server with another object": {func(h *history.History) {
			h.Copies["server-2"][0] = "z"
		}, Converged, "server-1 and server-2 show object 1 differently"},
		"a server with an object more": {func(h *history.History) {
			h.Copies["server-3"] = append(h.Copies["server-3"], "z")
		}, Converged, "server-1 shows 1 objects in the end, and server-3 2"},
	} {
		t.Run(name, func(t *testing.T) {
			h := good()
			c.spoil(h)
			found := All(h, patience).Violations
			for _, v := range found {
				if v.Rule == c.rule && strings.Contains(v.What, c.says) {
					return
				}
			}
			t.Errorf("found %q, want one of %s that says %q", found, c.rule, c.says)
		})
	}
}

// forget takes a revision out of everything that was seen, but not out of what was acknowledged.
func forget(h *history.History, revision int64) {
	forgetEvent(h, revision)
	for _, l := range h.Lists {
		var left []history.Object
		for _, o := range l.Objects {
			if o.Revision != revision {
				left = append(left, o)
			}
		}
		l.Objects = left
	}
}

func forgetEvent(h *history.History, revision int64) {
	for _, w := range h.Watches {
		for _, s := range w.Sessions {
			var left []history.Event
			for _, e := range s.Events {
				if e.Revision != revision {
					left = append(left, e)
				}
			}
			s.Events = left
		}
	}
}

// TestWhatIsAllowed spoils nothing: histories that look odd and are right.
func TestWhatIsAllowed(t *testing.T) {
	for name, change := range map[string]func(h *history.History){
		"a write without an answer that was never done": func(h *history.History) {
			h.Ops = append(h.Ops, history.Op{Client: "c", Kind: history.Update, Key: "y", Value: "9", If: 17, Outcome: history.Unknown, Call: 60, Return: 70})
		},
		"a write without an answer that was done much later": func(h *history.History) {
			h.Ops[5].Call, h.Ops[5].Return = 20, 21
			h.Ops = append(h.Ops, history.Op{Client: "c", Kind: history.Get, Key: "x", Value: "3", Revision: 13, Outcome: history.OK, Call: 34, Return: 36})
		},
		"a deletion without an answer that was done": func(h *history.History) {
			h.Ops[9].Outcome = history.Unknown
		},
		"a deletion where no watcher looked": func(h *history.History) {
			for _, w := range h.Watches {
				s := w.Sessions[len(w.Sessions)-1]
				s.Events = s.Events[:len(s.Events)-2]
				w.Sessions = append(w.Sessions, &history.Session{From: 19, List: &history.List{
					Client: w.Name, Revision: 19, Objects: h.End.Objects, Call: 80, Return: 82}})
			}
		},
		"a create after a deletion": func(h *history.History) {
			h.Ops = append(h.Ops, history.Op{Client: "a", Kind: history.Create, Key: "x", Value: "10", Revision: 20, Outcome: history.OK, Call: 76, Return: 78})
			for _, w := range h.Watches {
				s := w.Sessions[len(w.Sessions)-1]
				s.Events[len(s.Events)-1] = history.Event{Type: history.Added, Key: "x", Value: "10", Revision: 20}
			}
			h.End.Revision, h.End.Objects = 20, append(h.End.Objects, history.Object{Key: "x", Value: "10", Revision: 20})
		},
		"no end": func(h *history.History) { h.End, h.Copies = nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			h := good()
			change(h)
			if v := All(h, patience); len(v.Violations)+len(v.Undecided) > 0 {
				t.Errorf("violations %v, undecided %v", v.Violations, v.Undecided)
			}
		})
	}
}

// A history that is written and read again is judged alike, and an object of it can be drawn.
func TestWriteAndDraw(t *testing.T) {
	h := good()
	h.Ops[6].Value, h.Ops[6].Revision = "1", 11
	path := filepath.Join(t.TempDir(), "history.json")
	if err := h.Write(path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var again history.History
	if err := json.Unmarshal(data, &again); err != nil {
		t.Fatal(err)
	}
	want, got := All(h, patience), All(&again, patience)
	if len(want.Violations) == 0 || len(got.Violations) != len(want.Violations) {
		t.Errorf("found %v, and after reading it again %v", want.Violations, got.Violations)
	}
	page := filepath.Join(t.TempDir(), "x.html")
	if err := Draw(h, "x", page, patience); err != nil {
		t.Fatal(err)
	}
	if drawn, err := os.ReadFile(page); err != nil || !strings.Contains(string(drawn), "get via") {
		t.Errorf("the page does not show the operations: %v", err)
	}
}

// A watcher that lists anew after the end sees what was written to mark it, which is not of the end.
func TestFoldAfterTheEnd(t *testing.T) {
	h := &history.History{
		End: &history.List{Revision: 19, Objects: []history.Object{{Key: "y", Value: "7", Revision: 17}}},
		Watches: []*history.Watch{{Name: "w", Sessions: []*history.Session{{From: 25, List: &history.List{Revision: 25, Objects: []history.Object{
			{Key: "y", Value: "7", Revision: 17}, {Key: "the-end", Value: "the-end", Revision: 20},
		}}}}}},
	}
	if found := Folds(h); len(found) > 0 {
		t.Error(found)
	}
	h.End.Objects[0].Revision = 18
	if found := Folds(h); len(found) != 1 {
		t.Errorf("what differs at the end is found as %v", found)
	}
}
