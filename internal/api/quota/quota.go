// Package quota knows what objects use of a ResourceQuota: pods their requests and limits, claims
// their storage, services their ports, and each object of any kind its count. The measures are
// stock's own evaluators, which read what they need through a client rather than from informers.
package quota

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	stock "k8s.io/apiserver/pkg/quota/v1"
	"k8s.io/apiserver/pkg/quota/v1/generic"
	"k8s.io/dynamic-resource-allocation/deviceclass/extendedresourcecache"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/quota/v1/evaluator/core"
	"k8s.io/kubernetes/pkg/quota/v1/install"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// countPrefix starts the names of quotas that count objects: "count/deployments.apps".
const countPrefix = "count/"

// Measures make evaluators of resources.
type Measures struct {
	// Reader reads the objects that are measured.
	Reader client.Reader
	// Kind returns the kind of a namespaced resource that is served.
	Kind func(schema.GroupResource) (schema.GroupVersionKind, bool)
	// Clock tells when a pod that is being deleted counts no longer.
	Clock clock.PassiveClock
}

// Of returns what measures a resource; nil if no quota has a say in it. Reads are done with ctx.
func (m Measures) Of(ctx context.Context, gr schema.GroupResource) (stock.Evaluator, error) {
	if _, ignored := install.DefaultIgnoredResources()[gr]; ignored {
		return nil, nil
	}
	list := lister{ctx: ctx, measures: m}.forResource
	switch gr {
	case corev1.Resource("pods"):
		return core.NewPodEvaluator(list, teller{of: m.Clock}), nil
	case corev1.Resource("services"):
		return core.NewServiceEvaluator(list), nil
	case corev1.Resource("persistentvolumeclaims"):
		return core.NewPersistentVolumeClaimEvaluator(list), nil
	case resourcev1.Resource("resourceclaims"):
		return m.claims(ctx, list)
	}
	return generic.NewObjectCountEvaluator(gr, generic.ListResourceUsingListerFunc(list, gr.WithVersion("")), alias(gr)), nil
}

// teller tells the time of another clock. Stock's evaluators ask for nothing else.
type teller struct {
	clock.RealClock
	of clock.PassiveClock
}

func (t teller) Now() time.Time                      { return t.of.Now() }
func (t teller) Since(since time.Time) time.Duration { return t.of.Since(since) }

// alias is the older name of a count.
func alias(gr schema.GroupResource) corev1.ResourceName {
	switch gr {
	case corev1.Resource("configmaps"), corev1.Resource("resourcequotas"), corev1.Resource("replicationcontrollers"), corev1.Resource("secrets"):
		return corev1.ResourceName(gr.Resource)
	}
	return ""
}

// claims measures claims of devices, which need to know which extended resources stand for which
// device classes.
func (m Measures) claims(ctx context.Context, list stock.ListerForResourceFunc) (stock.Evaluator, error) {
	var classes resourcev1.DeviceClassList
	if err := m.Reader.List(ctx, &classes); err != nil {
		return nil, fmt.Errorf("list DeviceClasses: %w", err)
	}
	mapping := extendedresourcecache.NewExtendedResourceCache(klog.FromContext(ctx))
	for i := range classes.Items {
		mapping.OnAdd(&classes.Items[i], true)
	}
	reader := podReader{ctx: ctx, reader: m.Reader}
	return core.NewResourceClaimEvaluator(list, mapping, reader, reader.claimsOf), nil
}

// For returns the evaluators that a quota over some resources needs.
func (m Measures) For(ctx context.Context, hard corev1.ResourceList) ([]stock.Evaluator, error) {
	candidates := []schema.GroupResource{
		corev1.Resource("pods"), corev1.Resource("services"), corev1.Resource("persistentvolumeclaims"), resourcev1.Resource("resourceclaims"),
		corev1.Resource("configmaps"), corev1.Resource("resourcequotas"), corev1.Resource("replicationcontrollers"), corev1.Resource("secrets"),
	}
	known := map[schema.GroupResource]bool{}
	for _, gr := range candidates {
		known[gr] = true
	}
	for name := range hard {
		counted, ok := strings.CutPrefix(string(name), countPrefix)
		if gr := schema.ParseGroupResource(counted); ok && !known[gr] {
			known[gr] = true
			if _, served := m.Kind(gr); served {
				candidates = append(candidates, gr)
			}
		}
	}
	names := stock.ResourceNames(hard)
	var evaluators []stock.Evaluator
	for _, gr := range candidates {
		e, err := m.Of(ctx, gr)
		if err != nil {
			return nil, err
		}
		if e != nil && len(e.MatchingResources(names)) > 0 {
			evaluators = append(evaluators, e)
		}
	}
	return evaluators, nil
}

// Used sums up what the objects of a quota's namespace use of what it limits.
func (m Measures) Used(ctx context.Context, q *corev1.ResourceQuota) (corev1.ResourceList, error) {
	evaluators, err := m.For(ctx, q.Spec.Hard)
	if err != nil {
		return nil, err
	}
	used, err := stock.CalculateUsage(q.Namespace, q.Spec.Scopes, q.Spec.Hard, generic.NewRegistry(evaluators), q.Spec.ScopeSelector)
	if err != nil {
		return nil, fmt.Errorf("measure the use of ResourceQuota %s/%s: %w", q.Namespace, q.Name, err)
	}
	return stock.Mask(used, stock.ResourceNames(q.Spec.Hard)), nil
}
