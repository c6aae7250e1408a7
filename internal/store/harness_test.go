package store_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// freeURL returns an http URL on loopback with a free port.
func freeURL(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// startMember starts a lone etcd member.
func startMember(tb testing.TB, cfg etcd.Config) *etcd.Member {
	tb.Helper()
	if cfg.DataDir == "" {
		cfg.DataDir = tb.TempDir()
	}
	if cfg.PeerURL == "" {
		cfg.PeerURL = freeURL(tb)
	}
	if cfg.Name == "" {
		cfg.Name = "one"
	}
	m, err := etcd.Start(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(m.Close)
	select {
	case <-m.Ready():
	case <-time.After(20 * time.Second):
		tb.Fatal("etcd is not ready")
	}
	return m
}

// openStore opens a store; the returned function runs it until the test ends.
func openStore(tb testing.TB, cfg store.Config) (s *store.Store, run func()) {
	tb.Helper()
	if cfg.CompactEvery == 0 {
		cfg.CompactEvery = -1
	}
	s, err := store.Open(tb.Context(), cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return s, func() {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		tb.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				tb.Errorf("Run: %v", err)
			}
		})
	}
}

// newStore is a running store over a member of its own.
func newStore(tb testing.TB) (*store.Store, *etcd.Member) {
	tb.Helper()
	m := startMember(tb, etcd.Config{UnsafeNoSync: true})
	s, run := openStore(tb, store.Config{Backend: m})
	run()
	return s, m
}

// configMaps is a schema whose values are a config map's data "v", for brevity, and whose index
// finds objects by that.
func configMaps() store.Schema {
	return store.Schema{
		Prefix:     "/registry/configmaps/",
		Namespaced: true,
		Decode: func(value []byte, revision int64) (runtime.Object, error) {
			if string(value) == "bad" {
				return nil, errors.New("bad value")
			}
			return &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{ResourceVersion: fmt.Sprint(revision)},
				Data:       map[string]string{"v": string(value)},
			}, nil
		},
		Indexes: map[string]store.IndexFunc{
			"v": func(obj runtime.Object) []string { return []string{obj.(*corev1.ConfigMap).Data["v"]} },
		},
	}
}

func nodes() store.Schema {
	s := configMaps()
	s.Prefix, s.Namespaced, s.Indexes = "/registry/minions/", false, nil
	return s
}

func register(tb testing.TB, s *store.Store, schema store.Schema) *store.Table {
	tb.Helper()
	t, err := s.Register(schema)
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

func key(ns, name string) store.Key { return store.Key{Namespace: ns, Name: name} }

func mustCreate(tb testing.TB, t *store.Table, k store.Key, v string) *store.Entry {
	tb.Helper()
	e, err := t.Create(tb.Context(), k, []byte(v), store.WriteOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

func mustUpdate(tb testing.TB, t *store.Table, k store.Key, v string, expected int64) *store.Entry {
	tb.Helper()
	e, err := t.Update(tb.Context(), k, []byte(v), expected, store.WriteOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

func mustDelete(tb testing.TB, t *store.Table, k store.Key) {
	tb.Helper()
	if _, _, err := t.Delete(tb.Context(), k, 0); err != nil {
		tb.Fatal(err)
	}
}

// content is a snapshot as text, in order.
func content(s *store.Snapshot, namespace string) []string {
	var list []string
	s.Ascend(namespace, store.Key{}, func(e *store.Entry) bool {
		list = append(list, fmt.Sprintf("%s/%s=%s@%d", e.Key().Namespace, e.Key().Name, e.Raw(), e.Revision()))
		return true
	})
	return list
}

func emptyConfig() etcd.Config { return etcd.Config{UnsafeNoSync: true} }

func fsyncConfig() etcd.Config { return etcd.Config{} }
