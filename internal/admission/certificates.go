package admission

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"barque.dev/internal/api"
)

// A signerCheck asks whether somebody may act for a signer: whether the verb on "signers" is
// allowed for the signer's name, or for all names of its domain.
type signerCheck struct {
	authorizer authorizer.UnconditionalAuthorizer
}

func (s signerCheck) allowed(ctx context.Context, who user.Info, verb, signer string) bool {
	domain, _, _ := strings.Cut(signer, "/")
	for _, name := range []string{signer, domain + "/*"} {
		decision, _, err := s.authorizer.Authorize(ctx, authorizer.AttributesRecord{
			User: who, Verb: verb, Name: name, APIGroup: certificatesv1.GroupName, APIVersion: "*", Resource: "signers", ResourceRequest: true,
		})
		if err == nil && decision == authorizer.DecisionAllow {
			return true
		}
	}
	return false
}

// requestFor returns both versions of a certificate request whose subresource changes.
func requestFor(a admission.Attributes, subresource string) (csr, old *certificatesv1.CertificateSigningRequest) {
	if a.GetSubresource() != subresource {
		return nil, nil
	}
	csr, _ = a.GetObject().(*certificatesv1.CertificateSigningRequest)
	old, _ = a.GetOldObject().(*certificatesv1.CertificateSigningRequest)
	return csr, old
}

// CertificateApproval lets only those approve or deny a certificate request who may "approve" for
// its signer.
type CertificateApproval struct {
	*admission.Handler
	signers signerCheck
}

var _ admission.ValidationInterface = CertificateApproval{}

// NewCertificateApproval makes the plugin.
func NewCertificateApproval(authz authorizer.UnconditionalAuthorizer) CertificateApproval {
	return CertificateApproval{admission.NewHandler(admission.Update), signerCheck{authz}}
}

// Validate implements admission.ValidationInterface. It is the old version's signer that counts.
func (c CertificateApproval) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if _, old := requestFor(a, "approval"); old != nil && !c.signers.allowed(ctx, a.GetUserInfo(), "approve", old.Spec.SignerName) {
		return admission.NewForbidden(a, fmt.Errorf("user not permitted to approve requests with signerName %q", old.Spec.SignerName))
	}
	return nil
}

// CertificateSigning lets only those put a certificate or conditions into a certificate request
// who may "sign" for its signer.
type CertificateSigning struct {
	*admission.Handler
	signers signerCheck
}

var _ admission.ValidationInterface = CertificateSigning{}

// NewCertificateSigning makes the plugin.
func NewCertificateSigning(authz authorizer.UnconditionalAuthorizer) CertificateSigning {
	return CertificateSigning{admission.NewHandler(admission.Update), signerCheck{authz}}
}

// Validate implements admission.ValidationInterface.
func (c CertificateSigning) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	csr, old := requestFor(a, "status")
	if csr == nil || old == nil ||
		(bytes.Equal(csr.Status.Certificate, old.Status.Certificate) && apiequality.Semantic.DeepEqual(csr.Status.Conditions, old.Status.Conditions)) {
		return nil
	}
	if !c.signers.allowed(ctx, a.GetUserInfo(), "sign", old.Spec.SignerName) {
		return admission.NewForbidden(a, fmt.Errorf("user not permitted to sign requests with signerName %q", old.Spec.SignerName))
	}
	return nil
}

// CertificateSubjectRestriction refuses to ask the signer of API clients for a certificate of a
// group that may do anything, or is given anything: the administrators, or the servers.
type CertificateSubjectRestriction struct{ *admission.Handler }

var _ admission.ValidationInterface = CertificateSubjectRestriction{}

// NewCertificateSubjectRestriction makes the plugin.
func NewCertificateSubjectRestriction() CertificateSubjectRestriction {
	return CertificateSubjectRestriction{admission.NewHandler(admission.Create)}
}

// Validate implements admission.ValidationInterface.
func (CertificateSubjectRestriction) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	csr, _ := requestFor(a, "")
	if csr == nil || csr.Spec.SignerName != certificatesv1.KubeAPIServerClientSignerName {
		return nil
	}
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return admission.NewForbidden(a, errors.New("failed to parse CSR: PEM block type must be CERTIFICATE REQUEST"))
	}
	parsed, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return admission.NewForbidden(a, fmt.Errorf("failed to parse CSR: %w", err))
	}
	for _, group := range []string{user.SystemPrivilegedGroup, api.ServersGroup} {
		if slices.Contains(parsed.Subject.Organization, group) {
			return admission.NewForbidden(a, fmt.Errorf("use of %s signer with %s group is not allowed", certificatesv1.KubeAPIServerClientSignerName, group))
		}
	}
	return nil
}

// ClusterTrustBundleAttest lets only those publish a signer's trust bundle who may "attest" for it
// (KEP-3257).
type ClusterTrustBundleAttest struct {
	*admission.Handler
	signers signerCheck
}

var _ admission.ValidationInterface = ClusterTrustBundleAttest{}

// NewClusterTrustBundleAttest makes the plugin.
func NewClusterTrustBundleAttest(authz authorizer.UnconditionalAuthorizer) ClusterTrustBundleAttest {
	return ClusterTrustBundleAttest{admission.NewHandler(admission.Create, admission.Update), signerCheck{authz}}
}

// Validate implements admission.ValidationInterface. What the garbage collector changes of a
// bundle says nothing about its content.
func (c ClusterTrustBundleAttest) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if r := a.GetResource(); r.Group != certificatesv1.GroupName || r.Resource != "clustertrustbundles" {
		return nil
	}
	signer, err := bundleSigner(a.GetObject())
	if err != nil {
		return admission.NewForbidden(a, err)
	}
	if signer == "" || (a.GetOperation() == admission.Update && onlyCollected(a.GetObject(), a.GetOldObject())) {
		return nil
	}
	if !c.signers.allowed(ctx, a.GetUserInfo(), "attest", signer) {
		return admission.NewForbidden(a, fmt.Errorf("user not permitted to attest for signerName %q", signer))
	}
	return nil
}

// bundleSigner returns the signer whose bundle an object is.
func bundleSigner(obj runtime.Object) (string, error) {
	switch b := obj.(type) {
	case *certificatesv1.ClusterTrustBundle:
		return b.Spec.SignerName, nil
	case *certificatesv1beta1.ClusterTrustBundle:
		return b.Spec.SignerName, nil
	}
	return "", fmt.Errorf("expected type ClusterTrustBundle, got: %T", obj)
}

// onlyCollected tells whether an update changes nothing but owners and finalizers.
func onlyCollected(obj, old runtime.Object) bool {
	if old == nil {
		return false
	}
	changed := obj.DeepCopyObject()
	now, err := meta.Accessor(changed)
	if err != nil {
		return false
	}
	before, err := meta.Accessor(old)
	if err != nil {
		return false
	}
	now.SetOwnerReferences(before.GetOwnerReferences())
	now.SetFinalizers(before.GetFinalizers())
	now.SetManagedFields(before.GetManagedFields())
	return apiequality.Semantic.DeepEqual(changed, old)
}
