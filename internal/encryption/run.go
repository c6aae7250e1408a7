package encryption

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"barque.dev/internal/run"
	"barque.dev/internal/store"
)

const (
	// firstTry bounds how long the start of a cluster's first server waits for its keys.
	firstTry = 2 * time.Second
	// lookEvery is how often a server looks again while it waits for others, or after a failure.
	lookEvery = time.Second
	// beginPause is how soon a cluster's first server tries again to make its keys.
	beginPause = 20 * time.Millisecond
)

// Run plays this server's part until ctx ends: it makes the keyring when there is none, keeps a copy, notes
// which keys it has, and puts the next key to use once all have it. Where a cluster begins it is ready when
// there is a keyring, or could not be made for a while, and otherwise at once: a server that comes back while
// there is no quorum must serve what it can.
func (k *Keyring) Run(ctx context.Context, ready func()) error {
	if k.cfg.Founds {
		k.begin(ctx)
	}
	ready()
	for ctx.Err() == nil {
		since := k.table.Snapshot().Revision()
		wait := lookEvery
		if k.settle(ctx) {
			wait = 0
		}
		k.changed(ctx, since, wait)
	}
	return nil
}

// begin waits until there is a keyring, but not for ever.
func (k *Keyring) begin(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, firstTry)
	defer cancel()
	for k.view().revision == 0 && ctx.Err() == nil {
		if _, err := k.step(ctx); err != nil && k.view().revision == 0 {
			k.log.Debug("the encryption keys can't be made yet", "error", err)
			run.Pause(ctx, beginPause)
		}
	}
}

// settle does what there is to do; false if it should be tried again though nothing changes.
func (k *Keyring) settle(ctx context.Context) bool {
	for {
		again, err := k.step(ctx)
		switch {
		case ctx.Err() != nil:
			return false
		case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrExists), errors.Is(err, store.ErrNotFound):
			continue // somebody was faster
		case err != nil:
			k.log.Warn("the encryption keys can't be looked after yet", "error", err)
			return false
		case !again:
			return k.view().ring.Next == ""
		}
	}
}

// changed waits until something about the keys has changed after a revision, or for so long; 0 is for ever.
func (k *Keyring) changed(ctx context.Context, since int64, wait time.Duration) {
	if wait > 0 {
		within, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		ctx = within
	}
	cursor, err := k.table.Watch(since)
	if err == nil {
		defer cursor.Close()
		cursor.EventsOnly()
		_, _, err = cursor.Next(ctx)
	}
	if err != nil {
		run.Pause(ctx, lookEvery)
	}
}

// step does the next thing that there is to do, and tells whether there may be more.
func (k *Keyring) step(ctx context.Context) (again bool, err error) {
	v := k.view()
	switch {
	case v.err != nil:
		return false, v.err
	case v.revision == 0:
		return true, k.establish(ctx, v)
	}
	if err := k.keep(v); err != nil {
		return false, err
	}
	if names := v.ring.Names(); !slices.Equal(k.noted(k.cfg.Server), names) {
		return true, k.note(ctx, names)
	}
	if v.ring.Next == "" {
		return false, nil
	}
	servers, err := k.servers(ctx)
	if err != nil {
		return false, err
	}
	next, ok := v.ring.Promote(servers)
	if !ok {
		k.tellWaits(v.ring, servers)
		return false, nil
	}
	if err := k.replace(ctx, v, next); err != nil {
		return false, err
	}
	k.log.Info("a new encryption key is in use", "key", next.Writes)
	return true, nil
}

func (k *Keyring) tellWaits(ring Ring, servers []Server) {
	waits := strings.Join(ring.Waits(servers), ",")
	if waits != k.waits {
		k.log.Info("an encryption key is not in use yet, since not every server has it", "key", ring.Next, "servers", waits)
	}
	k.waits = waits
}

// establish writes the record when there is none: what this server knew of it, or a new one.
func (k *Keyring) establish(ctx context.Context, v *view) error {
	record := v.record
	if record == nil {
		var err error
		if record, err = k.recall(); err != nil {
			return err
		}
	}
	if record == nil {
		ring, err := k.first(ctx)
		if err != nil {
			return err
		}
		if record, err = json.Marshal(ring); err != nil {
			return fmt.Errorf("encode the record of keys: %w", err)
		}
	}
	_, err := k.table.Create(ctx, store.Key{Name: ringName}, record, store.WriteOptions{})
	return err
}

// first is a cluster's first ring. Its key is in use at once if this server, which has it, is the only one.
func (k *Keyring) first(ctx context.Context) (Ring, error) {
	key, err := k.cfg.Sealer.newKey(k.cfg.Now())
	if err != nil {
		return Ring{}, err
	}
	ring := newRing(k.cfg.Sealer.id, key)
	servers, err := k.servers(ctx)
	if err != nil {
		return Ring{}, err
	}
	for i := range servers {
		if servers[i].Name == k.cfg.Server {
			servers[i].Keys = ring.Names()
		}
	}
	ring, _ = ring.Promote(servers)
	return ring, nil
}

// recall reads this server's copy of the record; nil if there is none that it can use.
func (k *Keyring) recall() ([]byte, error) {
	record, err := os.ReadFile(k.cfg.File)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("read the copy of the encryption keys: %w", err)
	}
	if _, err := k.cfg.Sealer.openRing(record); err != nil {
		k.log.Warn("the copy of the encryption keys is of no use", "file", k.cfg.File, "error", err)
		return nil, nil
	}
	return record, nil
}

// keep makes the copy that `barque encryption config` reads, and that a record is made of which somebody
// removed.
func (k *Keyring) keep(v *view) error {
	if have, err := os.ReadFile(k.cfg.File); err == nil && bytes.Equal(have, v.record) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(k.cfg.File), 0o700); err != nil {
		return fmt.Errorf("keep a copy of the encryption keys: %w", err)
	}
	return k.cfg.WriteFile(k.cfg.File, v.record, 0o600)
}

// note writes down in etcd which keys this server has.
func (k *Keyring) note(ctx context.Context, names []string) error {
	value, err := json.Marshal(note{Keys: names})
	if err != nil {
		return fmt.Errorf("encode which keys this server has: %w", err)
	}
	key := store.Key{Name: serverName + k.cfg.Server}
	if entry, ok := k.table.Get(key); ok {
		_, err = k.table.Update(ctx, key, value, entry.Revision(), store.WriteOptions{})
	} else {
		_, err = k.table.Create(ctx, key, value, store.WriteOptions{})
	}
	return err
}
