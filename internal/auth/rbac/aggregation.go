package rbac

import (
	"context"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// AggregationManager is the field manager of aggregated rules, as in stock Kubernetes.
const AggregationManager = "clusterrole-aggregation-controller"

// Aggregator keeps the rules of cluster roles that have an aggregation rule equal to those of
// the roles it selects. It is one reconciler: a change of any ClusterRole may concern every
// aggregated one, see [Aggregated].
type Aggregator struct {
	Client client.Client
}

// Reconcile brings one cluster role's rules up to date.
func (a *Aggregator) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var role rbacv1.ClusterRole
	if err := a.Client.Get(ctx, req.NamespacedName, &role); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if role.AggregationRule == nil {
		return reconcile.Result{}, nil
	}
	var all rbacv1.ClusterRoleList
	if err := a.Client.List(ctx, &all); err != nil {
		return reconcile.Result{}, fmt.Errorf("list ClusterRoles: %w", err)
	}
	rules, err := AggregatedRules(&role, all.Items)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("aggregate ClusterRole %s: %w", role.Name, err)
	}
	if equality.Semantic.DeepEqual(rules, role.Rules) {
		return reconcile.Result{}, nil
	}
	updated := role.DeepCopy()
	updated.Rules = rules
	if err := a.Client.Update(ctx, updated, client.FieldOwner(AggregationManager)); err != nil {
		return reconcile.Result{}, fmt.Errorf("update ClusterRole %s: %w", role.Name, err)
	}
	return reconcile.Result{}, nil
}

// Aggregated returns requests for all aggregated roles among those given: what any change of a
// ClusterRole must wake.
func Aggregated(all []rbacv1.ClusterRole) []reconcile.Request {
	var out []reconcile.Request
	for i := range all {
		if all[i].AggregationRule != nil {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKey{Name: all[i].Name}})
		}
	}
	return out
}

// AggregatedRules returns the rules that role should have: those of the roles its selectors
// match, by name within each selector, each rule once.
func AggregatedRules(role *rbacv1.ClusterRole, all []rbacv1.ClusterRole) ([]rbacv1.PolicyRule, error) {
	order := make([]*rbacv1.ClusterRole, len(all))
	for i := range all {
		order[i] = &all[i]
	}
	slices.SortFunc(order, func(a, b *rbacv1.ClusterRole) int { return strings.Compare(a.Name, b.Name) })
	rules := []rbacv1.PolicyRule{}
	for i := range role.AggregationRule.ClusterRoleSelectors {
		selector, err := metav1.LabelSelectorAsSelector(&role.AggregationRule.ClusterRoleSelectors[i])
		if err != nil {
			return nil, fmt.Errorf("selector %d: %w", i, err)
		}
		for _, source := range order {
			if source.Name == role.Name || !selector.Matches(labels.Set(source.Labels)) {
				continue
			}
			for _, rule := range source.Rules {
				if !slices.ContainsFunc(rules, func(have rbacv1.PolicyRule) bool { return equality.Semantic.DeepEqual(have, rule) }) {
					rules = append(rules, rule)
				}
			}
		}
	}
	return rules, nil
}
