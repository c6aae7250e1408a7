package volume

import (
	"encoding/pem"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func certificate(content string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(content)}))
}

func bundle(name, signer string, labels map[string]string, certificates ...string) *certificatesv1.ClusterTrustBundle {
	b := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	b.Spec.SignerName = signer
	for _, c := range certificates {
		b.Spec.TrustBundle += "a note\n" + certificate(c)
	}
	return b
}

func TestAnchors(t *testing.T) {
	live, dead := map[string]string{"live": "yes"}, map[string]string{"live": "no"}
	all := []*certificatesv1.ClusterTrustBundle{
		bundle("plain", "", nil, "3", "1", "3"),
		bundle("x:one", "example.org/x", live, "2", "1"), bundle("x:two", "example.org/x", live, "4", "2"), bundle("x:three", "example.org/x", dead, "9"),
		bundle("y:one", "example.org/y", live, "5"),
	}
	s := func(v string) *string { return &v }
	yes, no := true, false
	for name, tt := range map[string]struct {
		p    corev1.ClusterTrustBundleProjection
		want string // the certificates, each a digit
		err  string
	}{
		"by name":              {p: corev1.ClusterTrustBundleProjection{Name: s("plain")}, want: "13"},
		"no such name":         {p: corev1.ClusterTrustBundleProjection{Name: s("none"), Optional: &no}, err: `clustertrustbundles.certificates.k8s.io "none" not found`},
		"no such, optional":    {p: corev1.ClusterTrustBundleProjection{Name: s("none"), Optional: &yes}},
		"by signer and labels": {p: corev1.ClusterTrustBundleProjection{SignerName: s("example.org/x"), LabelSelector: &metav1.LabelSelector{MatchLabels: live}}, want: "124"},
		"all of a signer":      {p: corev1.ClusterTrustBundleProjection{SignerName: s("example.org/x"), LabelSelector: &metav1.LabelSelector{}}, want: "1249"},
		"no selector":          {p: corev1.ClusterTrustBundleProjection{SignerName: s("example.org/x")}, err: `no cluster trust bundle of signer "example.org/x"`},
		"nothing matches": {p: corev1.ClusterTrustBundleProjection{SignerName: s("example.org/y"), LabelSelector: &metav1.LabelSelector{MatchLabels: dead}},
			err: `has the labels live=no`},
		"nothing, optional": {p: corev1.ClusterTrustBundleProjection{SignerName: s("example.org/z"), LabelSelector: &metav1.LabelSelector{}, Optional: &yes}},
		"bad selector": {p: corev1.ClusterTrustBundleProjection{SignerName: s("example.org/x"), LabelSelector: &metav1.LabelSelector{
			MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}}}, err: "selector of cluster trust bundles"},
		"neither": {err: "neither a name nor a signer"},
	} {
		got, err := anchors(&tt.p, all)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, want %s", name, err, tt.err)
			}
			continue
		}
		want := ""
		for _, c := range tt.want {
			want += certificate(string(c))
		}
		if err != nil || string(got) != want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}
