package serviceaccounttoken

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/auth/node"
	"barque.dev/internal/auth/serviceaccount"
	"barque.dev/internal/controllers/kit"
)

// DefaultUnused is how long a token must not have been used until it is marked invalid, and marked until it is removed.
const DefaultUnused = 365 * 24 * time.Hour

// look is how often tokens are looked at.
const look = 24 * time.Hour

// NewCleaner makes the controller that removes tokens that nobody asked for and nobody uses: those that an account refers
// to, no pod mounts, and nobody has called with for the time unused (0 is DefaultUnused).
func NewCleaner(deps kit.Deps, unused time.Duration) kit.Controller {
	if unused == 0 {
		unused = DefaultUnused
	}
	c := cleaner{deps, unused}
	return kit.Controller{
		Name:    "legacy-serviceaccount-token-cleaner",
		Account: "legacy-service-account-token-cleaner",
		Workers: 1,
		Source:  once,
		Reconcile: func(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
			return reconcile.Result{RequeueAfter: look}, c.clean(ctx)
		},
	}
}

type cleaner struct {
	kit.Deps
	unused time.Duration
}

// clean looks at every token once. Tokens that have been looked at stay so with an error.
func (c cleaner) clean(ctx context.Context) error {
	now := c.Clock.Now().UTC()
	since, err := trackedSince(ctx, c.Client)
	if err != nil {
		return err
	}
	if since.IsZero() || now.Before(since.Add(c.unused)) {
		return nil // what was used before that is not known
	}
	secrets, err := kit.List[*corev1.Secret](ctx, c.Client, &corev1.SecretList{})
	if kit.Readable(err) != nil {
		return err
	}
	var errs []error
	for _, secret := range secrets {
		what := judge(secret, now, c.unused)
		if what == keep {
			continue
		}
		candidate, err := c.forgotten(ctx, secret)
		if candidate && what == remove {
			if err = c.CatchUp(ctx); err == nil { // a pod that mounts it may not have come yet
				candidate, err = c.forgotten(ctx, secret)
			}
		}
		if err != nil || !candidate {
			errs = append(errs, err)
			continue
		}
		if err := c.do(ctx, what, secret, serviceaccount.Day(now)); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("%s secret %s/%s: %w", what, secret.Namespace, secret.Name, err))
		}
	}
	return errors.Join(errs...)
}

// A verdict is what the dates of a secret call for.
type verdict string

const (
	keep   verdict = "keep"
	mark   verdict = "mark as invalid"
	remove verdict = "remove"
)

// judge decides by the dates that stand in a secret: by days, in UTC. What cannot be read keeps it.
func judge(secret *corev1.Secret, now time.Time, unused time.Duration) verdict {
	bound := now.Add(-unused)
	switch {
	case secret.Type != corev1.SecretTypeServiceAccountToken, secret.DeletionTimestamp != nil, !secret.CreationTimestamp.Time.Before(bound):
		return keep
	}
	recent := func(day string) bool { return day >= serviceaccount.Day(bound) }
	if used, ok := secret.Labels[serviceaccount.LastUsedLabel]; ok {
		if _, err := serviceaccount.ParseDay(used); err != nil || recent(used) {
			return keep
		}
	}
	invalid := secret.Labels[serviceaccount.InvalidSinceLabel]
	if _, err := serviceaccount.ParseDay(invalid); err != nil {
		return mark
	}
	if recent(invalid) {
		return keep
	}
	return remove
}

// forgotten tells whether a cluster made the token by itself, and no pod mounts it.
func (c cleaner) forgotten(ctx context.Context, secret *corev1.Secret) (bool, error) {
	account, err := accountOf(ctx, c.Client, secret)
	if err != nil || account == nil || !refersTo(account, secret.Name) {
		return false, err
	}
	pods, err := kit.List[*corev1.Pod](ctx, c.Client, &corev1.PodList{}, client.InNamespace(secret.Namespace))
	if err != nil {
		return false, err
	}
	for _, pod := range pods {
		if node.RefersToSecret(&pod.Spec, secret.Name) {
			return false, nil
		}
	}
	return true, nil
}

// do carries out a verdict upon the secret as it was looked at, and not upon another version of it.
func (c cleaner) do(ctx context.Context, what verdict, secret *corev1.Secret, today string) error {
	c.Log.Info("a service account token that nobody asked for and nobody uses", "verdict", string(what), "namespace", secret.Namespace, "secret", secret.Name,
		"lastUsed", secret.Labels[serviceaccount.LastUsedLabel], "invalidSince", secret.Labels[serviceaccount.InvalidSinceLabel])
	if what == remove {
		return c.Client.Delete(ctx, secret, client.Preconditions{UID: &secret.UID, ResourceVersion: &secret.ResourceVersion})
	}
	marked := secret.DeepCopy()
	metav1.SetMetaDataLabel(&marked.ObjectMeta, serviceaccount.InvalidSinceLabel, today)
	return c.Client.Update(ctx, marked)
}
