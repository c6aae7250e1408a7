package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/resourcequota"
	stock "k8s.io/apiserver/pkg/quota/v1"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/api/quota"
)

// ResourceQuota holds a namespace to its quotas, as the stock plugin of that name does, and says
// what they are to show once a change is made. It is no link of a chain: whoever makes the change
// writes the quotas in the same transaction, on the condition that the namespace has no newer ones
// than those seen here, so that what is used never exceeds a quota and never differs from the
// objects that use it, however many servers let in at once.
type ResourceQuota struct {
	reader   client.Reader
	measures quota.Measures
}

// NewResourceQuota makes it. reader reads the shared image.
func NewResourceQuota(reader client.Reader) *ResourceQuota {
	return &ResourceQuota{reader: reader, measures: quota.Measures{
		Reader: reader, Clock: clock.RealClock{},
		// One object alone is measured here, whatever its kind.
		Kind: func(schema.GroupResource) (schema.GroupVersionKind, bool) { return schema.GroupVersionKind{}, false },
	}}
}

// Charge returns the quotas that a change uses more of, as they are to be when it is made, or an
// error if one would be exceeded. seen is the revision of the namespace's quotas that it decided
// on, which must still be the newest when the change is made; empty if quotas have no say in it.
func (q *ResourceQuota) Charge(ctx context.Context, a admission.Attributes) (changed []*corev1.ResourceQuota, seen string, err error) {
	if a.GetNamespace() == "" || (a.GetOperation() != admission.Create && a.GetOperation() != admission.Update) ||
		a.GetResource().GroupResource() == corev1.Resource("namespaces") {
		return nil, "", nil
	}
	evaluator, err := q.measures.Of(ctx, a.GetResource().GroupResource())
	if err != nil {
		return nil, "", apierrors.NewInternalError(err)
	}
	if evaluator == nil || !evaluator.Handles(a) {
		return nil, "", nil
	}
	var list corev1.ResourceQuotaList
	if err := q.reader.List(ctx, &list, client.InNamespace(a.GetNamespace())); err != nil {
		return nil, "", apierrors.NewInternalError(fmt.Errorf("list ResourceQuotas of namespace %s: %w", a.GetNamespace(), err))
	}
	if len(list.Items) == 0 {
		return nil, list.ResourceVersion, nil
	}
	charged, err := resourcequota.CheckRequest(list.Items, a, evaluator, nil)
	if err != nil {
		return nil, "", err
	}
	for i := range charged {
		if !stock.Equals(charged[i].Status.Used, list.Items[i].Status.Used) {
			changed = append(changed, &charged[i])
		}
	}
	return changed, list.ResourceVersion, nil
}
