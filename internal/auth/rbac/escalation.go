package rbac

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/component-helpers/auth/rbac/validation"
)

// EscalationCheck refuses writes by which a user would grant what the user does not hold:
// roles with more rules than the user has (unless the verb "escalate" is granted on the role),
// bindings to roles with more rules (unless the verb "bind" is). It is an admission plugin,
// so that every way of writing passes it; put it last. It is safe for concurrent use.
type EscalationCheck struct {
	rules *Authorizer
	// authorizer answers for the verbs "escalate" and "bind"; it may know more than RBAC.
	authorizer authorizer.UnconditionalAuthorizer
}

var _ admission.ValidationInterface = (*EscalationCheck)(nil)

// NewEscalationCheck makes the check; full is the cluster's whole authorizer.
func NewEscalationCheck(rules *Authorizer, full authorizer.UnconditionalAuthorizer) *EscalationCheck {
	return &EscalationCheck{rules: rules, authorizer: full}
}

// Handles implements admission.Interface.
func (*EscalationCheck) Handles(op admission.Operation) bool {
	return op == admission.Create || op == admission.Update
}

// Validate implements admission.ValidationInterface for objects of rbac.authorization.k8s.io/v1.
func (c *EscalationCheck) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().Group != rbacv1.GroupName || a.GetSubresource() != "" {
		return nil
	}
	u := a.GetUserInfo()
	if u == nil {
		return apierrors.NewForbidden(a.GetResource().GroupResource(), a.GetName(), errors.New("no user is known"))
	}
	if slices.Contains(u.GetGroups(), user.SystemPrivilegedGroup) {
		return nil
	}
	var old runtime.Object
	if a.GetOperation() == admission.Update {
		old = a.GetOldObject()
		if onlyCollectorFields(a.GetObject(), old) {
			return nil
		}
	}
	var err error
	switch obj := a.GetObject().(type) {
	case *rbacv1.ClusterRole:
		oldRole, _ := old.(*rbacv1.ClusterRole)
		err = c.clusterRole(ctx, u, obj, oldRole)
	case *rbacv1.Role:
		err = c.role(ctx, u, "roles", obj.Namespace, obj.Name, obj.Rules)
	case *rbacv1.ClusterRoleBinding:
		err = c.binding(ctx, u, obj.RoleRef, "")
	case *rbacv1.RoleBinding:
		err = c.binding(ctx, u, obj.RoleRef, a.GetNamespace())
	}
	switch {
	case apierrors.IsNotFound(err):
		return err // the role of a binding
	case err != nil:
		return apierrors.NewForbidden(a.GetResource().GroupResource(), nameOf(a), err)
	}
	return nil
}

// clusterRole checks a cluster role. An aggregation rule gathers whatever comes to match it,
// so setting or keeping one needs every right.
func (c *EscalationCheck) clusterRole(ctx context.Context, u user.Info, obj, old *rbacv1.ClusterRole) error {
	if c.allowed(ctx, u, "escalate", "clusterroles", "", requestedName(ctx, obj.Name)) {
		return nil
	}
	if err := c.covers(u, "", obj.Rules); err != nil {
		return err
	}
	if aggregates(obj) || old != nil && aggregates(old) {
		everything := []rbacv1.PolicyRule{
			{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}},
			{Verbs: []string{"*"}, NonResourceURLs: []string{"*"}},
		}
		if c.covers(u, "", everything) != nil {
			return errors.New("must have cluster-admin privileges to use the aggregationRule")
		}
	}
	return nil
}

func (c *EscalationCheck) role(ctx context.Context, u user.Info, plural, namespace, name string, rules []rbacv1.PolicyRule) error {
	if c.allowed(ctx, u, "escalate", plural, namespace, requestedName(ctx, name)) {
		return nil
	}
	return c.covers(u, namespace, rules)
}

// requestedName is the name that a request is for, as its path says: who may escalate roles of
// some names may not do so by creating one, for whose name there is no path. Who asks without a
// request is asked about the object's name.
func requestedName(ctx context.Context, name string) string {
	if info, ok := request.RequestInfoFrom(ctx); ok {
		return info.Name
	}
	return name
}

func (c *EscalationCheck) binding(ctx context.Context, u user.Info, ref rbacv1.RoleRef, namespace string) error {
	plural := "clusterroles"
	if ref.Kind == "Role" {
		plural = "roles"
	}
	if c.allowed(ctx, u, "bind", plural, namespace, ref.Name) {
		return nil
	}
	rules, err := c.rules.RoleRules(ref, namespace)
	if err != nil {
		return err
	}
	return c.covers(u, namespace, rules)
}

func (c *EscalationCheck) allowed(ctx context.Context, u user.Info, verb, plural, namespace, name string) bool {
	decision, _, err := c.authorizer.Authorize(ctx, authorizer.AttributesRecord{
		User: u, Verb: verb, Namespace: namespace, APIGroup: rbacv1.GroupName, APIVersion: "*",
		Resource: plural, Name: name, ResourceRequest: true,
	})
	return err == nil && decision == authorizer.DecisionAllow
}

// covers tells which of the wanted rules the user does not hold.
func (c *EscalationCheck) covers(u user.Info, namespace string, wanted []rbacv1.PolicyRule) error {
	held, failure := c.rules.Rules(u, namespace)
	ok, missing := validation.Covers(held, wanted)
	if ok {
		return nil
	}
	message := fmt.Sprintf("user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s",
		u.GetName(), u.GetGroups(), strings.Join(describeRules(missing), "\n"))
	if failure != nil {
		message += fmt.Sprintf("; resolution errors: %v", failure)
	}
	return errors.New(message)
}

// describeRules writes rules that differ in their verbs only as one line, sorted.
func describeRules(rules []rbacv1.PolicyRule) []string {
	verbs := map[string][]string{}
	var keys []string
	for _, r := range rules {
		key := describeTarget(r)
		if _, ok := verbs[key]; !ok {
			keys = append(keys, key)
		}
		for _, v := range r.Verbs {
			if !slices.Contains(verbs[key], v) {
				verbs[key] = append(verbs[key], v)
			}
		}
	}
	lines := make([]string, 0, len(keys))
	for _, key := range keys {
		lines = append(lines, fmt.Sprintf("{%sVerbs:%q}", key, verbs[key]))
	}
	slices.Sort(lines)
	return lines
}

func describeTarget(r rbacv1.PolicyRule) string {
	var b strings.Builder
	for _, part := range []struct {
		name   string
		values []string
	}{
		{"APIGroups", r.APIGroups}, {"Resources", r.Resources},
		{"NonResourceURLs", r.NonResourceURLs}, {"ResourceNames", r.ResourceNames},
	} {
		if len(part.values) > 0 {
			_, _ = io.WriteString(&b, fmt.Sprintf("%s:%q, ", part.name, part.values))
		}
	}
	return b.String()
}

func aggregates(role *rbacv1.ClusterRole) bool {
	return role.AggregationRule != nil && len(role.AggregationRule.ClusterRoleSelectors) > 0
}

func nameOf(a admission.Attributes) string {
	if a.GetName() != "" {
		return a.GetName()
	}
	if o, err := meta.Accessor(a.GetObject()); err == nil {
		return o.GetName()
	}
	return ""
}

// onlyCollectorFields tells whether an update changes nothing but what lets the garbage
// collector delete the object: finalizers and owner references (and bookkeeping).
func onlyCollectorFields(obj, old runtime.Object) bool {
	if obj == nil || old == nil {
		return false
	}
	a, b := obj.DeepCopyObject(), old.DeepCopyObject()
	x, errX := meta.Accessor(a)
	y, errY := meta.Accessor(b)
	if errX != nil || errY != nil {
		return false
	}
	x.SetFinalizers(y.GetFinalizers())
	x.SetOwnerReferences(y.GetOwnerReferences())
	x.SetManagedFields(y.GetManagedFields())
	x.SetSelfLink(y.GetSelfLink())
	x.SetResourceVersion(y.GetResourceVersion())
	x.SetGeneration(y.GetGeneration())
	a.GetObjectKind().SetGroupVersionKind(b.GetObjectKind().GroupVersionKind())
	return equality.Semantic.DeepEqual(a, b)
}
