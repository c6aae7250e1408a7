// Package serviceaccount sees to it that every namespace has the service account that pods use
// unless they name another: "default".
package serviceaccount

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/kit"
)

const name = "default"

// New makes the controller.
func New(deps kit.Deps) kit.Controller {
	return kit.Controller{
		Name:    "serviceaccount",
		Account: "service-account-controller",
		Watches: []kit.Watch{
			{Kind: &corev1.Namespace{}, Requests: kit.Self},
			{Kind: &corev1.ServiceAccount{}, Requests: kit.Removed(name)},
		},
		Reconcile: func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
			return reconcile.Result{}, ensure(ctx, deps.Client, req.Name)
		},
	}
}

func ensure(ctx context.Context, c client.Client, namespace string) error {
	if lives, err := kit.NamespaceLives(ctx, c, namespace); err != nil || !lives {
		return err
	}
	var account corev1.ServiceAccount
	err := c.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, &account)
	if !apierrors.IsNotFound(err) {
		return err
	}
	account = corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	err = c.Create(ctx, &account)
	if err != nil && !apierrors.IsAlreadyExists(err) && !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return fmt.Errorf("create service account %s/%s: %w", namespace, name, err)
	}
	return nil
}
