package apiserver

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/apiserver/registry"
)

// Identity is how a server is known to the others.
type Identity struct {
	// Name is the server's, unique in the cluster; empty publishes nothing.
	Name string
	// Address is the IP address that others reach the server at, and Port the port.
	Address string
	Port    int
}

// Each server keeps a Lease in kube-system for as long as it serves. A controller makes the
// endpoints of the service default/kubernetes of those that are held.
const (
	// LeaseNamespace is where the leases are.
	LeaseNamespace = metav1.NamespaceSystem
	// LeasePrefix and the server's name are a lease's name.
	LeasePrefix = "barque-apiserver-"
	// LeaseLabel has the value LeaseLabelValue on all of them.
	LeaseLabel      = "apiserver.kubernetes.io/identity"
	LeaseLabelValue = "barque"
	// AddressAnnotation holds the host and port that the server is reached at.
	AddressAnnotation = "barque.dev/address"

	leaseDuration = 15 * time.Second
	leaseRenewal  = 5 * time.Second
)

// keepLease publishes the server's identity until ctx ends or the server retires, and then takes it back, so that no client is
// sent to a server that is gone.
func (s *Server) keepLease(ctx context.Context) {
	request, ok := s.leaseRequest()
	if !ok {
		return
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(s.retiring, stop)()
	ticker := time.NewTicker(leaseRenewal)
	defer ticker.Stop()
	acquired := time.Now()
	for {
		attempt, cancel := context.WithTimeout(ctx, leaseRenewal)
		if err := s.renewLease(attempt, request, acquired); err != nil && ctx.Err() == nil {
			s.log.Warn("identity lease not renewed", "lease", request.Name, "error", err)
		}
		cancel()
		select {
		case <-ctx.Done():
			s.dropLease(context.WithoutCancel(ctx), request)
			return
		case <-ticker.C:
		}
	}
}

func (s *Server) leaseRequest() (registry.Request, bool) {
	resource, ok := s.registry.Lookup(coordinationv1.SchemeGroupVersion.WithResource("leases"))
	return registry.Request{
		Resource: resource, Version: coordinationv1.SchemeGroupVersion.Version,
		Namespace: LeaseNamespace, Name: LeasePrefix + s.cfg.Identity.Name,
	}, ok && s.cfg.Identity.Name != ""
}

// renewLease writes the lease as it is now: new, or with a new time of renewal. Since acquired the server serves: one that
// was killed and comes back before its lease runs out has acquired it anew.
func (s *Server) renewLease(ctx context.Context, r registry.Request, acquired time.Time) error {
	current, err := s.registry.Get(ctx, r, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		_, err = s.registry.Create(ctx, r, s.lease(nil, acquired), &metav1.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	obj, err := current.Get()
	if err != nil {
		return err
	}
	old, ok := obj.(*coordinationv1.Lease)
	if !ok {
		return fmt.Errorf("lease %s is a %T", r.Name, obj)
	}
	_, _, err = s.registry.Update(ctx, r, s.lease(old, acquired), &metav1.UpdateOptions{})
	return err
}

// lease is the server's lease, renewed now. old is what there was.
func (s *Server) lease(old *coordinationv1.Lease, since time.Time) *coordinationv1.Lease {
	id := s.cfg.Identity
	lease := &coordinationv1.Lease{}
	if old != nil {
		lease = old.DeepCopy()
	}
	lease.Name, lease.Namespace = LeasePrefix+id.Name, LeaseNamespace
	metav1.SetMetaDataLabel(&lease.ObjectMeta, LeaseLabel, LeaseLabelValue)
	metav1.SetMetaDataAnnotation(&lease.ObjectMeta, AddressAnnotation, net.JoinHostPort(id.Address, strconv.Itoa(id.Port)))
	seconds := int32(leaseDuration / time.Second)
	acquired, renewed := metav1.NewMicroTime(since), metav1.NowMicro()
	lease.Spec = coordinationv1.LeaseSpec{
		HolderIdentity: &id.Name, LeaseDurationSeconds: &seconds, AcquireTime: &acquired, RenewTime: &renewed,
	}
	return lease
}

func (s *Server) dropLease(ctx context.Context, r registry.Request) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, _, err := s.registry.Delete(ctx, r, &metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		s.log.Warn("identity lease not deleted", "lease", r.Name, "error", err)
	}
}
