package admission

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apiserver/pkg/admission"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// token allows a node to request tokens bound to its own pods, for the audiences that the pods
// ask for.
func (n *NodeRestriction) token(ctx context.Context, a admission.Attributes, node string) error {
	if a.GetSubresource() != "token" || a.GetOperation() != admission.Create {
		return nil
	}
	req, ok := a.GetObject().(*authenticationv1.TokenRequest)
	if !ok {
		return fmt.Errorf("unexpected type %T", a.GetObject())
	}
	ref := req.Spec.BoundObjectRef
	if ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "" {
		return errors.New("node requested token not bound to a pod")
	}
	if ref.UID == "" {
		return errors.New("node requested token with a pod binding without a uid")
	}
	pod, err := n.ownPod(ctx, a.GetNamespace(), ref.Name, node)
	if err != nil {
		return err
	}
	if pod.UID != ref.UID {
		return fmt.Errorf("the UID in the bound object reference (%s) does not match the UID in record. "+
			"The object might have been deleted and then recreated", ref.UID)
	}
	return n.audience(ctx, req.Spec.Audiences, pod)
}

// audience checks that the pod mounts a token for the requested audience, by itself or through
// a storage driver (KEP-4412). No audience is the API server's.
func (n *NodeRestriction) audience(ctx context.Context, wanted []string, pod *corev1.Pod) error {
	if len(wanted) > 1 {
		return errors.New("node may only request 0 or 1 audiences")
	}
	audience := ""
	if len(wanted) == 1 {
		audience = wanted[0]
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(p corev1.VolumeProjection) bool {
			return p.ServiceAccountToken != nil && p.ServiceAccountToken.Audience == audience
		}) {
			return nil
		}
		driver := n.driverOf(ctx, pod, v)
		if driver == "" {
			continue
		}
		var d storagev1.CSIDriver
		if err := n.reader.Get(ctx, client.ObjectKey{Name: driver}, &d); err != nil {
			continue
		}
		if slices.ContainsFunc(d.Spec.TokenRequests, func(t storagev1.TokenRequest) bool { return t.Audience == audience }) {
			return nil
		}
	}
	return fmt.Errorf("audience %q not found in pod spec volume", audience)
}

// driverOf returns the storage driver of a pod's volume, if it has one.
func (n *NodeRestriction) driverOf(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) string {
	claim := ""
	switch {
	case v.CSI != nil:
		return v.CSI.Driver
	case v.PersistentVolumeClaim != nil:
		claim = v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		claim = pod.Name + "-" + v.Name
	default:
		return ""
	}
	var c corev1.PersistentVolumeClaim
	if err := n.reader.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: claim}, &c); err != nil || c.Spec.VolumeName == "" {
		return ""
	}
	var volume corev1.PersistentVolume
	if err := n.reader.Get(ctx, client.ObjectKey{Name: c.Spec.VolumeName}, &volume); err != nil || volume.Spec.CSI == nil {
		return ""
	}
	return volume.Spec.CSI.Driver
}

// ownCertificate keeps a node from requesting another node's certificate.
func ownCertificate(a admission.Attributes, node string) error {
	csr, ok := a.GetObject().(*certificatesv1.CertificateSigningRequest)
	if !ok || a.GetSubresource() != "" || a.GetOperation() != admission.Create {
		return nil
	}
	if s := csr.Spec.SignerName; s != certificatesv1.KubeletServingSignerName && s != certificatesv1.KubeAPIServerClientKubeletSignerName {
		return nil
	}
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil {
		return errors.New("unable to parse csr: it is no PEM")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return fmt.Errorf("unable to parse csr: %w", err)
	}
	if want := nodeUserPrefix + node; request.Subject.CommonName != want {
		return fmt.Errorf("can only create a node CSR with CN=%s", want)
	}
	return nil
}
