package nodestatus

import (
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The stock lease.
const (
	leaseRenew    = 10 * time.Second
	leaseDuration = 40 // seconds
)

// keepLease renews the node's lease until ctx ends.
func (r *Reporter) keepLease(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var lease *coordinationv1.Lease
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		renewed, err := r.renew(ctx, lease)
		lease = renewed
		if err != nil && ctx.Err() == nil {
			r.Log.Debug("renewing the node's lease failed", "node", r.NodeName, "err", err)
			timer.Reset(retry)
			continue
		}
		timer.Reset(leaseRenew)
	}
}

// renew renews the lease, as known from the last time, or makes it.
func (r *Reporter) renew(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, apiCall)
	defer cancel()
	leases := r.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	if lease == nil {
		found, err := leases.Get(ctx, r.NodeName, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			node := r.Node()
			if node == nil {
				return nil, fmt.Errorf("node %s is not registered yet", r.NodeName)
			}
			fresh := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{
				Name: r.NodeName, Namespace: corev1.NamespaceNodeLease,
				// With its owner the lease goes when the node does.
				OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}},
			}}
			r.fill(fresh)
			return leases.Create(ctx, fresh, metav1.CreateOptions{})
		case err != nil:
			return nil, err
		}
		lease = found
	}
	next := lease.DeepCopy()
	r.fill(next)
	updated, err := leases.Update(ctx, next, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil, err
	} else if err != nil {
		return lease, err
	}
	return updated, nil
}

func (r *Reporter) fill(l *coordinationv1.Lease) {
	duration := int32(leaseDuration)
	renew := metav1.NewMicroTime(time.Now())
	l.Spec.HolderIdentity, l.Spec.LeaseDurationSeconds, l.Spec.RenewTime = &r.NodeName, &duration, &renew
}
