package apiservice

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/api"
	"barque.dev/internal/controllers/kit"
)

// RegisterBuiltin brings the APIServices of built-in versions to what they should be, and removes those that an older
// release registered for versions that are no longer built in. A server calls it once, at its start: what an
// administrator changes after that lasts until the next start, as in stock clusters.
func RegisterBuiltin(ctx context.Context, c client.Client) error {
	var list apiregistrationv1.APIServiceList
	if err := kit.Readable(c.List(ctx, &list)); err != nil {
		return fmt.Errorf("list APIServices: %w", err)
	}
	have := map[string]*apiregistrationv1.APIService{}
	for i := range list.Items {
		have[list.Items[i].Name] = &list.Items[i]
	}
	var errs []error
	for _, gv := range builtin() {
		want := local(gv, atStart)
		do := decide(have[want.Name], want, func(managed string) bool { return managed == atStart || managed == always })
		errs = append(errs, act(ctx, c, do, have[want.Name], want))
		delete(have, want.Name)
	}
	for _, old := range have {
		do := decide(old, nil, func(managed string) bool { return managed == atStart })
		errs = append(errs, act(ctx, c, do, old, nil))
	}
	return errors.Join(errs...)
}

// builtin are the versions that are built in, but for that of APIServices, which needs none.
func builtin() []schema.GroupVersion {
	var out []schema.GroupVersion
	for _, r := range api.Resources() {
		for _, version := range r.Served {
			gv := schema.GroupVersion{Group: r.Group, Version: version}
			if gv.Group != apiregistrationv1.GroupName && !slices.Contains(out, gv) {
				out = append(out, gv)
			}
		}
	}
	return out
}
