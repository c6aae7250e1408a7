//lint:file-ignore SA1019 Endpoints is deprecated by upstream, and served all the same.

package kubernetes

import (
	"bytes"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/cluster/liveness"
	"barque.dev/internal/controllers/controllertest"
)

func TestSight(t *testing.T) {
	const (
		silent, refused, accepted = liveness.Mute, liveness.Refused, liveness.Accepted
		renewal                   = liveness.Reply(-1) // the lease is renewed here
	)
	tests := []struct {
		name    string
		replies []liveness.Reply
		dead    bool
	}{
		{"answers", []liveness.Reply{accepted, accepted}, false},
		{"refuses", []liveness.Reply{accepted, refused}, true},
		{"loses packets", []liveness.Reply{silent, silent, accepted, silent, silent}, false},
		{"is silent", []liveness.Reply{silent, silent, silent}, true},
		{"listens, but does not serve yet", []liveness.Reply{refused, accepted, accepted}, true},
		{"serves, but can't be reached yet", []liveness.Reply{refused, renewal, refused}, true},
		{"serves again", []liveness.Reply{refused, renewal, accepted}, false},
		{"came back after silence", []liveness.Reply{silent, silent, silent, silent, renewal, accepted, silent}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			renewed := time.Unix(1, 0)
			var s sight
			for _, r := range tt.replies {
				if r == renewal {
					renewed = renewed.Add(time.Second)
					continue
				}
				s = s.after(r, renewed)
			}
			if s.dead() != tt.dead {
				t.Errorf("dead %v, want %v", s.dead(), tt.dead)
			}
		})
	}
}

// doors answers knocks as the test says.
type doors struct {
	mu     sync.Mutex
	closed map[netip.AddrPort]bool
}

func (d *doors) Knock(_ context.Context, addr netip.AddrPort) liveness.Reply {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed[addr] {
		return liveness.Refused
	}
	return liveness.Accepted
}

func lease(name, addr string, renewed time.Time) *coordinationv1.Lease {
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name,
			Labels: map[string]string{IdentityLabel: IdentityValue}, Annotations: map[string]string{AddressAnnotation: addr}},
		Spec: coordinationv1.LeaseSpec{RenewTime: ptr.To(metav1.NewMicroTime(renewed)), LeaseDurationSeconds: ptr.To[int32](15)},
	}
}

// Loopback addresses can't be endpoints: there are none then, it is said once, and what was published before goes.
func TestServersOnLoopback(t *testing.T) {
	w := controllertest.New(t)
	w.MustCreate(lease("a", "10.0.0.1:6443", w.Clock.Now()))
	var log bytes.Buffer
	deps := w.Deps()
	deps.Log = slog.New(slog.NewTextHandler(&log, nil))
	c := New(deps, &doors{})
	key := client.ObjectKey{Namespace: metav1.NamespaceDefault, Name: service}
	published := func() (n int) {
		t.Helper()
		for range 3 { // it comes again and again
			if _, err := c.Reconcile(t.Context(), reconcile.Request{}); err != nil {
				t.Fatal(err)
			}
		}
		for _, obj := range []client.Object{&discoveryv1.EndpointSlice{}, &corev1.Endpoints{}} {
			if err := w.Get(t.Context(), key, obj); err == nil {
				n++
			} else if !apierrors.IsNotFound(err) {
				t.Fatal(err)
			}
		}
		return n
	}
	if n := published(); n != 2 || log.Len() > 0 {
		t.Fatalf("%d objects are published; %s", n, &log)
	}
	if err := w.Delete(t.Context(), lease("a", "", w.Clock.Now())); err != nil {
		t.Fatal(err)
	}
	w.MustCreate(lease("b", "127.0.0.1:6443", w.Clock.Now()))
	if n := published(); n != 0 {
		t.Errorf("%d objects are published", n)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), "no endpoints") {
		t.Errorf("said %d times: %s", n, &log)
	}
	w.MustCreate(lease("c", "10.0.0.3:6443", w.Clock.Now()))
	if n := published(); n != 2 {
		t.Errorf("%d objects are published", n)
	}
	var slice discoveryv1.EndpointSlice
	if err := w.Get(t.Context(), key, &slice); err != nil || len(slice.Endpoints) != 1 || slice.Endpoints[0].Addresses[0] != "10.0.0.3" {
		t.Errorf("published is %v, %v", slice.Endpoints, err)
	}
}

// A server whose door is closed leaves within a knock, though its lease holds; without any
// server left, the service stays as it is.
func TestServiceFollowsDoors(t *testing.T) {
	w := controllertest.New(t)
	now := w.Clock.Now()
	w.MustCreate(lease("a", "10.0.0.1:6443", now))
	w.MustCreate(lease("b", "10.0.0.2:6443", now))
	w.MustCreate(lease("old", "10.0.0.3:6443", now.Add(-time.Minute)))
	d := &doors{closed: map[netip.AddrPort]bool{}}
	c := New(w.Deps(), d)
	check := func(want ...string) {
		t.Helper()
		if _, err := c.Reconcile(t.Context(), reconcile.Request{}); err != nil {
			t.Fatal(err)
		}
		var slice discoveryv1.EndpointSlice
		var endpoints corev1.Endpoints //nolint:staticcheck // the older kind is published too
		key := client.ObjectKey{Namespace: metav1.NamespaceDefault, Name: service}
		if err := w.Get(t.Context(), key, &slice); err != nil {
			t.Fatal(err)
		}
		if err := w.Get(t.Context(), key, &endpoints); err != nil {
			t.Fatal(err)
		}
		var got, older []string
		for _, e := range slice.Endpoints {
			got = append(got, e.Addresses...)
		}
		for _, a := range endpoints.Subsets[0].Addresses {
			older = append(older, a.IP)
		}
		if !slices.Equal(got, want) || !slices.Equal(older, want) {
			t.Fatalf("slice %v, endpoints %v, want %v", got, older, want)
		}
	}
	check("10.0.0.1", "10.0.0.2")

	ctx, stop := context.WithCancel(t.Context())
	woken := make(chan struct{}, 10)
	done := make(chan error)
	go func() { done <- c.Source(ctx, func(reconcile.Request) { woken <- struct{}{} }) }()
	d.mu.Lock()
	d.closed[netip.MustParseAddrPort("10.0.0.2:6443")] = true
	d.mu.Unlock()
	<-woken
	check("10.0.0.1")
	d.mu.Lock()
	d.closed[netip.MustParseAddrPort("10.0.0.1:6443")] = true
	d.mu.Unlock()
	<-woken
	check("10.0.0.1")
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
