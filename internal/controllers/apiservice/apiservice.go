// Package apiservice looks after APIServices, by which groups and versions of the API are served: it registers those
// that are built in ([RegisterBuiltin], every server at its start) and those of CustomResourceDefinitions
// ([NewRegistration]), and says in their conditions whether the servers of the others can be reached ([NewAvailability]).
//
// Passing requests on is every server's own business (apiserver/aggregate); what is written about APIServices is, but
// for the start, the leader's.
package apiservice

import (
	"context"
	"fmt"
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/api"
)

// An APIService with the label is kept as it should be by whoever registered it, at its start or for ever. One without is
// its user's, who may by that let another server serve a version, a built-in one included.
const (
	managedLabel = "kube-aggregator.kubernetes.io/automanaged"
	atStart      = "onstart"
	always       = "true"
)

// local is the APIService of a version that the API servers serve themselves.
func local(gv schema.GroupVersion, managed string) *apiregistrationv1.APIService {
	p := api.PriorityOf(gv)
	return &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: gv.Version + "." + gv.Group, Labels: map[string]string{managedLabel: managed}},
		Spec: apiregistrationv1.APIServiceSpec{
			Group: gv.Group, Version: gv.Version, GroupPriorityMinimum: p.Group, VersionPriority: p.Version,
		},
	}
}

// An action is what is to be done about an APIService.
type action int8

const (
	nothing action = iota
	create
	update
	remove
)

// decide compares what there is with what there should be; nil is nothing at all. mine tells whether an APIService with
// a value of the label is to be kept as it should be.
func decide(have, want *apiregistrationv1.APIService, mine func(managed string) bool) action {
	switch {
	case have == nil && want == nil:
		return nothing
	case have == nil:
		return create
	case !mine(have.Labels[managedLabel]):
		return nothing
	case want == nil:
		return remove
	case !reflect.DeepEqual(have.Spec, want.Spec):
		return update
	}
	return nothing
}

// act does what was decided. Somebody else's change in between is no error: whoever made it is asked for again.
func act(ctx context.Context, c client.Client, do action, have, want *apiregistrationv1.APIService) error {
	var name string
	var err error
	switch do {
	case create:
		name, err = want.Name, c.Create(ctx, want)
	case update:
		changed := have.DeepCopy()
		changed.Spec = want.Spec
		name, err = have.Name, c.Update(ctx, changed)
	case remove:
		uid := have.UID
		name, err = have.Name, c.Delete(ctx, have.DeepCopy(), client.Preconditions{UID: &uid})
	}
	if err == nil || apierrors.IsAlreadyExists(err) || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("register APIService %s: %w", name, err)
}
