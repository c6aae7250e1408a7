// Package rootca gives every namespace the ConfigMap kube-root-ca.crt, with which pods verify
// the API server.
package rootca

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/kit"
)

const (
	name        = "kube-root-ca.crt"
	key         = "ca.crt"
	descKey     = "kubernetes.io/description"
	description = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters."
)

// New makes the controller; ca is the cluster's authority in PEM.
func New(deps kit.Deps, ca []byte) kit.Controller {
	want := map[string]string{key: string(ca)}
	return kit.Controller{
		Name:    "root-ca-certificate-publisher",
		Account: "root-ca-cert-publisher",
		Watches: []kit.Watch{
			{Kind: &corev1.Namespace{}, Requests: kit.Self},
			{Kind: &corev1.ConfigMap{}, Requests: kit.Changed(name)},
		},
		Reconcile: func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
			return reconcile.Result{}, ensure(ctx, deps.Client, req.Name, want)
		},
	}
}

func ensure(ctx context.Context, c client.Client, namespace string, want map[string]string) error {
	if lives, err := kit.NamespaceLives(ctx, c, namespace); err != nil || !lives {
		return err
	}
	var have corev1.ConfigMap
	err := c.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, &have)
	switch {
	case apierrors.IsNotFound(err):
		have = corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{descKey: description}},
			Data:       want,
		}
		err = c.Create(ctx, &have)
		if apierrors.IsAlreadyExists(err) || apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil
		}
	case err == nil && (!maps.Equal(have.Data, want) || have.Annotations[descKey] == ""):
		changed := have.DeepCopy()
		changed.Data = want
		metav1.SetMetaDataAnnotation(&changed.ObjectMeta, descKey, description)
		err = c.Update(ctx, changed)
	}
	if err != nil {
		return fmt.Errorf("publish the root CA in namespace %s: %w", namespace, err)
	}
	return nil
}
