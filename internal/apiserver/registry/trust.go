package registry

import (
	"context"

	"k8s.io/apiserver/pkg/endpoints/request"
)

type trustedKey struct{}

// trust marks a request as coming from the server itself, which needs nobody's permission. Only
// Verbs and the registry's own follow-up writes use it; what arrives by HTTP never passes here.
func trust(ctx context.Context) context.Context { return context.WithValue(ctx, trustedKey{}, true) }

func trusted(ctx context.Context) bool {
	ok, _ := ctx.Value(trustedKey{}).(bool)
	return ok
}

// asServer is a request's context for what the server does on its own account because of it.
func asServer(ctx context.Context) context.Context {
	return trust(WithUserAgent(request.WithUser(ctx, serverUser()), "kube-apiserver"))
}
