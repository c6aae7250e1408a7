package volume

import (
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// anchors returns, as PEM, the certificates of the bundles that a volume asks for (KEP-3257): each
// once, and always in the same order.
func anchors(p *corev1.ClusterTrustBundleProjection, all []*certificatesv1.ClusterTrustBundle) ([]byte, error) {
	chosen, err := choose(p, all)
	if err != nil {
		return nil, err
	}
	optional := p.Optional != nil && *p.Optional
	if len(chosen) == 0 && !optional {
		if p.Name != nil {
			return nil, apierrors.NewNotFound(certificatesv1.Resource("clustertrustbundles"), *p.Name)
		}
		return nil, fmt.Errorf("no cluster trust bundle of signer %q has the labels %s", *p.SignerName, metav1.FormatLabelSelector(p.LabelSelector))
	}
	certificates := map[string]bool{}
	for _, b := range chosen {
		for block, rest := pem.Decode([]byte(b.Spec.TrustBundle)); block != nil; block, rest = pem.Decode(rest) {
			certificates[string(block.Bytes)] = true
		}
	}
	out := []byte{}
	for _, der := range slices.Sorted(maps.Keys(certificates)) {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(der)})...)
	}
	return out, nil
}

// choose picks bundles by name, or by signer and labels. No selector chooses nothing, an empty one
// everything of the signer.
func choose(p *corev1.ClusterTrustBundleProjection, all []*certificatesv1.ClusterTrustBundle) ([]*certificatesv1.ClusterTrustBundle, error) {
	var wanted func(*certificatesv1.ClusterTrustBundle) bool
	switch {
	case p.Name != nil:
		wanted = func(b *certificatesv1.ClusterTrustBundle) bool { return b.Name == *p.Name }
	case p.SignerName != nil:
		selector, err := metav1.LabelSelectorAsSelector(p.LabelSelector)
		if err != nil {
			return nil, fmt.Errorf("selector of cluster trust bundles: %w", err)
		}
		wanted = func(b *certificatesv1.ClusterTrustBundle) bool {
			return b.Spec.SignerName == *p.SignerName && selector.Matches(labels.Set(b.Labels))
		}
	default:
		return nil, errors.New("cluster trust bundle: neither a name nor a signer is given")
	}
	var out []*certificatesv1.ClusterTrustBundle
	for _, b := range all {
		if wanted(b) {
			out = append(out, b)
		}
	}
	return out, nil
}
