package serviceaccounttoken

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/auth/serviceaccount"
	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

// The ConfigMap that says since which day it has been noted when tokens without an end are used.
const (
	trackingName = "kube-apiserver-legacy-service-account-token-tracking"
	trackingKey  = "since"
)

func trackingMap() types.NamespacedName {
	return types.NamespacedName{Namespace: metav1.NamespaceSystem, Name: trackingName}
}

// NewTracking makes the controller of the ConfigMap that says since when the use of tokens has been noted.
func NewTracking(deps kit.Deps) kit.Controller {
	return kit.Controller{
		Name:    "legacy-service-account-token-tracking",
		Workers: 1,
		Watches: []kit.Watch{{Kind: &corev1.ConfigMap{}, Requests: func(e barqueclient.Event) []reconcile.Request {
			if client.ObjectKeyFromObject(e.Object()) != trackingMap() {
				return nil
			}
			return kit.Self(e)
		}}},
		Source: once,
		Reconcile: func(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
			return reconcile.Result{}, track(ctx, deps.Client, serviceaccount.Day(deps.Clock.Now()))
		},
	}
}

// once requests the ConfigMap, whether it is there or not.
func once(ctx context.Context, enqueue func(reconcile.Request)) error {
	enqueue(reconcile.Request{NamespacedName: trackingMap()})
	<-ctx.Done()
	return nil
}

// track notes today unless there is a day already.
func track(ctx context.Context, c client.Client, today string) error {
	key := trackingMap()
	have := &corev1.ConfigMap{}
	err := c.Get(ctx, key, have)
	switch {
	case apierrors.IsNotFound(err):
		err = c.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}, Data: map[string]string{trackingKey: today},
		})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
	case err == nil:
		if _, bad := serviceaccount.ParseDay(have.Data[trackingKey]); bad == nil {
			return nil
		}
		changed := have.DeepCopy()
		if changed.Data == nil {
			changed.Data = map[string]string{}
		}
		changed.Data[trackingKey] = today
		err = c.Update(ctx, changed)
	}
	if err != nil {
		return fmt.Errorf("note in ConfigMap %s since when tokens are tracked: %w", key, err)
	}
	return nil
}

// trackedSince is the first moment from which on every use has been noted: the day after tracking began. It is the zero
// time when that is not known.
func trackedSince(ctx context.Context, c client.Reader) (time.Time, error) {
	var have corev1.ConfigMap
	if err := c.Get(ctx, trackingMap(), &have); err != nil {
		if apierrors.IsNotFound(err) {
			return time.Time{}, nil
		}
		return time.Time{}, fmt.Errorf("get ConfigMap %s: %w", trackingMap(), err)
	}
	day, err := serviceaccount.ParseDay(have.Data[trackingKey])
	if err != nil {
		return time.Time{}, nil // it is being mended
	}
	return day.AddDate(0, 0, 1), nil
}
