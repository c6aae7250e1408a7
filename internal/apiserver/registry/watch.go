package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	listvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"barque.dev/internal/store"
)

const (
	// bookmarkPeriod is how often an idle watch that asked for bookmarks gets one.
	bookmarkPeriod = time.Minute
	// bookmarkBeforeEnd is how long before its deadline a watch gets a last bookmark, so
	// that it can resume where it ended.
	bookmarkBeforeEnd = 2 * time.Second
	// initialBatch bounds how many initial events Next returns at once.
	initialBatch = 512
)

// A WatchEvent is what a watch shows of one change.
type WatchEvent struct {
	Type watch.EventType
	// Entry is the object's version; for Deleted the last one that was shown; nil for Bookmark.
	Entry *store.Entry
	// Revision is the event's. It is the resource version to show for Bookmark and Deleted;
	// for the others it is the entry's own.
	Revision int64
	// InitialEventsEnd marks the bookmark that follows the initial events.
	InitialEventsEnd bool
}

// A Watch is a position in a resource's history, seen through selectors. One goroutine at a
// time uses it.
type Watch struct {
	req    Request
	sel    *selector
	table  *store.Table
	cursor *store.Cursor
	err    error // returned by the first Next

	initial *store.Snapshot // what is still to be shown before the history
	after   store.Key
	mark    bool // a bookmark ends the initial events

	bookmarks bool
	due       time.Time // of the next bookmark
	alarm     *time.Timer
	deadline  time.Time
	progress  int64
	marked    int64 // revision of the last bookmark or event

	events []WatchEvent // what Next returned last
}

// Watch follows what the options select. A resource version that is too old is reported by the
// first Next, as kube-apiserver does, which has answered with 200 by then.
func (r *Registry) Watch(ctx context.Context, req Request, opts *metainternalversion.ListOptions) (*Watch, error) {
	if !req.allows("watch") {
		return nil, methodNotSupported(req, "watch")
	}
	if opts == nil {
		opts = &metainternalversion.ListOptions{}
	}
	if !opts.Watch {
		opts = opts.DeepCopy()
		opts.Watch = true
	}
	if errs := listvalidation.ValidateListOptions(opts, true); len(errs) > 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
	}
	sel, err := newSelector(req, opts)
	if err != nil {
		return nil, err
	}
	w := &Watch{req: req, sel: sel, bookmarks: opts.AllowWatchBookmarks}
	w.deadline, _ = ctx.Deadline()
	if err := r.startWatch(ctx, w, opts); err != nil {
		return nil, err
	}
	w.schedule(time.Now())
	return w, nil
}

// startWatch decides what a watch shows first and where it goes on.
func (r *Registry) startWatch(ctx context.Context, w *Watch, opts *metainternalversion.ListOptions) error {
	revision, err := parseVersion(opts.ResourceVersion)
	if err != nil {
		return err
	}
	wanted := opts.SendInitialEvents != nil && *opts.SendInitialEvents
	state := revision == 0 && opts.SendInitialEvents == nil
	since := revision
	first := wanted || state || revision == 0
	if first {
		if err := r.reach(ctx, w.req, opts.ResourceVersion); err != nil {
			return err
		}
	}
	table := r.tableOf(w.req) // after the wait, as snapshotAt
	if first {
		snapshot := table.Snapshot()
		since = snapshot.Revision()
		if wanted || state {
			w.initial = snapshot
			w.mark = wanted && opts.AllowWatchBookmarks
		}
	}
	w.table = table
	if w.cursor, err = table.Watch(since); err != nil {
		w.err, w.initial = w.failure(err, since), nil
	}
	w.progress, w.marked = since, since
	return nil
}

// Close ends the watch, and a Next that waits. It may be called by anybody.
func (w *Watch) Close() {
	if w.cursor != nil {
		w.cursor.Close()
	}
}

// Beginning tells whether some of what existed when the watch started is still to be shown.
func (w *Watch) Beginning() bool { return w.initial != nil || w.mark }

// Next waits for events. It returns ctx's error, a 410 status when the watch fell behind the
// history that is kept, or io.EOF when the resource went or changed, so that the client has to
// begin anew. The slice is valid until the next call.
func (w *Watch) Next(ctx context.Context) ([]WatchEvent, error) {
	if w.err != nil {
		return nil, w.err
	}
	for {
		events, err := w.next(ctx)
		if err != nil || len(events) > 0 {
			return events, err
		}
	}
}

func (w *Watch) next(ctx context.Context) ([]WatchEvent, error) {
	if w.initial != nil {
		return w.nextInitial()
	}
	if w.mark {
		w.mark = false
		w.marked = w.progress
		return []WatchEvent{{Type: watch.Bookmark, Revision: w.progress, InitialEventsEnd: true}}, nil
	}
	clear(w.events) // a watch that waits must not keep old versions alive
	changes, progress, err := w.cursor.NextUntil(ctx, w.alarmed())
	w.progress = max(w.progress, progress)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, w.failure(err, w.progress)
	}
	events := w.events[:0]
	for _, change := range changes {
		event, ok, err := w.show(change)
		if err != nil {
			return nil, statusError(w.Explain(err), w.req.groupResource(), change.Key.Name, "watch")
		}
		if ok {
			events = append(events, event)
		}
	}
	if len(events) > 0 {
		w.marked = events[len(events)-1].Revision
	}
	if w.bookmarks && !time.Now().Before(w.due) {
		events = append(events, w.bookmark()...)
	}
	if w.events = events; cap(events) > initialBatch {
		w.events = nil // a burst must not cost memory for as long as the watch lasts
	}
	return events, nil
}

// alarmed is where the time of the next bookmark is told; nowhere if there are none.
func (w *Watch) alarmed() <-chan time.Time {
	if w.alarm == nil {
		return nil
	}
	return w.alarm.C
}

// nextInitial shows a part of what existed when the watch started, as additions.
func (w *Watch) nextInitial() ([]WatchEvent, error) {
	events := make([]WatchEvent, 0, 64)
	more := false
	err := w.sel.scan(w.initial, w.after, func(entry *store.Entry) bool {
		if len(events) == initialBatch {
			more = true
			return false
		}
		events = append(events, WatchEvent{Type: watch.Added, Entry: entry, Revision: entry.Revision()})
		return true
	})
	if err != nil {
		return nil, statusError(w.Explain(err), w.req.groupResource(), "", "watch")
	}
	if more {
		w.after = events[len(events)-1].Entry.Key()
	} else {
		w.initial = nil
	}
	return events, nil
}

// show turns a change into what the selectors make of it: a change that makes an object match is
// an addition, one that makes it stop matching is a deletion.
func (w *Watch) show(change store.Event) (WatchEvent, bool, error) {
	if !w.sel.inScope(change.Key) {
		return WatchEvent{}, false, nil
	}
	var now, was bool
	var err error
	if change.Entry != nil {
		if now, err = w.sel.matches(change.Entry); err != nil {
			return WatchEvent{}, false, err
		}
	}
	if change.Prev != nil {
		if was, err = w.sel.matches(change.Prev); err != nil {
			return WatchEvent{}, false, err
		}
	}
	event := WatchEvent{Entry: change.Entry, Revision: change.Revision}
	switch {
	case now && was:
		event.Type = watch.Modified
	case now:
		event.Type = watch.Added
	case was:
		event.Type, event.Entry = watch.Deleted, change.Prev
	default:
		return WatchEvent{}, false, nil
	}
	return event, true, nil
}

// bookmark tells how far the watch has come, if that is news.
func (w *Watch) bookmark() []WatchEvent {
	w.schedule(time.Now())
	if w.progress <= w.marked {
		return nil
	}
	w.marked = w.progress
	return []WatchEvent{{Type: watch.Bookmark, Revision: w.progress}}
}

// schedule says when the next bookmark is due: about a minute from now, spread so that watches
// don't march in step, and shortly before the end.
func (w *Watch) schedule(now time.Time) {
	w.due = now.Add(bookmarkPeriod - bookmarkPeriod/8 + rand.N(bookmarkPeriod/4))
	if last := w.deadline.Add(-bookmarkBeforeEnd); !w.deadline.IsZero() && last.After(now) && last.Before(w.due) {
		w.due = last
	}
	switch {
	case !w.bookmarks:
	case w.alarm == nil:
		w.alarm = time.NewTimer(w.due.Sub(now))
	default:
		w.alarm.Reset(w.due.Sub(now))
	}
}

// Explain returns what a watch should end with that can't show one of its events because of err. What the history has of
// an object may be unreadable though the object is not: its key was dropped, or it was damaged and has been mended or
// removed. The client has to begin anew then. Other errors are returned as they are.
func (w *Watch) Explain(err error) error {
	var unreadable *store.UnreadableError
	if !errors.As(err, &unreadable) {
		return err
	}
	if now, ok := w.table.Get(unreadable.Key); ok && now.Revision() == unreadable.Revision {
		return err
	}
	return apierrors.NewResourceExpired(fmt.Sprintf("the history of %s can't be read: %v", w.req.groupResource(), err))
}

func (w *Watch) failure(err error, since int64) error {
	if errors.Is(err, store.ErrClosed) {
		return io.EOF
	}
	if errors.Is(err, store.ErrCompacted) {
		return apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d", since))
	}
	return statusError(err, w.req.groupResource(), "", "watch")
}
