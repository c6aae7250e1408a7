// Package serviceaccounttoken looks after service account tokens without an end, which Secrets of type
// kubernetes.io/service-account-token keep. Who makes such a Secret for an account gets a token in it; it goes with the
// account. Those that nobody asked for, which clusters made by themselves until Kubernetes 1.24, are marked invalid when
// they have not been used for a year, and removed another year later (KEP-2799).
package serviceaccounttoken

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

// Sign makes the token that a secret is to keep for an account.
type Sign func(*corev1.ServiceAccount, *corev1.Secret) (string, error)

// New makes the controller that fills and removes such Secrets; ca is the cluster's authority in PEM.
func New(deps kit.Deps, ca []byte, sign Sign) kit.Controller {
	k := keeper{deps, ca, sign}
	return kit.Controller{
		Name:    "serviceaccount-token",
		Account: "tokens-controller",
		Watches: []kit.Watch{
			{Kind: &corev1.Secret{}, Requests: changedSecret},
			{Kind: &corev1.ServiceAccount{}, Requests: func(e barqueclient.Event) []reconcile.Request { return tokensOfGone(deps, e) }},
		},
		Reconcile: k.reconcile,
	}
}

// changedSecret requests a secret that keeps a token. One that is gone is requested together with its account, as
// account/secret: the account may refer to it.
func changedSecret(e barqueclient.Event) []reconcile.Request {
	secret, ok := e.Object().(*corev1.Secret)
	if !ok || secret.Type != corev1.SecretTypeServiceAccountToken {
		return nil
	}
	request := kit.RequestFor(secret)
	if e.New == nil {
		request.Name = secret.Annotations[corev1.ServiceAccountNameKey] + "/" + secret.Name
	}
	return []reconcile.Request{request}
}

// tokensOfGone requests the secrets that keep tokens of an account that is gone.
func tokensOfGone(deps kit.Deps, e barqueclient.Event) []reconcile.Request {
	if e.Old == nil || e.New != nil && e.New.GetUID() == e.Old.GetUID() {
		return nil
	}
	return kit.Where(deps, &corev1.SecretList{}, func(s *corev1.Secret) bool {
		return s.Type == corev1.SecretTypeServiceAccountToken && s.Annotations[corev1.ServiceAccountNameKey] == e.Old.GetName()
	}, client.InNamespace(e.Old.GetNamespace()))
}

type keeper struct {
	kit.Deps
	ca   []byte
	sign Sign
}

func (k keeper) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if account, secret, gone := strings.Cut(req.Name, "/"); gone {
		return reconcile.Result{}, k.dereference(ctx, req.Namespace, account, secret)
	}
	var secret corev1.Secret
	if err := k.Client.Get(ctx, req.NamespacedName, &secret); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if secret.Type != corev1.SecretTypeServiceAccountToken || secret.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	account, err := k.accountOf(ctx, &secret)
	switch {
	case err != nil:
	case account == nil:
		err = k.Client.Delete(ctx, &secret, client.Preconditions{UID: &secret.UID, ResourceVersion: &secret.ResourceVersion})
	default:
		err = k.fill(ctx, account, &secret)
	}
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil // it is another by now, which is requested too
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("look after secret %s: %w", req.NamespacedName, err)
	}
	return reconcile.Result{}, nil
}

// accountOf is whose token a secret keeps, or nil when it is certain that there is no such account: a token that is
// removed by mistake takes its users' access with it.
func (k keeper) accountOf(ctx context.Context, secret *corev1.Secret) (*corev1.ServiceAccount, error) {
	account, err := accountOf(ctx, k.Client, secret)
	if err != nil || account != nil {
		return account, err
	}
	if err := k.CatchUp(ctx); err != nil {
		return nil, fmt.Errorf("make sure that the account is gone: %w", err)
	}
	return accountOf(ctx, k.Client, secret)
}

// accountOf is whose token a secret keeps, or nil when that account is not there (any more), as far as c knows.
func accountOf(ctx context.Context, c client.Reader, secret *corev1.Secret) (*corev1.ServiceAccount, error) {
	name, uid := secret.Annotations[corev1.ServiceAccountNameKey], types.UID(secret.Annotations[corev1.ServiceAccountUIDKey])
	account := &corev1.ServiceAccount{}
	err := c.Get(ctx, types.NamespacedName{Namespace: secret.Namespace, Name: name}, account)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("get service account %s/%s: %w", secret.Namespace, name, err)
	case uid != "" && uid != account.UID:
		return nil, nil
	}
	return account, nil
}

// fill puts into a secret what is missing: the token, its namespace, the cluster's authority as it is now.
func (k keeper) fill(ctx context.Context, account *corev1.ServiceAccount, secret *corev1.Secret) error {
	data := map[string][]byte{}
	if len(k.ca) > 0 && !bytes.Equal(secret.Data[corev1.ServiceAccountRootCAKey], k.ca) {
		data[corev1.ServiceAccountRootCAKey] = k.ca
	}
	if len(secret.Data[corev1.ServiceAccountNamespaceKey]) == 0 {
		data[corev1.ServiceAccountNamespaceKey] = []byte(secret.Namespace)
	}
	if len(secret.Data[corev1.ServiceAccountTokenKey]) == 0 {
		token, err := k.sign(account, secret)
		if err != nil {
			return err
		}
		data[corev1.ServiceAccountTokenKey] = []byte(token)
	}
	if len(data) == 0 {
		return nil
	}
	changed := secret.DeepCopy()
	if changed.Data == nil {
		changed.Data = map[string][]byte{}
	}
	maps.Copy(changed.Data, data)
	metav1.SetMetaDataAnnotation(&changed.ObjectMeta, corev1.ServiceAccountNameKey, account.Name)
	metav1.SetMetaDataAnnotation(&changed.ObjectMeta, corev1.ServiceAccountUIDKey, string(account.UID))
	return k.Client.Update(ctx, changed)
}

// dereference takes a secret that is gone from what its account refers to.
func (k keeper) dereference(ctx context.Context, namespace, name, secret string) error {
	if err := k.CatchUp(ctx); err != nil {
		return fmt.Errorf("make sure that secret %s/%s is gone: %w", namespace, secret, err)
	}
	err := k.Client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: secret}, &corev1.Secret{})
	if !apierrors.IsNotFound(err) {
		return err // there is one of that name again
	}
	var account corev1.ServiceAccount
	if err := k.Client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, &account); err != nil {
		return client.IgnoreNotFound(err)
	}
	if !refersTo(&account, secret) {
		return nil
	}
	changed := account.DeepCopy()
	changed.Secrets = slices.DeleteFunc(changed.Secrets, func(r corev1.ObjectReference) bool { return r.Name == secret })
	if err := k.Client.Update(ctx, changed); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("take secret %s from service account %s/%s: %w", secret, namespace, name, err)
	}
	return nil
}

func refersTo(account *corev1.ServiceAccount, secret string) bool {
	return slices.ContainsFunc(account.Secrets, func(r corev1.ObjectReference) bool { return r.Name == secret })
}
