package encryption

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/time/rate"

	"barque.dev/internal/store"
)

const (
	// rewriteRate bounds how many objects are written again in a second.
	rewriteRate = 100
	// rewriteEvery is how often the leader looks for what is stale, beside when the keys change.
	rewriteEvery = time.Minute
	// retryEvery is how soon it looks again when something could not be written.
	retryEvery = 10 * time.Second
	// tellEvery is how often it logs how far it is.
	tellEvery = 10 * time.Second
)

// RewriterConfig is what a Rewriter stands on.
type RewriterConfig struct {
	Keyring *Keyring
	Store   *store.Store
	// Tables are those of everything that is kept, now.
	Tables func() []*store.Table
	// Rate bounds how many objects are written in a second; 0 is 100. Every is how often it looks; 0 is a
	// minute.
	Rate  rate.Limit
	Every time.Duration
	Log   *slog.Logger
}

// A Rewriter writes again what stands under another key than it should, and drops keys that nothing needs
// any more. Only the leader runs it. All that it decides on stands in etcd, so that the next leader goes on
// where one died.
type Rewriter struct {
	cfg RewriterConfig
	log *slog.Logger
}

// NewRewriter makes a rewriter; each term of leadership runs it once more.
func NewRewriter(cfg RewriterConfig) *Rewriter {
	if cfg.Rate == 0 {
		cfg.Rate = rewriteRate
	}
	if cfg.Every == 0 {
		cfg.Every = rewriteEvery
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Rewriter{cfg: cfg, log: cfg.Log}
}

// term is one of leadership.
type term struct {
	*Rewriter
	limiter *rate.Limiter
	clean   history
	// unreadable is how many objects could not be decrypted when that was logged last.
	unreadable int
}

// Run works until ctx, which carries the leader's fence, ends; without the fence it does nothing.
func (r *Rewriter) Run(ctx context.Context) error {
	t := &term{Rewriter: r, limiter: rate.NewLimiter(r.cfg.Rate, 1), clean: history{}}
	k := r.cfg.Keyring
	for ctx.Err() == nil {
		wait := r.cfg.Every
		since := k.table.Snapshot().Revision()
		err := t.round(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, store.ErrFenced): // the term is over
			<-ctx.Done()
			return nil
		case err != nil:
			r.log.Warn("not all that is encrypted with an old key could be written again", "error", err)
			wait = min(wait, retryEvery)
		}
		k.changed(ctx, since, wait)
	}
	return nil
}

// round looks at everything once.
func (t *term) round(ctx context.Context) error {
	k := t.cfg.Keyring
	v := k.view()
	if v.err != nil || v.revision == 0 {
		return v.err
	}
	request, requested := k.table.Get(store.Key{Name: rewriteName})
	failed := t.rewrite(ctx, requested)
	if ctx.Err() != nil || errors.Is(failed, store.ErrFenced) {
		return failed
	}
	if failed == nil && requested {
		_, _, err := k.table.Delete(ctx, store.Key{Name: rewriteName}, request.Revision())
		if err != nil && !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		t.log.Info("everything that was stale is written again")
	}
	return errors.Join(failed, t.drop(ctx))
}

// drop removes keys that nothing in etcd needs.
func (t *term) drop(ctx context.Context) error {
	k := t.cfg.Keyring
	v := k.view()
	t.clean.note(v.ring, t.census())
	for _, name := range t.clean.droppable(v.ring, t.cfg.Store.Compacted()) {
		next, err := v.ring.Drop(name)
		if err != nil {
			return err
		}
		if err := k.replace(ctx, v, next); err != nil {
			return fmt.Errorf("drop key %s: %w", name, err)
		}
		t.log.Info("an old encryption key is dropped, since nothing needs it any more", "key", name)
		v = k.view()
	}
	return nil
}

// census counts what stands under which of the ring's keys.
func (t *term) census() census {
	c := census{values: map[string]int{}}
	for _, table := range t.cfg.Tables() {
		if table.Schema().Transform == nil {
			continue
		}
		s := table.Snapshot()
		s.Ascend("", store.Key{}, func(e *store.Entry) bool {
			if name := keyOf(e.Stored()); name != "" {
				c.values[name]++
			}
			return true
		})
		c.revision = max(c.revision, s.Revision())
	}
	return c
}

// rewrite writes again what is stale: what is under the cluster's own keys always, the rest, which a
// configuration of the user's decides on, when he asks for it, since only he knows when all servers have the
// same one.
func (t *term) rewrite(ctx context.Context, all bool) error {
	stale, err := t.stale(all)
	if len(stale) == 0 {
		return err
	}
	t.log.Info("objects that are stale at rest are written again", "objects", len(stale))
	var errs errorSample
	errs.add(err)
	told := time.Now()
	for i, s := range stale {
		if err := t.limiter.Wait(ctx); err != nil {
			return err
		}
		err := s.rewrite(ctx)
		if errors.Is(err, store.ErrFenced) {
			return err
		}
		errs.add(err)
		if now := time.Now(); now.Sub(told) > tellEvery {
			told = now
			t.log.Info("objects that are stale at rest are written again", "done", i+1, "of", len(stale), "failed", errs.count)
		}
	}
	t.log.Info("objects that were stale at rest are written again", "objects", len(stale), "failed", errs.count)
	return errs.err()
}

// staleEntry is a version that should be written again.
type staleEntry struct {
	table *store.Table
	entry *store.Entry
	plain []byte
}

// judge tells whether a value should be written again.
type judge interface {
	judge(stored []byte, dataCtx string) (stale bool, err error)
}

// stale finds what should be written again. What can't be read here and now is an error if that may change.
func (t *term) stale(all bool) ([]staleEntry, error) {
	var found []staleEntry
	var errs errorSample
	unreadable := 0
	for _, table := range t.cfg.Tables() {
		s := table.Schema()
		_, own := s.Transform.(byRing)
		j, ok := s.Transform.(judge)
		if !ok || !own && !all {
			continue
		}
		table.Snapshot().Ascend("", store.Key{}, func(e *store.Entry) bool {
			stale, err := j.judge(e.Stored(), s.Prefix+path(e.Key()))
			if err == nil && !stale {
				return true
			}
			plain, perr := e.Plain()
			switch {
			case errors.Join(err, perr) == nil:
				found = append(found, staleEntry{table, e, plain})
			case own:
				unreadable++
			default:
				errs.add(errors.Join(err, perr))
			}
			return true
		})
	}
	if unreadable != t.unreadable {
		t.log.Warn("objects can't be decrypted by the cluster's own keys; they stay as they are", "objects", unreadable)
	}
	t.unreadable = unreadable
	return found, errs.err()
}

// path is where a key stands below its table's prefix.
func path(key store.Key) string {
	if key.Namespace == "" {
		return key.Name
	}
	return key.Namespace + "/" + key.Name
}

// rewrite writes the version as it is. One that somebody else has replaced needs no more, nor does one whose
// resource is not served any more.
func (s staleEntry) rewrite(ctx context.Context) error {
	_, err := s.table.Update(ctx, s.entry.Key(), s.plain, s.entry.Revision(), store.WriteOptions{KeepTTL: true})
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrClosed) {
		return nil
	}
	return err
}

// errorSample counts errors and keeps the first.
type errorSample struct {
	first error
	count int
}

func (s *errorSample) add(err error) {
	if err == nil {
		return
	}
	if s.first == nil {
		s.first = err
	}
	s.count++
}

func (s *errorSample) err() error {
	if s.count <= 1 {
		return s.first
	}
	return fmt.Errorf("%d objects, the first: %w", s.count, s.first)
}
