// Package csr approves and signs the certificate requests of nodes, and signs what others have
// approved, as the signers that every cluster has:
//
//	kubernetes.io/kube-apiserver-client-kubelet   approved for nodes and joining machines
//	kubernetes.io/kubelet-serving                 approved for a node's own name and addresses
//	kubernetes.io/kube-apiserver-client           signed when an administrator approves
//
// What is signed is within its signer's rules, whoever approves: one authority stands behind all three, and who may
// approve requests for nodes is not to make administrators, nor servers that clients take for the API.
//
// Requests that are done, or that nobody decides on, are removed after a while (stock's times).
package csr

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/kit"
)

// A Signer issues the certificate, in PEM, that an approved request asks for. Whether the rules of the request's signer
// allow it is decided before.
type Signer func(spec *certificatesv1.CertificateSigningRequestSpec) ([]byte, error)

// How long requests are kept, by what became of them.
const (
	keepDone    = time.Hour
	keepPending = 24 * time.Hour
	// undecided is how soon a serving request that cannot be approved yet is looked at again.
	undecided = 5 * time.Second
)

// Reserved tells whether a name or an address is one by which the cluster's API is found. No node may serve under it,
// whatever it says of itself: the same authority vouches for both.
type Reserved func(name string) bool

type controller struct {
	deps     kit.Deps
	sign     Signer
	reserved Reserved
}

// New makes the controller.
func New(deps kit.Deps, sign Signer, reserved Reserved) kit.Controller {
	c := &controller{deps: deps, sign: sign, reserved: reserved}
	return kit.Controller{
		Name:      "csr",
		Account:   "certificate-controller",
		Watches:   []kit.Watch{{Kind: &certificatesv1.CertificateSigningRequest{}, Requests: kit.Self}},
		Reconcile: c.reconcile,
	}
}

func (c *controller) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var csr certificatesv1.CertificateSigningRequest
	if err := c.deps.Client.Get(ctx, req.NamespacedName, &csr); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	names, err := c.names(ctx, &csr)
	if err != nil {
		return reconcile.Result{}, err
	}
	if left := expiry(&csr).Sub(c.deps.Clock.Now()); left <= 0 {
		err := c.deps.Client.Delete(ctx, csr.DeepCopy(), client.Preconditions{UID: &csr.UID})
		return reconcile.Result{}, client.IgnoreNotFound(err)
	} else if d := decide(&csr, names); d == sign {
		return reconcile.Result{RequeueAfter: left}, c.issue(ctx, &csr)
	} else if d == approve {
		return reconcile.Result{RequeueAfter: left}, c.approve(ctx, &csr)
	} else {
		if csr.Spec.SignerName == certificatesv1.KubeletServingSignerName && len(csr.Status.Conditions) == 0 {
			left = min(left, undecided) // the node may be about to tell its addresses
		}
		return reconcile.Result{RequeueAfter: left}, nil
	}
}

func expiry(csr *certificatesv1.CertificateSigningRequest) time.Time {
	done := len(csr.Status.Certificate) > 0 || has(csr, certificatesv1.CertificateDenied) || has(csr, certificatesv1.CertificateFailed)
	if done {
		return csr.CreationTimestamp.Add(keepDone)
	}
	return csr.CreationTimestamp.Add(keepPending)
}

func has(csr *certificatesv1.CertificateSigningRequest, kind certificatesv1.RequestConditionType) bool {
	return slices.ContainsFunc(csr.Status.Conditions, func(c certificatesv1.CertificateSigningRequestCondition) bool {
		return c.Type == kind
	})
}

func (c *controller) approve(ctx context.Context, csr *certificatesv1.CertificateSigningRequest) error {
	changed := csr.DeepCopy()
	now := metav1.NewTime(c.deps.Clock.Now())
	changed.Status.Conditions = append(changed.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "AutoApproved",
		Message: "a node asks for its own certificate", LastUpdateTime: now, LastTransitionTime: now,
	})
	if err := c.deps.Client.SubResource("approval").Update(ctx, changed); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("approve certificate request %s: %w", csr.Name, err)
	}
	return nil
}

func (c *controller) issue(ctx context.Context, csr *certificatesv1.CertificateSigningRequest) error {
	changed := csr.DeepCopy()
	err := refusal(csr)
	var cert []byte
	if err == nil {
		cert, err = c.sign(&csr.Spec)
	}
	if err != nil {
		now := metav1.NewTime(c.deps.Clock.Now())
		changed.Status.Conditions = append(changed.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: "SignerValidationFailure",
			Message: err.Error(), LastUpdateTime: now, LastTransitionTime: now,
		})
	}
	changed.Status.Certificate = cert
	if err := c.deps.Client.Status().Update(ctx, changed); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("sign certificate request %s: %w", csr.Name, err)
	}
	return nil
}

// names are those that the requesting node may serve under, if it is one; none when it has not registered yet.
func (c *controller) names(ctx context.Context, csr *certificatesv1.CertificateSigningRequest) ([]string, error) {
	name, ok := nodeOf(csr.Spec.Username)
	if !ok || csr.Spec.SignerName != certificatesv1.KubeletServingSignerName {
		return nil, nil
	}
	var nodes corev1.NodeList
	var servers discoveryv1.EndpointSliceList
	err := errors.Join(c.deps.Client.List(ctx, &nodes),
		c.deps.Client.List(ctx, &servers, client.InNamespace(metav1.NamespaceDefault), client.MatchingLabels{discoveryv1.LabelServiceName: "kubernetes"}))
	if err != nil {
		return nil, fmt.Errorf("names of node %s: %w", name, err)
	}
	return ownNames(name, nodes.Items, servers.Items, c.reserved), nil
}
