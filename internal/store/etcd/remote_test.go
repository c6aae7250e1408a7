package etcd_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

// A remote etcd that goes away and comes back is noticed both times, without a request that tells.
func TestRemoteHealth(t *testing.T) {
	client := etcdtest.FreeURL(t)
	c := etcdtest.New(t, 1, func(_ int, cfg *etcd.Config) { cfg.ClientListen = client })
	r, err := etcd.Dial(t.Context(), etcd.RemoteConfig{Endpoints: []string{client}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	health := func(want bool) func(context.Context) error {
		return func(context.Context) error {
			if r.HasLeader() != want {
				return errors.New("it is not noticed")
			}
			return nil
		}
	}
	if !r.HasLeader() {
		t.Error("it is not well from the start")
	}
	c.Crash(0)
	etcdtest.Eventually(t, "the loss is noticed", health(false))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := r.ReadIndex(ctx); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a read of nobody: %v", err)
	}
	c.Start(0)
	etcdtest.Eventually(t, "the return is noticed", health(true))
}

// Errors of a remote etcd are the store's, whatever the wire made of them.
func TestRemoteErrors(t *testing.T) {
	client := etcdtest.FreeURL(t)
	etcdtest.New(t, 1, func(_ int, cfg *etcd.Config) { cfg.ClientListen = client })
	r, err := etcd.Dial(t.Context(), etcd.RemoteConfig{Endpoints: []string{client}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	put := func(value []byte, lease int64) error {
		_, err := r.Txn(t.Context(), &etcdserverpb.TxnRequest{Success: []*etcdserverpb.RequestOp{{
			Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: &etcdserverpb.PutRequest{Key: []byte("a"), Value: value, Lease: lease}}}}})
		return err
	}
	for range 3 {
		if err := put([]byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	now, err := r.ReadIndex(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Compact(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	at := func(revision int64) error {
		_, err := r.Range(t.Context(), &etcdserverpb.RangeRequest{Key: []byte("a"), Revision: revision})
		return err
	}
	watched := r.Watch(t.Context(), now-1, func([]*mvccpb.Event) { t.Error("a watch delivers what was compacted") })
	for name, tt := range map[string]struct{ err, want error }{
		"a read of the past":     {at(now - 1), store.ErrCompacted},
		"a watch from the past":  {watched, store.ErrCompacted},
		"a read of the future":   {at(now + 100), store.ErrFuture},
		"a lease that is not":    {put(nil, 4711), store.ErrLeaseNotFound},
		"a value that's too big": {put(make([]byte, 2<<20), 0), store.ErrRejected},
	} {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%s: %v, want %v", name, tt.err, tt.want)
		}
	}
	r.Close()
	if _, err := r.ReadIndex(t.Context()); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a read after the end: %v", err)
	}
}

// An etcd that is away is dialled often enough to be found soon after its return, however long it was
// away.
func TestRemoteIsDialledAgain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const attempts, within = 5, 10 * time.Second // gRPC by itself makes 3 until the client gives up
	ctx, enough := context.WithTimeout(t.Context(), within)
	defer enough()
	var n atomic.Int32
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
			if n.Add(1) == attempts {
				enough()
			}
		}
	})
	if r, err := etcd.Dial(ctx, etcd.RemoteConfig{Endpoints: []string{"http://" + l.Addr().String()}}); err == nil {
		r.Close()
		t.Error("nobody was taken for an etcd")
	}
	_ = l.Close()
	accepting.Wait()
	if got := n.Load(); got < attempts {
		t.Errorf("%d attempts, want %d", got, attempts)
	}
}
