package history

import (
	"fmt"
	"sync"
	"testing"
)

// TestRecorder: what many record at once is all there, and the room ends.
func TestRecorder(t *testing.T) {
	r := NewRecorder(100)
	r.Start(7)
	if !r.Room() || r.HalfFull() || r.SeenByAll() != 0 || r.Watchers() != 0 {
		t.Error("a new recorder is not empty")
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for j := range 10 {
				r.Op(Op{Key: fmt.Sprint(i, j)})
			}
			r.List(&List{Objects: make([]Object, 4)})
		})
	}
	wg.Wait()
	if r.used() != 60 || !r.Room() || !r.HalfFull() {
		t.Errorf("%d entries", r.used())
	}
	for range 40 {
		r.Op(Op{})
	}
	if r.Room() {
		t.Error("there is room beyond the limit")
	}
	r.End(&List{Revision: 9}, map[string][]string{"s": nil})
	h := r.History()
	if h.Start != 7 || len(h.Ops) != 80 || len(h.Lists) != 4 || h.End.Revision != 9 || len(h.Copies) != 1 {
		t.Errorf("got %d operations, %d lists, start %d", len(h.Ops), len(h.Lists), h.Start)
	}
}

// TestWatchRecorder: sessions follow each other, and bookmarks that say nothing new take no room.
func TestWatchRecorder(t *testing.T) {
	r := NewRecorder(100)
	v, w := r.Watch("v", "vip"), r.Watch("w", "server-1")
	v.Begin(10, &List{Revision: 10})
	if r.Watchers() != 1 || r.SeenByAll() != 0 {
		t.Error("a watcher that has no list yet has begun")
	}
	w.Begin(12, &List{Revision: 12})
	for _, e := range []Event{
		{Type: Added, Key: "x", Revision: 13}, {Type: Bookmark, Revision: 14}, {Type: Bookmark, Revision: 16},
		{Type: Bookmark, Revision: 15}, // which is wrong, and so it is kept
	} {
		w.Event(e)
	}
	if w.Seen() != 15 || r.SeenByAll() != 10 {
		t.Errorf("seen %d, by all %d", w.Seen(), r.SeenByAll())
	}
	w.Begin(15, nil)
	s := r.History().Watches[1].Sessions
	if len(s) != 2 || len(s[0].Events) != 3 || s[0].Events[1].Revision != 16 || s[0].To() != 15 || s[1].To() != 15 {
		t.Errorf("sessions %+v", s)
	}
}
