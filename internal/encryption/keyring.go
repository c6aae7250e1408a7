package encryption

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"k8s.io/apimachinery/pkg/runtime"

	"barque.dev/internal/store"
)

// Where the keyring stands in etcd: beside the API's keys.
const (
	prefix      = "/barque/encryption/"
	ringName    = "keyring"
	serverName  = "server." // and the server's name: what it has noted
	rewriteName = "rewrite" // exists while everything stale is to be written again
)

// RecordKey is the key in etcd under which the record of the cluster's keys stands.
const RecordKey = prefix + ringName

// A Reader reads etcd; store.Backend is one.
type Reader interface {
	Range(ctx context.Context, req *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error)
}

// KeyringConfig is what a Keyring stands on.
type KeyringConfig struct {
	Store *store.Store
	Etcd  Reader
	// Sealer is of the secret that all servers share.
	Sealer *Sealer
	// Server is this server's name.
	Server string
	// File is where a copy of the ring is kept, as it stands in etcd. WriteFile replaces a file at once.
	File      string
	WriteFile func(path string, content []byte, mode os.FileMode) error
	// Servers lists all that read the cluster's etcd, as far as is known, without their keys.
	Servers func(ctx context.Context) ([]Server, error)
	// Founds: this server is a cluster's first, and nothing may be written before its keys are there.
	Founds bool
	Log    *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// A Keyring is a server's view of the cluster's keys. It is safe for concurrent use.
type Keyring struct {
	cfg   KeyringConfig
	log   *slog.Logger
	table *store.Table

	last atomic.Pointer[view]
	// mu serialises making of last.
	mu sync.Mutex
	// missed are keys that were looked for in vain, and when; guarded by mu.
	missed map[string]time.Time
	// waits is what was logged last.
	waits string
}

// view is the keyring at a revision of its record. It is immutable.
type view struct {
	revision int64 // 0: there is no record
	ring     Ring
	record   []byte
	// err tells why the record can't be used. Reading goes on with what was known before.
	err error
	// ciphers are those of all keys that were ever seen, by name: what is still in memory may stand under
	// one that was dropped.
	ciphers map[string]cipherOf
}

// noSuchKey is remembered for so long.
const noSuchKey = 5 * time.Second

// lookTimeout bounds looking for a key.
const lookTimeout = time.Second

// NewKeyring opens the keyring of the cluster, if it has one already. It needs no quorum. Its error wraps
// ErrSealed when the keys are of another cluster.
func NewKeyring(cfg KeyringConfig) (*Keyring, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	k := &Keyring{cfg: cfg, log: cfg.Log, missed: map[string]time.Time{}}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	k.last.Store(&view{revision: -1, ciphers: map[string]cipherOf{}})
	var err error
	k.table, err = cfg.Store.Register(store.Schema{Prefix: prefix, Decode: func(value []byte, _ int64) (runtime.Object, error) {
		return &runtime.Unknown{Raw: value}, nil
	}})
	if err != nil {
		return nil, err
	}
	if v := k.view(); v.err != nil {
		return nil, v.err
	}
	return k, nil
}

// view is the keyring as the image has it.
func (k *Keyring) view() *view {
	if v := k.last.Load(); v.revision == k.revision() {
		return v
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	v := k.last.Load()
	entry, ok := k.table.Get(store.Key{Name: ringName})
	switch {
	case !ok && v.revision != 0:
		// Somebody removed the record: what was known goes on until it is put back.
		v = &view{ring: v.ring, record: v.record, ciphers: v.ciphers}
	case ok && v.revision != entry.Revision():
		v = k.read(v, entry.Raw(), entry.Revision())
	}
	k.last.Store(v)
	return v
}

func (k *Keyring) revision() int64 {
	if entry, ok := k.table.Get(store.Key{Name: ringName}); ok {
		return entry.Revision()
	}
	return 0
}

// read makes the view of a record that follows another.
func (k *Keyring) read(was *view, record []byte, revision int64) *view {
	open, err := k.cfg.Sealer.openRing(record)
	if err != nil {
		k.log.Error("the cluster's encryption keys can't be read", "revision", revision, "error", err)
		return &view{revision: revision, ring: was.ring, record: was.record, err: err, ciphers: was.ciphers}
	}
	return &view{revision: revision, ring: open.Ring, record: record, ciphers: withKeys(was.ciphers, open)}
}

// cipher finds the cipher of a key. A value is never seen before its key is in etcd, but it may be loaded
// before the image follows: then etcd itself is asked.
func (k *Keyring) cipher(name string) (cipherOf, error) {
	if c, ok := k.view().ciphers[name]; ok {
		return c, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.cfg.Now()
	if c, ok := k.last.Load().ciphers[name]; ok {
		return c, nil
	}
	if at, ok := k.missed[name]; !ok || now.Sub(at) > noSuchKey {
		// What this server has applied is quick to read, and enough unless etcd runs elsewhere.
		for _, serializable := range []bool{true, false} {
			if c, ok := k.lookLocked(name, serializable); ok {
				return c, nil
			}
		}
		if len(k.missed) >= maxKeys {
			clear(k.missed)
		}
		k.missed[name] = now
	}
	return cipherOf{}, fmt.Errorf("it is encrypted with the key %s, which the cluster's keyring lacks", name)
}

// lookLocked reads the record from etcd and remembers its keys.
func (k *Keyring) lookLocked(name string, serializable bool) (cipherOf, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), lookTimeout)
	defer cancel()
	resp, err := k.cfg.Etcd.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(prefix + ringName), Serializable: serializable})
	if err != nil || len(resp.Kvs) == 0 {
		return cipherOf{}, false
	}
	open, err := k.cfg.Sealer.openRing(resp.Kvs[0].Value)
	if err != nil {
		return cipherOf{}, false
	}
	v := *k.last.Load()
	v.ciphers = withKeys(v.ciphers, open)
	k.last.Store(&v)
	c, ok := v.ciphers[name]
	return c, ok
}

// ErrNone: the cluster has no keyring yet.
var ErrNone = errors.New("the cluster has no encryption keys yet: try again in a moment")

// Rotate adds a new key, which is used as soon as every server has it, and returns its name.
func (k *Keyring) Rotate(ctx context.Context) (string, error) {
	key, err := k.cfg.Sealer.newKey(k.cfg.Now())
	if err != nil {
		return "", err
	}
	return key.Name, k.change(ctx, func(r Ring) (Ring, error) { return r.Rotate(key) })
}

// Disable makes all servers write plainly from now on.
func (k *Keyring) Disable(ctx context.Context) error {
	return k.change(ctx, func(r Ring) (Ring, error) { return r.Disable(), nil })
}

// change replaces the record, as often as somebody else does so first.
func (k *Keyring) change(ctx context.Context, f func(Ring) (Ring, error)) error {
	for {
		v := k.view()
		if v.err != nil {
			return v.err
		}
		if v.revision == 0 {
			return ErrNone
		}
		next, err := f(v.ring)
		if err != nil {
			return err
		}
		err = k.replace(ctx, v, next)
		if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
}

// replace writes a ring in place of the one that a view shows.
func (k *Keyring) replace(ctx context.Context, v *view, next Ring) error {
	record, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("encode the record of keys: %w", err)
	}
	_, err = k.table.Update(ctx, store.Key{Name: ringName}, record, v.revision, store.WriteOptions{})
	return err
}

// note is what a server says of itself in etcd.
type note struct {
	Keys []string `json:"keys"`
}

// servers are all that read the cluster's etcd, with the keys that they have. This one is always among
// them.
func (k *Keyring) servers(ctx context.Context) ([]Server, error) {
	servers, err := k.cfg.Servers(ctx)
	if err != nil {
		return nil, fmt.Errorf("list servers: %w", err)
	}
	if !slices.ContainsFunc(servers, func(s Server) bool { return s.Name == k.cfg.Server }) {
		servers = append(servers, Server{Name: k.cfg.Server, Alive: true})
	}
	for i := range servers {
		servers[i].Keys = k.noted(servers[i].Name)
	}
	slices.SortFunc(servers, func(a, b Server) int { return strings.Compare(a.Name, b.Name) })
	return servers, nil
}

// noted are the keys that a server says it has.
func (k *Keyring) noted(server string) []string {
	entry, ok := k.table.Get(store.Key{Name: serverName + server})
	if !ok {
		return nil
	}
	var n note
	if json.Unmarshal(entry.Raw(), &n) != nil {
		return nil
	}
	return n.Keys
}
