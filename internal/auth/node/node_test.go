package node_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	apirbac "barque.dev/internal/api/rbac"
	"barque.dev/internal/auth/image"
	"barque.dev/internal/auth/node"
)

func core(name string) schema.GroupResource { return schema.GroupResource{Resource: name} }

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

// state has a pod with every kind of reference on node n1, a mirror pod there, and a pod on n2.
func state() *image.Memory {
	m := image.NewMemory(node.Indexes()...)
	claim := "made-claim"
	secret := func(name string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: name}}}
	}
	m.Put(core("pods"), &corev1.Pod{ObjectMeta: meta("a", "p1"), Spec: corev1.PodSpec{
		NodeName: "n1", ServiceAccountName: "sa",
		ImagePullSecrets: []corev1.LocalObjectReference{{Name: "pull"}},
		InitContainers:   []corev1.Container{{Env: []corev1.EnvVar{{ValueFrom: secret("init-env")}}}},
		Containers: []corev1.Container{{EnvFrom: []corev1.EnvFromSource{
			{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "from"}}},
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "from"}}},
		}}},
		Volumes: []corev1.Volume{
			{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "vol"}}},
			{Name: "p", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "projected"}}},
				{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "kube-root-ca.crt"}}},
			}}}},
			{Name: "c", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}},
			{Name: "e", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
		},
	}, Status: corev1.PodStatus{ResourceClaimStatuses: []corev1.PodResourceClaimStatus{{Name: "x", ResourceClaimName: &claim}}}})
	mirror := meta("a", "mirror")
	mirror.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"}
	m.Put(core("pods"), &corev1.Pod{ObjectMeta: mirror, Spec: corev1.PodSpec{NodeName: "n1", ImagePullSecrets: []corev1.LocalObjectReference{{Name: "stolen"}}}})
	m.Put(core("pods"), &corev1.Pod{ObjectMeta: meta("a", "p2"), Spec: corev1.PodSpec{NodeName: "n2", ServiceAccountName: "sa2"}})
	m.Put(core("persistentvolumeclaims"), &corev1.PersistentVolumeClaim{ObjectMeta: meta("a", "data"), Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv1"}})
	m.Put(core("persistentvolumes"), &corev1.PersistentVolume{ObjectMeta: meta("", "pv1"), Spec: corev1.PersistentVolumeSpec{
		ClaimRef: &corev1.ObjectReference{Namespace: "a", Name: "data"},
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
			NodeStageSecretRef: &corev1.SecretReference{Namespace: "storage", Name: "stage"},
		}},
	}})
	m.Put(core("persistentvolumes"), &corev1.PersistentVolume{ObjectMeta: meta("", "pv2"), Spec: corev1.PersistentVolumeSpec{ClaimRef: &corev1.ObjectReference{Namespace: "a", Name: "other"}}})
	m.Put(schema.GroupResource{Group: storagev1.GroupName, Resource: "volumeattachments"},
		&storagev1.VolumeAttachment{ObjectMeta: meta("", "va1"), Spec: storagev1.VolumeAttachmentSpec{NodeName: "n1"}})
	return m
}

func TestAuthorize(t *testing.T) {
	a := node.NewAuthorizer(state(), apirbac.NodeRules())
	const lease, csi, dra = "coordination.k8s.io/leases", "storage.k8s.io/csinodes", "resource.k8s.io/resourceclaims"
	tests := []struct {
		verb, resource, sub, namespace, name, selector string
		want                                           bool
	}{
		{"get", "secrets", "", "a", "pull", "", true},
		{"get", "secrets", "", "a", "init-env", "", true},
		{"watch", "secrets", "", "a", "from", "", true},
		{"list", "secrets", "", "a", "vol", "", true},
		{"get", "secrets", "", "a", "projected", "", true},
		{"get", "secrets", "", "b", "pull", "", false},
		{"get", "secrets", "", "a", "other", "", false},
		{"get", "secrets", "", "a", "stolen", "", false},
		{"list", "secrets", "", "a", "", "", false},
		{"list", "secrets", "", "", "", "", false},
		{"update", "secrets", "", "a", "pull", "", false},
		{"get", "secrets", "", "storage", "stage", "", true},
		{"get", "configmaps", "", "a", "from", "", true},
		{"watch", "configmaps", "", "a", "kube-root-ca.crt", "", true},
		{"get", "configmaps", "", "a", "pull", "", false},
		{"get", "persistentvolumeclaims", "", "a", "data", "", true},
		{"get", "persistentvolumeclaims", "", "a", "p1-e", "", true},
		{"patch", "persistentvolumeclaims", "status", "a", "data", "", true},
		{"patch", "persistentvolumeclaims", "", "a", "data", "", false},
		{"get", "persistentvolumes", "", "", "pv1", "", true},
		{"get", "persistentvolumes", "", "", "pv2", "", false},
		{"get", "storage.k8s.io/volumeattachments", "", "", "va1", "", true},
		{"get", dra, "", "a", "made-claim", "", true},
		{"get", dra, "", "a", "other", "", false},
		{"create", "serviceaccounts", "token", "a", "sa", "", true},
		{"create", "serviceaccounts", "token", "a", "sa2", "", false},
		{"get", "serviceaccounts", "", "a", "sa", "", true},
		{"create", "serviceaccounts", "", "a", "", "", false},
		{"update", lease, "", "kube-node-lease", "n1", "", true},
		{"create", lease, "", "kube-node-lease", "", "", true},
		{"update", lease, "", "kube-node-lease", "n2", "", false},
		{"update", lease, "", "kube-system", "n1", "", false},
		{"list", lease, "", "kube-node-lease", "", "", false},
		{"get", csi, "", "", "n1", "", true},
		{"get", csi, "", "", "n2", "", false},
		{"get", "nodes", "", "", "n1", "", true},
		{"get", "nodes", "", "", "n2", "", false},
		{"list", "nodes", "", "", "", "", false},
		{"create", "nodes", "", "", "", "", true},
		{"patch", "nodes", "status", "", "n1", "", true},
		{"delete", "nodes", "", "", "n1", "", false},
		{"get", "pods", "", "a", "p1", "", true},
		{"get", "pods", "", "a", "p2", "", false},
		{"list", "pods", "", "", "", "spec.nodeName=n1", true},
		{"watch", "pods", "", "", "", "spec.nodeName=n1", true},
		{"list", "pods", "", "", "", "spec.nodeName=n2", false},
		{"list", "pods", "", "", "", "spec.nodeName!=n1", false},
		{"list", "pods", "", "", "", "", false},
		{"patch", "pods", "status", "a", "p1", "", true},
		{"create", "pods", "eviction", "a", "p1", "", true},
		{"create", "pods", "exec", "a", "p1", "", false},
		{"update", "pods", "", "a", "p1", "", false},
		{"list", "services", "", "", "", "", true},
		{"create", "events", "", "a", "", "", true},
		{"create", "certificates.k8s.io/certificatesigningrequests", "", "", "", "", true},
		{"watch", "certificates.k8s.io/clustertrustbundles", "", "", "", "", true},
		{"update", "certificates.k8s.io/clustertrustbundles", "", "", "b", "", false},
		{"list", "apps/deployments", "", "", "", "", false},
	}
	for _, tt := range tests {
		group, resource, ok := strings.Cut(tt.resource, "/")
		if !ok {
			group, resource = "", tt.resource
		}
		selector, err := fields.ParseSelector(tt.selector)
		if err != nil {
			t.Fatal(err)
		}
		attrs := authorizer.AttributesRecord{
			User: &user.DefaultInfo{Name: "system:node:n1", Groups: []string{"system:nodes"}}, Verb: tt.verb, Namespace: tt.namespace,
			APIGroup: group, Resource: resource, Subresource: tt.sub, Name: tt.name, ResourceRequest: true,
			FieldSelectorRequirements: selector.Requirements(),
		}
		decision, reason, err := a.Authorize(t.Context(), attrs)
		if err != nil {
			t.Fatal(err)
		}
		if got := decision == authorizer.DecisionAllow; got != tt.want {
			t.Errorf("%s %s/%s %s/%s %s: got %v (%s)", tt.verb, tt.resource, tt.sub, tt.namespace, tt.name, tt.selector, decision, reason)
		}
	}
}

func TestWhoIsANode(t *testing.T) {
	tests := []struct {
		user   user.DefaultInfo
		name   string
		isNode bool
	}{
		{user.DefaultInfo{Name: "system:node:n1", Groups: []string{"system:nodes"}}, "n1", true},
		{user.DefaultInfo{Name: "system:node:n1"}, "", false},
		{user.DefaultInfo{Name: "n1", Groups: []string{"system:nodes"}}, "", false},
		{user.DefaultInfo{Name: "system:node:", Groups: []string{"system:nodes"}}, "", true},
	}
	for _, tt := range tests {
		if name, isNode := node.Name(&tt.user); name != tt.name || isNode != tt.isNode {
			t.Errorf("%+v: got %q, %v", tt.user, name, isNode)
		}
	}
}

func BenchmarkAuthorizeSecret(b *testing.B) {
	m := image.NewMemory(node.Indexes()...)
	for i := range 110 {
		name := string(rune('a'+i%26)) + string(rune('a'+i/26))
		m.Put(core("pods"), &corev1.Pod{ObjectMeta: meta("a", name), Spec: corev1.PodSpec{
			NodeName: "n1", Containers: make([]corev1.Container, 2),
			Volumes: []corev1.Volume{{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name}}}},
		}})
	}
	a := node.NewAuthorizer(m, nil)
	attrs := authorizer.AttributesRecord{
		User: &user.DefaultInfo{Name: "system:node:n1", Groups: []string{"system:nodes"}}, Verb: "get", Namespace: "a",
		Resource: "secrets", Name: "zd", ResourceRequest: true,
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := a.Authorize(b.Context(), attrs); err != nil {
			b.Fatal(err)
		}
	}
}
