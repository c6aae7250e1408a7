package admission_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	stock "k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"

	"barque.dev/internal/admission"
	"barque.dev/internal/testkit/fakeclient"
)

func csr(t *testing.T, name string) *certificatesv1.CertificateSigningRequest {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return &certificatesv1.CertificateSigningRequest{Spec: certificatesv1.CertificateSigningRequestSpec{
		SignerName: certificatesv1.KubeletServingSignerName,
		Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
	}}
}

func TestNodeRestriction(t *testing.T) {
	bound := func(name, node string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, UID: "uid"}, Spec: corev1.PodSpec{NodeName: node}}
		p.Spec.Volumes = []corev1.Volume{{Name: "t", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}},
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "vault", Audience: "vault"}},
		}}}}}
		return p
	}
	self := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node-uid"}}
	reader := fakeclient.Builder().WithObjects(bound("mine", "n1"), bound("theirs", "n2"), self).Build()
	plugin := admission.NewNodeRestriction(reader)

	changed := func(o runtime.Object, f func(metav1.Object)) runtime.Object {
		c := o.DeepCopyObject()
		f(c.(metav1.Object))
		return c
	}
	tainted := self.DeepCopy()
	tainted.Spec.Taints = []corev1.Taint{{Key: "x", Effect: corev1.TaintEffectNoSchedule}}
	yes := true
	mirror := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "m",
		Annotations:     map[string]string{corev1.MirrorPodAnnotationKey: "x"},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "n1", UID: "node-uid", Controller: &yes}},
	}, Spec: corev1.PodSpec{NodeName: "n1"}}
	reading := mirror.DeepCopy()
	reading.Spec.Volumes = []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "x"}}}}
	token := func(pod string, audiences ...string) *authenticationv1.TokenRequest {
		return &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences,
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod, UID: "uid"}}}
	}
	lease := func(name string) *coordinationv1.Lease {
		return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-node-lease", Name: name}}
	}
	label := func(key string) func(metav1.Object) {
		return func(o metav1.Object) { o.SetLabels(map[string]string{key: "x"}) }
	}
	const leases, csrs = "coordination.k8s.io/leases", "certificates.k8s.io/certificatesigningrequests"
	tests := map[string]struct {
		op                             stock.Operation
		resource, sub, namespace, name string
		obj, old                       runtime.Object
		want                           string
	}{
		"register":             {stock.Create, "nodes", "", "", "n1", self, nil, ""},
		"register another":     {stock.Create, "nodes", "", "", "n2", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n2"}}, nil, "not allowed to modify node"},
		"own host name":        {stock.Update, "nodes", "", "", "n1", changed(self, label("kubernetes.io/hostname")), self, ""},
		"own label":            {stock.Update, "nodes", "", "", "n1", changed(self, label("example.com/x")), self, ""},
		"role label":           {stock.Update, "nodes", "", "", "n1", changed(self, label("node-role.kubernetes.io/control-plane")), self, "not allowed to modify labels"},
		"restricted label":     {stock.Update, "nodes", "", "", "n1", changed(self, label("node-restriction.kubernetes.io/x")), self, "not allowed to modify labels"},
		"remove role label":    {stock.Update, "nodes", "", "", "n1", self, changed(self, label("node-role.kubernetes.io/x")), "not allowed to modify labels"},
		"remove taint":         {stock.Update, "nodes", "", "", "n1", self, tainted, "not allowed to modify taints"},
		"register tainted":     {stock.Create, "nodes", "", "", "n1", tainted, nil, ""},
		"status":               {stock.Update, "nodes", "status", "", "n1", self, self, ""},
		"another's status":     {stock.Update, "nodes", "status", "", "n2", self, self, "not allowed to modify node"},
		"pod":                  {stock.Create, "pods", "", "a", "p", pod(), nil, "can only create mirror pods"},
		"mirror pod":           {stock.Create, "pods", "", "a", "m", mirror, nil, ""},
		"mirror of a secret":   {stock.Create, "pods", "", "a", "m", reading, nil, "can not create pods that reference"},
		"mirror elsewhere":     {stock.Create, "pods", "", "a", "m", changed(mirror, func(o metav1.Object) { o.(*corev1.Pod).Spec.NodeName = "n2" }), nil, "set to itself"},
		"mirror without owner": {stock.Create, "pods", "", "a", "m", changed(mirror, func(o metav1.Object) { o.SetOwnerReferences(nil) }), nil, "single owner"},
		"delete own pod":       {stock.Delete, "pods", "", "a", "mine", nil, nil, ""},
		"delete other pod":     {stock.Delete, "pods", "", "a", "theirs", nil, nil, "set to itself"},
		"evict own pod":        {stock.Create, "pods", "eviction", "a", "mine", nil, nil, ""},
		"evict other pod":      {stock.Create, "pods", "eviction", "a", "theirs", nil, nil, "set to itself"},
		"own pod's status":     {stock.Update, "pods", "status", "a", "mine", bound("mine", "n1"), bound("mine", "n1"), ""},
		"other pod's status":   {stock.Update, "pods", "status", "a", "theirs", bound("theirs", "n2"), bound("theirs", "n2"), "set to itself"},
		"labels by status":     {stock.Update, "pods", "status", "a", "mine", changed(bound("mine", "n1"), label("x")), bound("mine", "n1"), "cannot update labels"},
		"another subresource":  {stock.Create, "pods", "binding", "a", "mine", nil, nil, "unexpected operation"},
		"token":                {stock.Create, "serviceaccounts", "token", "a", "sa", token("mine"), nil, ""},
		"token for vault":      {stock.Create, "serviceaccounts", "token", "a", "sa", token("mine", "vault"), nil, ""},
		"token for others":     {stock.Create, "serviceaccounts", "token", "a", "sa", token("mine", "bank"), nil, "not found in pod spec"},
		"token of other pod":   {stock.Create, "serviceaccounts", "token", "a", "sa", token("theirs"), nil, "set to itself"},
		"token without a pod":  {stock.Create, "serviceaccounts", "token", "a", "sa", &authenticationv1.TokenRequest{}, nil, "not bound to a pod"},
		"lease":                {stock.Create, leases, "", "kube-node-lease", "", lease("n1"), nil, ""},
		"other lease":          {stock.Create, leases, "", "kube-node-lease", "", lease("n2"), nil, "same name"},
		"lease elsewhere":      {stock.Update, leases, "", "kube-system", "n1", lease("n1"), nil, "system namespace"},
		"certificate":          {stock.Create, csrs, "", "", "x", csr(t, "system:node:n1"), nil, ""},
		"other certificate":    {stock.Create, csrs, "", "", "x", csr(t, "system:node:n2"), nil, "CN=system:node:n1"},
	}
	node := &user.DefaultInfo{Name: "system:node:n1", Groups: []string{"system:nodes"}}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			group, resource, ok := strings.Cut(tt.resource, "/")
			if !ok {
				group, resource = "", tt.resource
			}
			gvr := schema.GroupVersionResource{Group: group, Version: "v1", Resource: resource}
			ask := func(u user.Info) error {
				a := stock.NewAttributesRecord(tt.obj, tt.old, schema.GroupVersionKind{}, tt.namespace, tt.name, gvr, tt.sub, tt.op, nil, false, u)
				return plugin.Admit(t.Context(), a, nil)
			}
			err := ask(node)
			if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if err := ask(&user.DefaultInfo{Name: "ann"}); err != nil {
				t.Errorf("a user is restricted: %v", err)
			}
		})
	}
}
