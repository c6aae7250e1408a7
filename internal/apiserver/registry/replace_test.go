package registry_test

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

// heldUp is the context of a request that is held up where it first waits.
type heldUp struct {
	context.Context
	once      *sync.Once
	meanwhile func()
}

func (h heldUp) Done() <-chan struct{} {
	h.once.Do(h.meanwhile)
	return h.Context.Done()
}

// foosLike is a custom resource whose objects are those of another; each call returns another codec.
func foosLike(like *api.Resource) *api.Resource {
	res := *like
	res.Group, res.GroupResource.Resource, res.Kind, res.Prefix = "example.com", "foos", "Foo", "example.com/foos"
	res.Custom = &api.Custom{}
	return api.NewCustom(&res, &struct{ api.Codec }{like.Codec()}, nil, nil)
}

// TestResourceChangesWhileReadersWait: a list or watch that was held up while its resource was replaced, or went and came
// again, shows what was written in between.
func TestResourceChangesWhileReadersWait(t *testing.T) {
	changes := map[string]func(*server){
		"replaced": func(s *server) { registerFoos(s) },
		"made anew": func(s *server) {
			s.Unregister(schema.GroupResource{Group: "example.com", Resource: "foos"})
			registerFoos(s)
		},
	}
	for name, change := range changes {
		for reader, read := range readers() {
			t.Run(name+", "+reader, func(t *testing.T) {
				s := start(t, nil)
				registerFoos(s)
				putFoo(s, "one")
				req := registry.Request{Resource: s.req("foos.example.com", "", "").Resource, Version: "v1", Namespace: "default"}
				ctx := heldUp{t.Context(), new(sync.Once), func() {
					change(s)
					putFoo(s, "two")
				}}
				names, err := read(ctx, s, req)
				if err != nil || fmt.Sprint(names) != "[one two]" {
					t.Errorf("it shows %v, %v", names, err)
				}
			})
		}
	}
}

// TestResourceGoesWhileListsWait: what is not kept is not shown as empty.
func TestResourceGoesWhileListsWait(t *testing.T) {
	s := start(t, nil)
	registerFoos(s)
	req := registry.Request{Resource: s.req("foos.example.com", "", "").Resource, Version: "v1", Namespace: "default"}
	ctx := heldUp{t.Context(), new(sync.Once), func() { s.Unregister(req.Resource.GroupResource) }}
	if list, err := s.List(ctx, req, nil); !apierrors.IsNotFound(err) {
		t.Errorf("list: %v, %v", list, err)
	}
}

// slowRange reads keys that begin with prefix only when it is let.
type slowRange struct {
	*etcd.Member
	prefix  string
	once    sync.Once
	reading chan struct{} // closed when it is asked for them
	let     chan struct{}
}

func (s *slowRange) Range(ctx context.Context, req *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	if strings.HasPrefix(string(req.Key), s.prefix) {
		s.once.Do(func() { close(s.reading) })
		<-s.let
	}
	return s.Member.Range(ctx, req)
}

// TestRequestsDoNotWaitForARegistration: while what exists of a resource that comes is read from etcd, others are served.
func TestRequestsDoNotWaitForARegistration(t *testing.T) {
	backend := &slowRange{
		Member: etcdtest.New(t, 1, nil).Member(0), prefix: "/registry/example.com/foos/",
		reading: make(chan struct{}), let: make(chan struct{}),
	}
	st, err := store.Open(t.Context(), store.Config{Backend: backend, CompactEvery: -1})
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.New(registry.Config{
		Store: st, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
		NodePortRange: utilnet.PortRange{Base: 30000, Size: 2768},
	})
	if err != nil {
		t.Fatal(err)
	}
	maps, _ := r.Lookup(schema.GroupVersionResource{Resource: "configmaps"})
	registered, served := make(chan error), make(chan error, 1)
	go func() { registered <- r.Register(foosLike(maps)) }()
	<-backend.reading
	go func() {
		_, err := r.List(t.Context(), registry.Request{Resource: maps, Version: "v1"}, &metainternalversion.ListOptions{ResourceVersion: "0"})
		served <- err
	}()
	select {
	case err := <-served:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("a list of another resource waits")
	}
	close(backend.let)
	if err := <-registered; err != nil {
		t.Error(err)
	}
	if _, ok := r.Lookup(schema.GroupVersionResource{Group: "example.com", Resource: "foos"}); !ok {
		t.Error("it is not served")
	}
}

func registerFoos(s *server) {
	if err := s.Register(foosLike(s.req("configmaps", "", "").Resource)); err != nil {
		s.tb.Error(err)
	}
}

func putFoo(s *server, name string) {
	table := s.Table(schema.GroupResource{Group: "example.com", Resource: "foos"})
	value := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q,"namespace":"default"}}`, name)
	if _, err := table.Create(s.tb.Context(), store.Key{Namespace: "default", Name: name}, []byte(value), store.WriteOptions{}); err != nil {
		s.tb.Error(err)
	}
}

type reader func(ctx context.Context, s *server, req registry.Request) ([]string, error)

func readers() map[string]reader {
	list := func(opts func(*server) *metainternalversion.ListOptions) reader {
		return func(ctx context.Context, s *server, req registry.Request) ([]string, error) {
			list, err := s.List(ctx, req, opts(s))
			if err != nil {
				return nil, err
			}
			return entryNames(list.Entries), nil
		}
	}
	next := func(s *server) string { return strconv.FormatInt(s.Store.Revision()+1, 10) }
	return map[string]reader{
		"list of the newest": list(func(*server) *metainternalversion.ListOptions { return nil }),
		"list of at least the next": list(func(s *server) *metainternalversion.ListOptions {
			return &metainternalversion.ListOptions{ResourceVersion: next(s)}
		}),
		"list of exactly the next": list(func(s *server) *metainternalversion.ListOptions {
			return &metainternalversion.ListOptions{ResourceVersion: next(s), ResourceVersionMatch: metav1.ResourceVersionMatchExact}
		}),
		"watch from the start": func(ctx context.Context, s *server, req registry.Request) ([]string, error) {
			w, err := s.Watch(ctx, req, &metainternalversion.ListOptions{})
			if err != nil {
				return nil, err
			}
			defer w.Close()
			events, err := w.Next(s.tb.Context())
			var entries []*store.Entry
			for _, e := range events {
				entries = append(entries, e.Entry)
			}
			return entryNames(entries), err
		},
	}
}

func entryNames(entries []*store.Entry) []string {
	var names []string
	for _, e := range entries {
		names = append(names, e.Key().Name)
	}
	return names
}
