package api

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/kubernetes/pkg/apis/admissionregistration"
)

// Lookups are what a few rules have to know of the cluster besides the objects at hand. They
// travel in the context of a request, so that the table needs no configuration.
type Lookups struct {
	// Authorizer answers what the user may do beyond the request itself.
	Authorizer authorizer.Authorizer
	// Get returns an object of the resource's storage version, or a NotFound error.
	Get func(ctx context.Context, resource schema.GroupResource, name string) (runtime.Object, error)
}

type lookupsKey struct{}

// WithLookups returns a context for Rules. Without it, rules that need to ask refuse.
func WithLookups(ctx context.Context, l *Lookups) context.Context {
	return context.WithValue(ctx, lookupsKey{}, l)
}

func lookupsFrom(ctx context.Context) (*Lookups, error) {
	l, ok := ctx.Value(lookupsKey{}).(*Lookups)
	if !ok || l == nil {
		return nil, errors.New("the request carries no lookups")
	}
	return l, nil
}

// contextAuthorizer asks the context's authorizer.
type contextAuthorizer struct{}

func (contextAuthorizer) Authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	l, err := lookupsFrom(ctx)
	if err != nil {
		return authorizer.DecisionDeny, "", err
	}
	if l.Authorizer == nil {
		return authorizer.DecisionNoOpinion, "", errors.New("no authorizer is configured")
	}
	return l.Authorizer.Authorize(ctx, a)
}

// contextNamespaces reads namespaces. Its other methods are never called by rules.
type contextNamespaces struct{ typedcorev1.NamespaceInterface }

func (contextNamespaces) Get(ctx context.Context, name string, _ metav1.GetOptions) (*corev1.Namespace, error) {
	l, err := lookupsFrom(ctx)
	if err != nil {
		return nil, err
	}
	obj, err := l.Get(ctx, schema.GroupResource{Resource: "namespaces"}, name)
	if err != nil {
		return nil, err
	}
	ns, ok := obj.(*corev1.Namespace)
	if !ok {
		return nil, fmt.Errorf("namespace %q is a %T", name, obj)
	}
	return ns, nil
}

// contextPolicies reads admission policies.
type contextPolicies struct{}

func (contextPolicies) GetValidatingAdmissionPolicy(ctx context.Context, name string) (*admissionregistration.ValidatingAdmissionPolicy, error) {
	return policy[admissionregistration.ValidatingAdmissionPolicy](ctx, "validatingadmissionpolicies", name)
}

func (contextPolicies) GetMutatingAdmissionPolicy(ctx context.Context, name string) (*admissionregistration.MutatingAdmissionPolicy, error) {
	return policy[admissionregistration.MutatingAdmissionPolicy](ctx, "mutatingadmissionpolicies", name)
}

func policy[T any](ctx context.Context, resource, name string) (*T, error) {
	l, err := lookupsFrom(ctx)
	if err != nil {
		return nil, err
	}
	gr := schema.GroupResource{Group: admissionregistration.GroupName, Resource: resource}
	obj, err := l.Get(ctx, gr, name)
	if err != nil {
		return nil, err
	}
	hub, err := Scheme().ConvertToVersion(obj, admissionregistration.SchemeGroupVersion)
	if err != nil {
		return nil, fmt.Errorf("read %s %q: %w", gr, name, err)
	}
	typed, ok := any(hub).(*T)
	if !ok {
		return nil, apierrors.NewNotFound(gr, name)
	}
	return typed, nil
}

// contextResolver resolves kinds. Strategies give it no context, so it knows the built-in kinds
// alone; for others, they ask for permission on every resource, which is the safe side.
type contextResolver struct{}

func (contextResolver) Resolve(gvk schema.GroupVersionKind) (schema.GroupVersionResource, error) {
	for _, r := range Resources() {
		if r.Group == gvk.Group && r.Kind == gvk.Kind && r.Serves(gvk.Version) {
			return r.GVR(gvk.Version), nil
		}
	}
	return schema.GroupVersionResource{}, fmt.Errorf("%s is not a built-in kind", gvk)
}
