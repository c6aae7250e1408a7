package aggregate

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/registry/registrytest"
	"barque.dev/internal/store/etcd/etcdtest"
)

// fleet is an aggregator over a registry's APIServices.
type fleet struct {
	*registrytest.Server
	*Aggregator
	t       *testing.T
	changes atomic.Int64
	told    chan struct{} // a change each
	metrics *prometheus.Registry
}

func newFleet(t *testing.T, x *extension) *fleet {
	t.Helper()
	f := &fleet{Server: registrytest.New(t, etcdtest.New(t, 1, nil).Member(0), nil), t: t, told: make(chan struct{}, 100), metrics: prometheus.NewRegistry()}
	front := x.backend(t, nil).transport.Current().TLSClientConfig.GetClientCertificate
	var err error
	f.Aggregator, err = New(Config{
		Table:    f.Table(schema.GroupResource{Group: apiregistrationv1.GroupName, Resource: "apiservices"}),
		Resolver: x, Certificate: front, Metrics: f.metrics, Log: slog.New(slog.DiscardHandler),
		Changed: func() {
			f.changes.Add(1)
			f.told <- struct{}{}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fleet) request(name string) registry.Request {
	return f.Request("apiservices.apiregistration.k8s.io", "", name)
}

func (f *fleet) settled() {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	if err := f.AwaitAll(ctx); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) create(svc *apiregistrationv1.APIService) *apiregistrationv1.APIService {
	f.t.Helper()
	api.Scheme().Default(svc)
	made := f.Must(f.Create(f.t.Context(), f.request(""), svc, nil)).DeepCopyObject().(*apiregistrationv1.APIService)
	f.settled()
	return made
}

func (f *fleet) update(svc *apiregistrationv1.APIService, subresource string) *apiregistrationv1.APIService {
	f.t.Helper()
	req := f.request(svc.Name)
	req.Subresource = subresource
	result, _, err := f.Update(f.t.Context(), req, svc, nil)
	made := f.Must(result, err).DeepCopyObject().(*apiregistrationv1.APIService)
	f.settled()
	return made
}

// heard waits until a backend's server has said what it serves.
func (f *fleet) heard(b *Backend) {
	f.t.Helper()
	timeout := time.After(20 * time.Second)
	for b.Description().Stale {
		select {
		case <-f.told:
		case <-timeout:
			f.t.Fatal("it says nothing")
		}
	}
	if d := b.Description(); len(d.Resources) != 1 || d.V3 == nil {
		f.t.Fatalf("it says %+v", d)
	}
}

// unavailable compares what metrics say.
func (f *fleet) unavailable(want map[string]int) {
	f.t.Helper()
	const name = "aggregator_unavailable_apiservice"
	text := "# HELP " + name + " APIServices that are not available (1) or are (0).\n# TYPE " + name + " gauge\n"
	for _, svc := range slices.Sorted(maps.Keys(want)) {
		text += fmt.Sprintf("%s{name=%q} %d\n", name, svc, want[svc])
	}
	if err := testutil.GatherAndCompare(f.metrics, strings.NewReader(text), name); err != nil {
		f.t.Error(err)
	}
}

func localService(group string, priority int32) *apiregistrationv1.APIService {
	svc := &apiregistrationv1.APIService{Spec: apiregistrationv1.APIServiceSpec{Group: group, Version: "v1", GroupPriorityMinimum: priority, VersionPriority: 15}}
	svc.Name = "v1." + group
	return svc
}

// TestAPIServicesAreFollowed: who serves a version, and what is said about it, follows its APIService.
func TestAPIServicesAreFollowed(t *testing.T) {
	var sent atomic.Int64
	x := newExtension(t, flunders(t, true, &sent))
	f := newFleet(t, x)
	f.create(localService("apps", 17800))
	if n := f.changes.Load(); n != 0 || f.Find(schema.GroupVersion{Group: "apps", Version: "v1"}) != nil {
		t.Errorf("what is built in is as it was, and %d changes are told", n)
	}
	f.create(localService("example.com", 9000))
	ships := schema.GroupVersion{Group: "example.com", Version: "v1"}
	if n := f.changes.Load(); n != 1 || f.Priorities()[ships] != (api.Priority{Group: 9000, Version: 15}) {
		t.Errorf("%d changes, and priorities %v", n, f.Priorities())
	}
	own := localService(apiregistrationv1.GroupName, 100)
	own.Spec.Service, own.Spec.InsecureSkipTLSVerify = x.apiService().Spec.Service, true
	f.create(own)
	if len(f.Backends()) != 0 {
		t.Error("the group of APIServices is given away")
	}

	svc := f.create(x.apiService())
	first := f.Find(wardle)
	if first == nil || len(f.Backends()) != 1 {
		t.Fatal("nobody serves what is registered")
	}
	f.heard(first)
	if err := f.Probe(t.Context(), svc); err != nil {
		t.Error(err)
	}
	svc.Status.Conditions = []apiregistrationv1.APIServiceCondition{{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionFalse, Reason: "ServiceNotFound"}}
	svc = f.update(svc, "status")
	if f.Find(wardle) != first {
		t.Error("a status makes another server of it")
	}
	f.unavailable(map[string]int{"v1.apiregistration.k8s.io": 1, "v1.apps": 0, "v1.example.com": 0, svc.Name: 1})

	svc.Spec.VersionPriority = 7
	svc = f.update(svc, "")
	second := f.Find(wardle)
	if second == first || len(second.Description().Resources) != 1 {
		t.Errorf("a changed APIService has the old server, or nothing to say: %+v", second.Description())
	}
	f.heard(second)
	if _, _, err := f.Delete(t.Context(), f.request(svc.Name), nil); err != nil {
		t.Fatal(err)
	}
	f.settled()
	if f.Find(wardle) != nil || len(f.Backends()) != 0 {
		t.Error("somebody serves what is not registered any more")
	}
	f.unavailable(map[string]int{"v1.apiregistration.k8s.io": 1, "v1.apps": 0, "v1.example.com": 0})
}
