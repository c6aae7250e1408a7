package encryption

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/goleak"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/pki"
	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/testkit"
)

func TestMain(m *testing.M) {
	// What kube-apiserver's packages start once and for all when they are loaded.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

var secretsResource = schema.GroupResource{Resource: "secrets"}

const (
	bound  = 20 * time.Second
	caID   = "sha256:ours"
	secret = "correct horse battery staple"
)

// fixture is an etcd that several servers share, each with an image of its own.
type fixture struct {
	member *etcd.Member

	mu      sync.Mutex
	servers []Server
}

func newFixture(t *testing.T, servers ...Server) *fixture {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	m, err := etcd.Start(t.Context(), etcd.Config{Name: "one", DataDir: t.TempDir(), PeerURL: "http://" + l.Addr().String(), UnsafeNoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	select {
	case <-m.Ready():
	case <-time.After(bound):
		t.Fatal("etcd is not ready")
	}
	return &fixture{member: m, servers: servers}
}

func (f *fixture) set(servers ...Server) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.servers = servers
}

func (f *fixture) list(context.Context) ([]Server, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Server(nil), f.servers...), nil
}

// raw is what stands in etcd at a key; nil if there is nothing.
func (f *fixture) raw(t *testing.T, key string) []byte {
	t.Helper()
	resp, err := f.member.Range(t.Context(), &etcdserverpb.RangeRequest{Key: []byte(key)})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return nil
	}
	return resp.Kvs[0].Value
}

func (f *fixture) put(t *testing.T, key, value string) {
	t.Helper()
	if _, err := f.member.Server().Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte(key), Value: []byte(value)}); err != nil {
		t.Fatal(err)
	}
}

// server is one of those that share the etcd.
type server struct {
	name    string
	dir     string
	store   *store.Store
	keyring *Keyring
	secrets *store.Table
	control *Control
	// stop ends it as a kill would; it may be called more than once.
	stop func()
}

func sealerOf(t *testing.T, id string, first byte) *Sealer {
	t.Helper()
	s, err := NewSealer(id, [32]byte{first, 1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// opened is a server that does not run yet.
func (f *fixture) opened(t *testing.T, name, dir string, file *File) (*server, error) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(testWriter{t}, nil)).With("server", name)
	s, err := store.Open(t.Context(), store.Config{Backend: f.member, Log: log, CompactEvery: 50 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewKeyring(KeyringConfig{
		Store: s, Etcd: f.member, Sealer: sealerOf(t, caID, 1), Server: name, Servers: f.list, Founds: true, Log: log,
		File: filepath.Join(dir, "encryption", "keyring.json"), WriteFile: pki.WriteFile,
	})
	if err != nil {
		return nil, err
	}
	v := &server{name: name, dir: dir, store: s, keyring: k}
	if v.secrets, err = s.Register(store.Schema{
		Prefix: "/registry/secrets/", Namespaced: true, Transform: Transformers(k, file)(secretsResource),
		Decode:  func(value []byte, _ int64) (runtime.Object, error) { return &runtime.Unknown{Raw: value}, nil },
		Indexes: map[string]store.IndexFunc{"text": func(o runtime.Object) []string { return []string{string(o.(*runtime.Unknown).Raw)} }},
	}); err != nil {
		t.Fatal(err)
	}
	v.control = NewControl(ControlConfig{Keyring: k, File: file, Tables: v.tables, Log: log, Fresh: func(ctx context.Context) error {
		_, err := s.ReadIndex(ctx)
		return err
	}})
	return v, nil
}

func (v *server) tables() []*store.Table { return []*store.Table{v.secrets} }

// start runs a server; leads says whether it leads.
func (f *fixture) start(t *testing.T, name string, leads bool) *server {
	t.Helper()
	v, err := f.opened(t, name, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	v.run(t, leads)
	return v
}

func (v *server) run(t *testing.T, leads bool) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = v.store.Run(ctx) })
	ready := make(chan struct{})
	wg.Go(func() {
		if err := v.keyring.Run(ctx, func() { close(ready) }); err != nil {
			t.Error(err)
		}
	})
	if leads {
		wg.Go(func() { v.lead(ctx, t) })
	}
	v.stop = func() {
		cancel()
		wg.Wait()
	}
	t.Cleanup(v.stop)
	select {
	case <-ready:
	case <-time.After(bound):
		t.Fatal("the keyring does not get ready")
	}
}

// lead runs one term of leadership.
func (v *server) lead(ctx context.Context, t *testing.T) {
	r := NewRewriter(RewriterConfig{Keyring: v.keyring, Store: v.store, Tables: v.tables, Rate: 10_000, Every: 20 * time.Millisecond, Log: v.keyring.log})
	if err := r.Run(ctx); err != nil {
		t.Error(err)
	}
}

func (v *server) create(t *testing.T, name, text string) *store.Entry {
	t.Helper()
	e, err := v.secrets.Create(t.Context(), store.Key{Namespace: "ns", Name: name}, []byte(text), store.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (v *server) text(name string) (string, error) {
	e, ok := v.secrets.Get(store.Key{Namespace: "ns", Name: name})
	if !ok {
		return "", errors.New("it is not there")
	}
	plain, err := e.Plain()
	return string(plain), err
}

// eventually waits until check returns nil.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	if err := testkit.Poll(bound, check); err != nil {
		t.Fatalf("%s: not within %v: %v", what, bound, err)
	}
}

// settled waits until the key in use is another than was, and everything stands under it.
func (v *server) settled(t *testing.T, was string) string {
	t.Helper()
	var now string
	eventually(t, "all is under a new key", func() error {
		s, err := v.control.Status(t.Context())
		if err != nil {
			return err
		}
		if now = s.Writes; now == was || now == "" {
			return fmt.Errorf("%q is in use: %+v", now, s)
		}
		for _, r := range s.Resources {
			for under := range r.Values {
				if under != label(now) {
					return fmt.Errorf("%+v", s)
				}
			}
		}
		return nil
	})
	return now
}

// hasNoted waits until a server has noted which keys it has.
func (v *server) hasNoted(t *testing.T) {
	t.Helper()
	eventually(t, v.name+" has noted its keys", func() error {
		if len(v.keyring.noted(v.name)) == 0 {
			return errors.New("not yet")
		}
		return nil
	})
}

// copied waits until a server's copy of the keys is that of today.
func (v *server) copied(t *testing.T) {
	t.Helper()
	eventually(t, "the copy of the keys is made", func() error {
		copied, err := os.ReadFile(v.keyring.cfg.File)
		if err == nil && !bytes.Equal(copied, v.keyring.view().record) {
			err = fmt.Errorf("%s", copied)
		}
		return err
	})
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(string(p[:max(0, len(p)-1)]))
	return len(p), nil
}
