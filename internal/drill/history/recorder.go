package history

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"
)

// A Recorder collects a history from clients that run at the same time. It takes a bounded number
// of entries: clients ask [Recorder.Room] before each operation, and do nothing when there is none. What
// is under way then is still taken. It is safe for concurrent use.
type Recorder struct {
	began time.Time
	limit int

	mu      sync.Mutex
	entries int
	history History
}

// NewRecorder begins a history of at most so many entries: operations, objects in lists, events.
func NewRecorder(limit int) *Recorder { return &Recorder{began: time.Now(), limit: limit} }

// Start takes a revision at which there is no object yet, and after which every watcher sees all.
func (r *Recorder) Start(revision int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history.Start = revision
}

// Now is the time since the history began, by a clock that never jumps.
func (r *Recorder) Now() time.Duration { return time.Since(r.began) }

// Room tells whether the history takes further operations.
func (r *Recorder) Room() bool { return r.used() < r.limit }

// HalfFull tells that it is time to bring the history to an end.
func (r *Recorder) HalfFull() bool { return r.used() >= r.limit/2 }

func (r *Recorder) used() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.entries
}

// Op takes an operation that has ended.
func (r *Recorder) Op(op Op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries++
	r.history.Ops = append(r.history.Ops, op)
}

// List takes a list.
func (r *Recorder) List(l *List) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries += 1 + len(l.Objects)
	r.history.Lists = append(r.history.Lists, l)
}

// Watch begins the record of a watcher.
func (r *Recorder) Watch(name, via string) *WatchRecorder {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := &Watch{Name: name, Via: via}
	r.history.Watches = append(r.history.Watches, w)
	return &WatchRecorder{recorder: r, watch: w}
}

// End takes the last list, and what each server showed.
func (r *Recorder) End(end *List, copies map[string][]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.history.End, r.history.Copies = end, copies
}

// History is what was taken. Nothing may be recorded any more.
func (r *Recorder) History() *History {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &r.history
}

// A WatchRecorder takes what one watcher sees. One goroutine uses it.
type WatchRecorder struct {
	recorder *Recorder
	watch    *Watch
}

// Begin begins a session from a revision, with the list made for it, if there was one.
func (w *WatchRecorder) Begin(from int64, list *List) {
	w.recorder.mu.Lock()
	defer w.recorder.mu.Unlock()
	if list != nil {
		w.recorder.entries += len(list.Objects)
	}
	w.watch.Sessions = append(w.watch.Sessions, &Session{From: from, List: list})
}

// Event takes an event of the session that began last. Of bookmarks in a row, which say nothing that
// the last does not say, it keeps the last, unless they go back.
func (w *WatchRecorder) Event(e Event) {
	w.recorder.mu.Lock()
	defer w.recorder.mu.Unlock()
	s := w.watch.Sessions[len(w.watch.Sessions)-1]
	if n := len(s.Events); n > 0 && e.Type == Bookmark && s.Events[n-1].Type == Bookmark && e.Revision >= s.Events[n-1].Revision {
		s.Events[n-1] = e
		return
	}
	w.recorder.entries++
	s.Events = append(s.Events, e)
}

// Seen is the revision up to which the watcher has seen everything; 0 before its first list.
func (w *WatchRecorder) Seen() int64 {
	w.recorder.mu.Lock()
	defer w.recorder.mu.Unlock()
	return w.watch.seen()
}

func (w *Watch) seen() int64 {
	if len(w.Sessions) == 0 {
		return 0
	}
	return w.Sessions[len(w.Sessions)-1].To()
}

// SeenByAll is the revision up to which every watcher has seen everything; 0 before each has a list.
func (r *Recorder) SeenByAll() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	least := int64(0)
	for i, w := range r.history.Watches {
		if seen := w.seen(); i == 0 || seen < least {
			least = seen
		}
	}
	return least
}

// Watchers is how many have made their first list.
func (r *Recorder) Watchers() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.history.Watches {
		if len(w.Sessions) > 0 {
			n++
		}
	}
	return n
}

// Write writes a history to a file, as JSON.
func (h *History) Write(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write the history: %w", err)
	}
	if err := json.NewEncoder(f).Encode(h); err != nil {
		_ = f.Close()
		return fmt.Errorf("write the history %s: %w", path, err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write the history %s: %w", path, err)
	}
	return nil
}
