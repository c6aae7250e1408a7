// Package source follows the API objects that the network of a node depends on: Services,
// EndpointSlices, Nodes and Namespaces. There is one copy of them per process, stripped to what
// the service proxy, the routes and DNS read, and shared by all three.
package source

import (
	"context"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// Source holds the informers. The objects they return are shared: nobody changes them. It is safe
// for concurrent use.
type Source struct {
	Services, Slices, Nodes, Namespaces cache.SharedIndexInformer

	factory informers.SharedInformerFactory
}

const (
	byService = "service" // slices by the namespace/name of their service
	byAddress = "address" // services by cluster address, slices by endpoint address
)

// New makes informers on client; nothing is asked before Run.
func New(client kubernetes.Interface) (*Source, error) {
	f := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(strip))
	s := &Source{
		Services:   f.Core().V1().Services().Informer(),
		Slices:     f.Discovery().V1().EndpointSlices().Informer(),
		Nodes:      f.Core().V1().Nodes().Informer(),
		Namespaces: f.Core().V1().Namespaces().Informer(),
		factory:    f,
	}
	if err := s.Services.AddIndexers(cache.Indexers{byAddress: serviceAddresses}); err != nil {
		return nil, fmt.Errorf("index services: %w", err)
	}
	if err := s.Slices.AddIndexers(cache.Indexers{byService: sliceService, byAddress: sliceAddresses}); err != nil {
		return nil, fmt.Errorf("index endpoint slices: %w", err)
	}
	return s, nil
}

// Run follows the API until ctx ends, and returns when all its goroutines have ended.
func (s *Source) Run(ctx context.Context) error {
	s.factory.Start(ctx.Done())
	<-ctx.Done()
	s.factory.Shutdown()
	return nil
}

// Wait returns when everything has been listed once, or with an error when ctx ends first.
func (s *Source) Wait(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), s.Services.HasSynced, s.Slices.HasSynced, s.Nodes.HasSynced, s.Namespaces.HasSynced) {
		return fmt.Errorf("list services, endpoint slices, nodes and namespaces: %w", context.Cause(ctx))
	}
	return nil
}

// Synced says whether everything has been listed once.
func (s *Source) Synced() bool {
	return s.Services.HasSynced() && s.Slices.HasSynced() && s.Nodes.HasSynced() && s.Namespaces.HasSynced()
}

// Service returns a service, or nil.
func (s *Source) Service(name types.NamespacedName) *corev1.Service {
	obj, _, _ := s.Services.GetIndexer().GetByKey(name.String())
	svc, _ := obj.(*corev1.Service)
	return svc
}

// Node returns a node, or nil.
func (s *Source) Node(name string) *corev1.Node {
	obj, _, _ := s.Nodes.GetIndexer().GetByKey(name)
	node, _ := obj.(*corev1.Node)
	return node
}

// HasNamespace says whether there is a namespace of that name.
func (s *Source) HasNamespace(name string) bool {
	_, ok, _ := s.Namespaces.GetIndexer().GetByKey(name)
	return ok
}

// SlicesOf returns the endpoint slices of a service, in no particular order.
func (s *Source) SlicesOf(service types.NamespacedName) []*discoveryv1.EndpointSlice {
	return indexed[*discoveryv1.EndpointSlice](s.Slices, byService, service.String())
}

// ServicesAt returns the services that have the cluster address.
func (s *Source) ServicesAt(ip netip.Addr) []*corev1.Service {
	return indexed[*corev1.Service](s.Services, byAddress, ip.String())
}

// SlicesAt returns the endpoint slices with an endpoint that has the address.
func (s *Source) SlicesAt(ip netip.Addr) []*discoveryv1.EndpointSlice {
	return indexed[*discoveryv1.EndpointSlice](s.Slices, byAddress, ip.String())
}

// ServiceOf names the service that an endpoint slice belongs to.
func ServiceOf(slice *discoveryv1.EndpointSlice) (types.NamespacedName, bool) {
	name := slice.Labels[discoveryv1.LabelServiceName]
	return types.NamespacedName{Namespace: slice.Namespace, Name: name}, name != ""
}

func indexed[T any](i cache.SharedIndexInformer, index, value string) []T {
	objs, err := i.GetIndexer().ByIndex(index, value)
	if err != nil {
		return nil
	}
	out := make([]T, 0, len(objs))
	for _, obj := range objs {
		if t, ok := obj.(T); ok {
			out = append(out, t)
		}
	}
	return out
}

func serviceAddresses(obj any) ([]string, error) {
	svc, ok := obj.(*corev1.Service)
	if !ok {
		return nil, nil
	}
	ips := svc.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{svc.Spec.ClusterIP}
	}
	return canonical(ips), nil
}

func sliceService(obj any) ([]string, error) {
	if slice, ok := obj.(*discoveryv1.EndpointSlice); ok {
		if name, ok := ServiceOf(slice); ok {
			return []string{name.String()}, nil
		}
	}
	return nil, nil
}

func sliceAddresses(obj any) ([]string, error) {
	slice, ok := obj.(*discoveryv1.EndpointSlice)
	if !ok {
		return nil, nil
	}
	var ips []string
	for _, e := range slice.Endpoints {
		ips = append(ips, e.Addresses...)
	}
	return canonical(ips), nil
}

func canonical(ips []string) []string {
	var out []string
	for _, s := range ips {
		if ip, err := netip.ParseAddr(s); err == nil {
			out = append(out, ip.String())
		}
	}
	return out
}

// strip drops what nobody here reads, which is most of an object's memory.
func strip(obj any) (any, error) {
	if o, ok := obj.(metav1.Object); ok {
		o.SetManagedFields(nil)
		o.SetAnnotations(nil)
		o.SetOwnerReferences(nil)
		o.SetFinalizers(nil)
	}
	switch o := obj.(type) {
	case *corev1.Node:
		o.Status = corev1.NodeStatus{Addresses: o.Status.Addresses}
	case *corev1.Namespace:
		o.Labels = nil
	}
	return obj, nil
}
