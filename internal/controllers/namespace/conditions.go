package namespace

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// remaining counts what a namespace still holds.
type remaining struct {
	kinds      map[string]int // by resource
	finalizers map[string]int // by finalizer
	silent     []string       // APIServices whose servers do not say what they have
}

// unknown says of which groups it is not known whether they have something.
func (l *remaining) unknown() string {
	return fmt.Sprintf("Discovery failed for some groups, %d failing: %s", len(l.silent), strings.Join(l.silent, ", "))
}

func (l *remaining) count(of schema.GroupResource, objs []metav1.Object) {
	if len(objs) == 0 {
		return
	}
	name := of.String()
	if of.Group == "" {
		name += "." // as stock writes the core group
	}
	l.kinds[name] += len(objs)
	for _, obj := range objs {
		for _, f := range obj.GetFinalizers() {
			l.finalizers[f]++
		}
	}
}

// report writes the namespace's conditions, when they changed.
func (c *controller) report(ctx context.Context, ns *corev1.Namespace, left remaining, failure error) error {
	changed := ns.DeepCopy()
	changed.Status.Conditions = conditions(ns.Status.Conditions, left, failure, metav1.NewTime(c.deps.Clock.Now()))
	if equality.Semantic.DeepEqual(changed.Status, ns.Status) {
		return nil
	}
	return c.client.Status().Patch(ctx, changed, client.MergeFrom(ns))
}

// conditions says, in stock's types, reasons and words, how far the deletion is.
func conditions(old []corev1.NamespaceCondition, left remaining, failure error, now metav1.Time) []corev1.NamespaceCondition {
	result := slices.Clone(old)
	set := func(kind corev1.NamespaceConditionType, bad bool, badReason, badMessage, goodReason, goodMessage string) {
		cond := corev1.NamespaceCondition{Type: kind, Status: corev1.ConditionFalse, Reason: goodReason, Message: goodMessage, LastTransitionTime: now}
		if bad {
			cond.Status, cond.Reason, cond.Message = corev1.ConditionTrue, badReason, badMessage
		}
		i := slices.IndexFunc(result, func(c corev1.NamespaceCondition) bool { return c.Type == kind })
		if i < 0 {
			result = append(result, cond)
			return
		}
		if result[i].Status == cond.Status {
			cond.LastTransitionTime = result[i].LastTransitionTime
		}
		result[i] = cond
	}
	message := ""
	if failure != nil {
		message = failure.Error()
	}
	set(corev1.NamespaceDeletionDiscoveryFailure, len(left.silent) > 0, "DiscoveryFailed", left.unknown(),
		"ResourcesDiscovered", "All resources successfully discovered")
	set(corev1.NamespaceDeletionGVParsingFailure, false, "", "", "ParsedGroupVersions", "All legacy kube types successfully parsed")
	set(corev1.NamespaceDeletionContentFailure, failure != nil, "ContentDeletionFailed", message,
		"ContentDeleted", "All content successfully deleted, may be waiting on finalization")
	set(corev1.NamespaceContentRemaining, len(left.kinds) > 0, "SomeResourcesRemain",
		"Some resources are remaining: "+listed(left.kinds, "%s has %d resource instances"),
		"ContentRemoved", "All content successfully removed")
	set(corev1.NamespaceFinalizersRemaining, len(left.finalizers) > 0, "SomeFinalizersRemain",
		"Some content in the namespace has finalizers remaining: "+listed(left.finalizers, "%s in %d resource instances"),
		"ContentHasNoFinalizers", "All content-preserving finalizers finished")
	return result
}

func listed(counts map[string]int, format string) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf(format, name, counts[name]))
	}
	return strings.Join(parts, ", ")
}
