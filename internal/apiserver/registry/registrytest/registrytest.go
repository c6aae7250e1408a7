// Package registrytest starts registries for tests.
package registrytest

import (
	"context"
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
)

// A Server is a registry on a store of its own.
type Server struct {
	*registry.Registry
	Store *store.Store
	tb    testing.TB
}

// New starts a registry on a member that others may use too, until the test ends; tune, which may be nil,
// changes its configuration.
func New(tb testing.TB, member *etcd.Member, tune func(*registry.Config)) *Server {
	tb.Helper()
	st, err := store.Open(tb.Context(), store.Config{Backend: member, CompactEvery: -1})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- st.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("store: %v", err)
		}
	})
	cfg := registry.Config{
		Store: st, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
		NodePortRange: utilnet.PortRange{Base: 30000, Size: 2768},
	}
	if tune != nil {
		tune(&cfg)
	}
	if _, measured := tb.(*testing.B); cfg.Admission != nil && !measured {
		cfg.Admission = Unchanging(tb, cfg.Admission)
	}
	r, err := registry.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	if err := r.Bootstrap(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	return &Server{Registry: r, Store: st, tb: tb}
}

// Request makes a request of a resource such as "pods" or "deployments.apps".
func (s *Server) Request(resource, namespace, name string) registry.Request {
	s.tb.Helper()
	res, ok := s.Lookup(schema.ParseGroupResource(resource).WithVersion(""))
	if !ok {
		s.tb.Fatalf("%s is not served", resource)
	}
	return registry.Request{Resource: res, Version: res.Served[0], Namespace: namespace, Name: name}
}

// Must returns the object that a verb came to; an error ends the test.
func (s *Server) Must(result registry.Result, err error) runtime.Object {
	s.tb.Helper()
	if err != nil {
		s.tb.Fatal(err)
	}
	obj, err := result.Get()
	if err != nil {
		s.tb.Fatal(err)
	}
	return obj
}
