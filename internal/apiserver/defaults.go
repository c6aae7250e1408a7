package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/registry"
)

const (
	// defaultsRetry is how soon a failed attempt at the default objects is repeated, defaultsPeriod how often they are
	// looked after once they are there: a user may delete one by mistake.
	defaultsRetry  = 500 * time.Millisecond
	defaultsPeriod = time.Minute
	// httpsPort is the port of the service default/kubernetes.
	httpsPort = 443
)

// keepDefaults makes the objects that every cluster has, when they are missing, until ctx ends. Any number of
// servers may do so at a time.
func (s *Server) keepDefaults(ctx context.Context) {
	for {
		wait := defaultsPeriod
		if err := s.ensureDefaults(ctx); err != nil {
			if ctx.Err() != nil {
				return
			}
			s.log.Warn("default objects are not complete", "error", err)
			wait = defaultsRetry
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (s *Server) ensureDefaults(ctx context.Context) error {
	var errs []error
	for _, obj := range defaultObjects(s.cfg.ServiceCIDRs, s.cfg.Identity.Port) {
		if err := s.ensure(ctx, obj); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// defaultObjects are what every cluster has: the namespaces of the system, and the service by which
// pods find the API, at the first address of the primary range.
func defaultObjects(serviceCIDRs []netip.Prefix, port int) []runtime.Object {
	var objs []runtime.Object
	for _, name := range []string{metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease, metav1.NamespaceDefault} {
		objs = append(objs, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}})
	}
	if len(serviceCIDRs) == 0 || port == 0 {
		return objs
	}
	singleStack := corev1.IPFamilyPolicySingleStack
	return append(objs, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: "kubernetes", Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"},
		},
		Spec: corev1.ServiceSpec{
			Type:            corev1.ServiceTypeClusterIP,
			ClusterIP:       serviceCIDRs[0].Masked().Addr().Next().String(),
			SessionAffinity: corev1.ServiceAffinityNone,
			IPFamilyPolicy:  &singleStack,
			Ports: []corev1.ServicePort{{
				Name: "https", Protocol: corev1.ProtocolTCP, Port: httpsPort, TargetPort: intstr.FromInt32(int32(port)),
			}},
		},
	})
}

// ensure creates obj unless there is one of its name.
func (s *Server) ensure(ctx context.Context, obj runtime.Object) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	kinds, _, err := api.Scheme().ObjectKinds(obj)
	if err != nil {
		return err
	}
	resource, _, ok := s.registry.ForKind(kinds[0].GroupKind())
	if !ok {
		return fmt.Errorf("create %s %s: the kind is not served", kinds[0].Kind, m.GetName())
	}
	request := registry.Request{Resource: resource, Version: kinds[0].Version, Namespace: m.GetNamespace(), Name: m.GetName()}
	_, err = s.registry.Get(ctx, request, &metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		return err
	}
	api.Scheme().Default(obj)
	_, err = s.registry.Create(ctx, request, obj, &metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create %s %s: %w", kinds[0].Kind, m.GetName(), err)
	}
	return nil
}
