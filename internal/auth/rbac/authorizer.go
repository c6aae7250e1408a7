// Package rbac decides by roles and bindings (RBAC) who may do what, keeps the stock roles that
// a cluster starts with, and prevents users from granting more than they hold.
//
// Decisions are made from the store's shared image at the time of the request: nothing is
// cached, so a new binding counts as soon as its write has returned. Bindings are found by an
// index over their subjects ([Indexes]), so that a decision costs a few lookups, however many
// bindings there are.
package rbac

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"barque.dev/internal/auth/image"
)

// resource names a resource of the RBAC group.
func resource(name string) schema.GroupResource {
	return schema.GroupResource{Group: rbacv1.GroupName, Resource: name}
}

// SubjectIndex is the name of the index of bindings by subject.
const SubjectIndex = "rbac.subject"

// Indexes returns the indexes that the store must keep for this package.
func Indexes() []image.Index {
	return []image.Index{
		{Resource: resource("clusterrolebindings"), Name: SubjectIndex, Values: indexSubjects},
		{Resource: resource("rolebindings"), Name: SubjectIndex, Values: indexSubjects},
	}
}

// indexSubjects lists the index values of a binding, each once.
func indexSubjects(obj runtime.Object) []string {
	var subjects []rbacv1.Subject
	namespace := ""
	switch b := obj.(type) {
	case *rbacv1.ClusterRoleBinding:
		subjects = b.Subjects
	case *rbacv1.RoleBinding:
		subjects, namespace = b.Subjects, b.Namespace
	}
	values := make([]string, 0, len(subjects))
	for i := range subjects {
		value, ok := subjectValue(&subjects[i], namespace)
		if ok && !slices.Contains(values, value) {
			values = append(values, value)
		}
	}
	return values
}

func subjectValue(s *rbacv1.Subject, namespace string) (string, bool) {
	switch s.Kind {
	case rbacv1.UserKind:
		return userValue(namespace, s.Name), true
	case rbacv1.GroupKind:
		return groupValue(namespace, s.Name), true
	case rbacv1.ServiceAccountKind:
		of := s.Namespace
		if of == "" {
			of = namespace
		}
		if of == "" {
			return "", false
		}
		return userValue(namespace, serviceaccount.MakeUsername(of, s.Name)), true
	}
	return "", false
}

func userValue(namespace, name string) string  { return namespace + "/u/" + name }
func groupValue(namespace, name string) string { return namespace + "/g/" + name }

// Authorizer allows what a user's roles allow and has no opinion on everything else. It is
// safe for concurrent use.
type Authorizer struct {
	image image.Reader
}

var (
	_ authorizer.Authorizer   = (*Authorizer)(nil)
	_ authorizer.RuleResolver = (*Authorizer)(nil)
)

// NewAuthorizer decides from an image that keeps [Indexes].
func NewAuthorizer(r image.Reader) *Authorizer { return &Authorizer{image: r} }

// A grant is a binding that applies to a user, and how.
type grant struct {
	kind, name string // of the binding, name with its namespace
	ref        *rbacv1.RoleRef
	subject    string
	rules      []rbacv1.PolicyRule
}

func (g *grant) String() string {
	return fmt.Sprintf("%s %q of %s %q to %s", g.kind, g.name, g.ref.Kind, g.ref.Name, g.subject)
}

// Authorize implements authorizer.Authorizer. The reason of a denial names roles that
// bindings of the user refer to and that do not exist.
func (a *Authorizer) Authorize(_ context.Context, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	q := newQuery(attrs)
	reason := ""
	var failures []error
	a.grants(attrs.GetUser(), attrs.GetNamespace(), func(g *grant, err error) bool {
		if err != nil {
			failures = append(failures, err)
			return true
		}
		for i := range g.rules {
			if q.allowedBy(&g.rules[i]) {
				reason = "RBAC: allowed by " + g.String()
				return false
			}
		}
		return true
	})
	switch {
	case reason != "":
		return authorizer.DecisionAllow, reason, nil
	case len(failures) > 0:
		return authorizer.DecisionNoOpinion, fmt.Sprintf("RBAC: %v", utilerrors.NewAggregate(failures)), nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

// ConditionsAwareAuthorize implements authorizer.Authorizer; RBAC knows no conditions.
func (a *Authorizer) ConditionsAwareAuthorize(ctx context.Context, attrs authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return authorizer.ConditionsAwareDecisionFromParts(a.Authorize(ctx, attrs))
}

// EvaluateConditions implements authorizer.Authorizer; RBAC knows no conditions.
func (a *Authorizer) EvaluateConditions(context.Context, authorizer.ConditionsAwareDecision, authorizer.ConditionsData) (authorizer.Decision, string, error) {
	return authorizer.DecisionDeny, "", authorizer.ErrorConditionEvaluationNotSupported
}

// Rules returns every rule that holds for a user cluster-wide and, unless namespace is empty,
// in the namespace. With an error the rules are incomplete but each of them holds.
func (a *Authorizer) Rules(u user.Info, namespace string) ([]rbacv1.PolicyRule, error) {
	var rules []rbacv1.PolicyRule
	var failures []error
	seen := map[string]bool{}
	a.grants(u, namespace, func(g *grant, err error) bool {
		if err != nil {
			failures = append(failures, err)
			return true
		}
		if id := g.kind + "/" + g.name; !seen[id] {
			seen[id] = true
			rules = append(rules, g.rules...)
		}
		return true
	})
	return rules, errors.Join(failures...)
}

// RulesFor implements authorizer.RuleResolver.
func (a *Authorizer) RulesFor(_ context.Context, u user.Info, namespace string) ([]authorizer.ResourceRuleInfo, []authorizer.NonResourceRuleInfo, bool, error) {
	rules, err := a.Rules(u, namespace)
	var resources []authorizer.ResourceRuleInfo
	var others []authorizer.NonResourceRuleInfo
	for _, r := range rules {
		if len(r.Resources) > 0 {
			resources = append(resources, &authorizer.DefaultResourceRuleInfo{
				Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames,
			})
		}
		if len(r.NonResourceURLs) > 0 {
			others = append(others, &authorizer.DefaultNonResourceRuleInfo{Verbs: r.Verbs, NonResourceURLs: r.NonResourceURLs})
		}
	}
	return resources, others, false, err
}

// RoleRules returns the rules of a role that a binding in namespace (empty for a cluster role
// binding) refers to.
func (a *Authorizer) RoleRules(ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, error) {
	switch ref.Kind {
	case "ClusterRole":
		role, ok := image.Get[*rbacv1.ClusterRole](a.image, resource("clusterroles"), "", ref.Name)
		if !ok {
			return nil, apierrors.NewNotFound(resource("clusterrole"), ref.Name)
		}
		return role.Rules, nil
	case "Role":
		role, ok := image.Get[*rbacv1.Role](a.image, resource("roles"), namespace, ref.Name)
		if !ok || namespace == "" {
			return nil, apierrors.NewNotFound(resource("role"), ref.Name)
		}
		return role.Rules, nil
	}
	return nil, fmt.Errorf("unsupported role reference kind: %q", ref.Kind)
}

// grants calls f for every binding that applies to the user: cluster role bindings first, then
// those of the namespace. A binding that applies in several ways comes several times. f gets
// an error for a binding whose role does not exist, and ends the walk by returning false.
func (a *Authorizer) grants(u user.Info, namespace string, f func(*grant, error) bool) {
	if u == nil {
		return
	}
	if a.cluster(u, f) && namespace != "" {
		a.inNamespace(u, namespace, f)
	}
}

func (a *Authorizer) cluster(u user.Info, f func(*grant, error) bool) bool {
	bindings := resource("clusterrolebindings")
	more := true
	var g grant
	visit := func(obj runtime.Object) bool {
		b, ok := obj.(*rbacv1.ClusterRoleBinding)
		if !ok {
			return true
		}
		g.kind, g.name, g.ref = "ClusterRoleBinding", b.Name, &b.RoleRef
		more = a.visit(&g, "", f)
		return more
	}
	g.subject = describeUser(u)
	a.image.ByIndex(bindings, SubjectIndex, userValue("", u.GetName()), visit)
	for _, group := range u.GetGroups() {
		if !more {
			break
		}
		g.subject = `Group "` + group + `"`
		a.image.ByIndex(bindings, SubjectIndex, groupValue("", group), visit)
	}
	return more
}

func (a *Authorizer) inNamespace(u user.Info, namespace string, f func(*grant, error) bool) {
	bindings := resource("rolebindings")
	more := true
	var g grant
	visit := func(obj runtime.Object) bool {
		b, ok := obj.(*rbacv1.RoleBinding)
		if !ok {
			return true
		}
		g.kind, g.name, g.ref = "RoleBinding", b.Name+"/"+b.Namespace, &b.RoleRef
		more = a.visit(&g, namespace, f)
		return more
	}
	g.subject = describeUser(u)
	a.image.ByIndex(bindings, SubjectIndex, userValue(namespace, u.GetName()), visit)
	for _, group := range u.GetGroups() {
		if !more {
			break
		}
		g.subject = `Group "` + group + `"`
		a.image.ByIndex(bindings, SubjectIndex, groupValue(namespace, group), visit)
	}
}

func (a *Authorizer) visit(g *grant, namespace string, f func(*grant, error) bool) bool {
	rules, err := a.RoleRules(*g.ref, namespace)
	g.rules = rules
	return f(g, err)
}

func describeUser(u user.Info) string {
	if rest, ok := strings.CutPrefix(u.GetName(), serviceaccount.ServiceAccountUsernamePrefix); ok {
		if namespace, name, ok := strings.Cut(rest, ":"); ok {
			return `ServiceAccount "` + name + "/" + namespace + `"`
		}
	}
	return `User "` + u.GetName() + `"`
}
