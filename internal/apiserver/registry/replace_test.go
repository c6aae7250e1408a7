package registry_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/store"
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

// foos is a custom resource whose objects are config maps; each call returns another codec.
func foos(s *server) *api.Resource {
	like := s.req("configmaps", "", "").Resource
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

func registerFoos(s *server) {
	if err := s.Register(foos(s)); err != nil {
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
