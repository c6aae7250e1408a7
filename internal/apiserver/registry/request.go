package registry

import (
	"context"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"

	"barque.dev/internal/api"
	"barque.dev/internal/store"
)

// gv returns the version that the request speaks.
func (r Request) gv() schema.GroupVersion {
	if r.Version == "" {
		return r.Resource.Storage
	}
	return schema.GroupVersion{Group: r.Resource.Group, Version: r.Version}
}

// gvr returns the resource in the request's version.
func (r Request) gvr() schema.GroupVersionResource {
	return r.gv().WithResource(r.Resource.Resource)
}

// groupResource names the resource in errors, as kube-apiserver does: without subresource.
func (r Request) groupResource() schema.GroupResource { return r.Resource.GroupResource }

// sub returns the subresource; nil for the resource itself.
func (r Request) sub() *api.Subresource {
	if r.Subresource == "" {
		return nil
	}
	return r.Resource.Subresources[r.Subresource]
}

// kind is what the request's objects are.
func (r Request) kind() schema.GroupVersionKind {
	if sub := r.sub(); sub != nil {
		if sub.Kind.Version != "" {
			return sub.Kind
		}
		return r.gv().WithKind(sub.Kind.Kind)
	}
	return r.gv().WithKind(r.Resource.Kind)
}

// rules are what an update through the request obeys; nil if it has none.
func (r Request) rules() *api.Rules {
	if r.Subresource == "" {
		return r.Resource.Rules
	}
	if sub := r.sub(); sub != nil {
		return sub.Rules
	}
	return nil
}

// allows tells whether the resource or subresource has the verb.
func (r Request) allows(verb string) bool {
	if r.Subresource == "" {
		return slices.Contains(r.Resource.Verbs, verb)
	}
	sub := r.sub()
	return sub != nil && slices.Contains(sub.Verbs, verb)
}

// key names the object in its table.
func (r Request) key() store.Key { return r.keyOf(r.Name) }

func (r Request) keyOf(name string) store.Key {
	if !r.Resource.Namespaced {
		return store.Key{Name: name}
	}
	return store.Key{Namespace: r.Namespace, Name: name}
}

// context completes a request's context with what rules and admission look for.
func (r *Registry) context(ctx context.Context, req Request, verb string) context.Context {
	namespace := ""
	if req.Resource.Namespaced {
		namespace = req.Namespace
	}
	info := &request.RequestInfo{
		IsResourceRequest: true, Verb: verb, APIPrefix: "apis",
		APIGroup: req.Resource.Group, APIVersion: req.gv().Version, Namespace: namespace,
		Resource: req.Resource.Resource, Subresource: req.Subresource, Name: req.Name,
	}
	if req.Resource.Group == "" {
		info.APIPrefix = "api"
	}
	if given, ok := request.RequestInfoFrom(ctx); ok {
		info.Path = given.Path
	}
	if _, ok := request.UserFrom(ctx); !ok {
		ctx = request.WithUser(ctx, serverUser())
	}
	ctx = request.WithNamespace(ctx, namespace)
	ctx = request.WithRequestInfo(ctx, info)
	return api.WithLookups(ctx, r.lookups)
}

// serverUser is who acts when a context names nobody: the server itself.
func serverUser() user.Info {
	return &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup, user.AllAuthenticated}}
}

type userAgentKey struct{}

// WithUserAgent returns a context whose writes are recorded under the name that the
// User-Agent header starts with, when the client names no field manager itself.
func WithUserAgent(ctx context.Context, userAgent string) context.Context {
	return context.WithValue(ctx, userAgentKey{}, userAgent)
}

// manager names who manages the fields that a request sets.
func manager(ctx context.Context, given string) string {
	if given != "" {
		return given
	}
	agent, _ := ctx.Value(userAgentKey{}).(string)
	return prefixFromUserAgent(agent)
}

// prefixFromUserAgent takes the part before the first slash, printable and of bounded length.
func prefixFromUserAgent(agent string) string {
	name, _, _ := strings.Cut(agent, "/")
	var out strings.Builder
	for _, c := range name {
		if !unicode.IsPrint(c) {
			continue
		}
		if out.Len()+utf8.RuneLen(c) > metav1validation.FieldManagerMaxLength {
			break
		}
		out.WriteRune(c)
	}
	return out.String()
}

// isDryRun tells whether nothing may be kept.
func isDryRun(flags []string) bool { return slices.Contains(flags, metav1.DryRunAll) }
