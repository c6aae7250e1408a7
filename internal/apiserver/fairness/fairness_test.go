package fairness

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"

	"barque.dev/internal/store"
	"barque.dev/internal/testkit"
)

// bare is a control of so many seats whose image is empty: its levels are the mandatory ones.
func bare(tb testing.TB, seats int) (*Control, *prometheus.Registry) {
	tb.Helper()
	metrics := prometheus.NewPedanticRegistry()
	c, err := New(Config{Seats: seats, Table: func(schema.GroupResource) *store.Table { return nil }, Metrics: metrics})
	if err != nil {
		tb.Fatal(err)
	}
	return c, metrics
}

// stocked is a control with stock's objects.
func stocked(tb testing.TB, seats int) (*Control, *prometheus.Registry) {
	c, metrics := bare(tb, seats)
	next := c.planner.plan(stockLevels(), stockSchemas(), nil, 0)
	next.rebalance(0)
	c.plan.Store(next)
	return c, metrics
}

var (
	alice = &user.DefaultInfo{Name: "alice", Groups: []string{"dev", user.AllAuthenticated}}
	bob   = &user.DefaultInfo{Name: "bob", Groups: []string{"dev", user.AllAuthenticated}}
	admin = &user.DefaultInfo{Name: "admin", Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}}
	node  = &user.DefaultInfo{Name: "system:node:n1", Groups: []string{user.NodesGroup, user.AllAuthenticated}}
)

// TestAFloodStarvesNobody floods a server with the requests of one user, of whom some hold every seat of the level:
// another's are answered as seats become free, and those of nodes and of the exempt at once.
func TestAFloodStarvesNobody(t *testing.T) {
	c, _ := stocked(t, 20)
	var millis atomic.Int64 // time passes when a seat becomes free
	c.now = func() time.Duration { return time.Duration(millis.Load()) * time.Millisecond }
	pods := resourceInfo("list", "", "pods", "ns", "")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	release := make(chan struct{})
	var flood sync.WaitGroup
	l := c.plan.Load().levels["global-default"]
	for range 1000 {
		flood.Go(func() {
			var k Ticket
			if !c.Admit(ctx, &k, pods, alice, "", time.Minute) {
				return
			}
			defer k.Release()
			<-release
		})
	}
	waitFor(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.used == l.limit && int(l.refused.total)+l.waitingCount+l.running == 1000
	})
	if l.refused.total == 0 {
		t.Error("the flood fits into alice's queues: it is none")
	}
	for _, who := range []user.Info{admin, node} {
		var k Ticket
		if !c.Admit(ctx, &k, pods, who, "", time.Nanosecond) || k.decided != nil {
			t.Errorf("%s had to wait", who.GetName())
		}
		k.Release()
	}
	var third Ticket
	answered := make(chan bool)
	go func() { answered <- c.Admit(ctx, &third, pods, bob, "", time.Minute) }()
	locked := func(f func() bool) func() bool {
		return func() bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return f()
		}
	}
	waitFor(t, locked(func() bool { return third.queue != nil }))
	// Seats become free one by one. Alice waits in six queues of fifty, and bob in one: his turn is among the first.
	given := l.given
	for freed := uint64(1); !locked(func() bool { return third.seated })(); freed++ {
		if freed > 20 {
			t.Fatalf("bob waits while %d of alice's requests pass", freed)
		}
		millis.Add(1)
		release <- struct{}{}
		waitFor(t, locked(func() bool { return l.given >= given+freed }))
	}
	if !<-answered {
		t.Error("bob was turned away")
	}
	third.Release()
	close(release)
	flood.Wait()
}

func waitFor(tb testing.TB, ok func() bool) {
	tb.Helper()
	testkit.Eventually(tb, 20*time.Second, "it comes to that", func() error {
		if !ok() {
			return errors.New("not yet")
		}
		return nil
	})
}

func TestWaitingEnds(t *testing.T) {
	c, metrics := stocked(t, 20)
	l := c.plan.Load().levels["global-default"]
	pods := resourceInfo("get", "", "pods", "ns", "p")
	var held []*Ticket
	for range l.limit {
		k := &Ticket{}
		if !c.Admit(t.Context(), k, pods, alice, "", 0) {
			t.Fatal("there is room")
		}
		held = append(held, k)
	}
	var late Ticket
	if c.Admit(t.Context(), &late, pods, alice, "", time.Millisecond) {
		t.Error("there is no room")
	}
	late.Release() // does nothing
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	var left Ticket
	if c.Admit(gone, &left, pods, alice, "", time.Minute) {
		t.Error("its client is gone")
	}
	if left.RetryAfter() < 1 {
		t.Error("a client must stay away for a second at least")
	}
	schemaUID, levelUID := left.UIDs()
	if len(schemaUID) != 1 || len(levelUID) != 1 {
		t.Error("no UIDs")
	}
	if l.refused.timedOut != 1 || l.refused.cancelled != 1 {
		t.Errorf("%+v", l.refused)
	}
	for _, k := range held {
		k.Release()
		k.Release() // once is enough
	}
	if !l.idle() || l.used != 0 {
		t.Errorf("%d seats are not given back", l.used)
	}
	want := `
		# HELP apiserver_flowcontrol_rejected_requests_total Requests that got no seat.
		# TYPE apiserver_flowcontrol_rejected_requests_total counter
		apiserver_flowcontrol_rejected_requests_total{flow_schema="global-default",priority_level="global-default",reason="time-out"} 2
	`
	if err := testutil.GatherAndCompare(metrics, strings.NewReader(want), "apiserver_flowcontrol_rejected_requests_total"); err != nil {
		t.Error(err)
	}
}

func TestDumps(t *testing.T) {
	c, _ := stocked(t, 600)
	var k Ticket
	if !c.Admit(t.Context(), &k, resourceInfo("get", "", "pods", "ns", "p"), alice, "", 0) {
		t.Fatal("there is room")
	}
	defer k.Release()
	get := func(path, query string) string {
		w := httptest.NewRecorder()
		c.Handlers()[path].ServeHTTP(w, httptest.NewRequest(http.MethodGet, path+query, nil))
		return w.Body.String()
	}
	const prefix = "/debug/api_priority_and_fairness/dump_"
	for _, tc := range []struct{ path, query, want string }{
		{"priority_levels", "", "global-default,"},
		{"queues", "", "workload-low,"},
		{"requests", "", "alice,"},
		{"requests", "?includeRequestDetails=1", "pods,"},
	} {
		text := get(prefix+tc.path, tc.query)
		if !strings.Contains(text, tc.want) {
			t.Errorf("%s%s lacks %q:\n%s", tc.path, tc.query, tc.want, text)
		}
	}
}

// TestTheUncontendedPathAllocatesNothing guards what every request pays.
func TestTheUncontendedPathAllocatesNothing(t *testing.T) {
	c, _ := stocked(t, 600)
	ctx := context.Background()
	for _, info := range []*request.RequestInfo{
		resourceInfo("get", "", "pods", "ns", "p"), resourceInfo("update", "", "pods", "ns", "p"), {Verb: "get", Path: "/version"},
	} {
		k := &Ticket{}
		admit := func() {
			*k = Ticket{}
			if !c.Admit(ctx, k, info, alice, "", time.Second) {
				t.Fatal("there is room")
			}
			k.Release()
		}
		for range 100 {
			admit() // the queues of its hand are made
		}
		if n := testing.AllocsPerRun(1000, admit); n > 0 {
			t.Errorf("%s %s%s: %v allocations", info.Verb, info.Resource, info.Path, n)
		}
	}
}

func BenchmarkAdmit(b *testing.B) {
	for name, who := range map[string]user.Info{"user": alice, "node": node, "exempt": admin} {
		for verb, info := range map[string]*request.RequestInfo{
			"get": resourceInfo("get", "", "pods", "ns", "p"), "update": resourceInfo("update", "", "pods", "ns", "p"),
		} {
			b.Run(name+"/"+verb, func(b *testing.B) {
				c, _ := stocked(b, 600)
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					var k Ticket // which a request has anyway
					for pb.Next() {
						k = Ticket{}
						if !c.Admit(context.Background(), &k, info, who, "", time.Second) {
							b.Error("there is room")
						}
						k.Release()
					}
				})
			})
		}
	}
}
