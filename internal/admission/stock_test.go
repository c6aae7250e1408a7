package admission_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	stock "k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/admission"
	"barque.dev/internal/testkit/fakeclient"
)

func list(pairs ...string) corev1.ResourceList {
	out := corev1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		out[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return out
}

func reader(state ...client.Object) client.Reader {
	return fakeclient.Builder().WithObjects(state...).Build()
}

// about makes attributes of any resource.
func about(op stock.Operation, resource, sub string, obj, old runtime.Object) stock.Attributes {
	name, group, _ := strings.Cut(resource, ".")
	gvr := schema.GroupVersionResource{Group: group, Version: "v1", Resource: name}
	return stock.NewAttributesRecord(obj, old, schema.GroupVersionKind{}, "a", "x", gvr, sub, op, nil, false, &user.DefaultInfo{Name: "ann"})
}

// pass asks a plugin as a chain would.
func pass(t *testing.T, plugin stock.Interface, a stock.Attributes) error {
	t.Helper()
	chain := admission.Chain{{Name: "it", Interface: plugin}}
	if err := chain.Admit(t.Context(), a, nil); err != nil {
		return err
	}
	return validate(t, chain, a)
}

// expect checks a refusal: want is a part of its words, empty for none.
func expect(t *testing.T, err error, want string) {
	t.Helper()
	if (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestOrder(t *testing.T) {
	want := []string{
		"LimitRanger", "ServiceAccount", "NodeRestriction", "TaintNodesByCondition", "PodSecurity", "Priority", "DefaultTolerationSeconds",
		"DefaultStorageClass", "StorageObjectInUseProtection", "PersistentVolumeClaimResize", "RuntimeClass", "CertificateApproval",
		"CertificateSigning", "ClusterTrustBundleAttest", "CertificateSubjectRestriction", "DefaultIngressClass", "PodTopologyLabels",
		"NodeDeclaredFeatureValidator", "PodResizeValidator",
	}
	chain := defaults(t)
	if got := chain.Names(); !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
	if got := chain.Without("ServiceAccount", "LimitRanger").Names(); !slices.Equal(got, want[2:]) {
		t.Errorf("without two of them: %v", got)
	}
	if got := chain.Names(); !slices.Equal(got, want) {
		t.Errorf("the chain was changed: %v", got)
	}
}

func limitRange(items ...corev1.LimitRangeItem) *corev1.LimitRange {
	return &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "limits"}, Spec: corev1.LimitRangeSpec{Limits: items}}
}

func TestLimitRangeDefaults(t *testing.T) {
	p := pod(func(p *corev1.Pod) { p.Spec.Containers[0].Resources.Requests = list("cpu", "300m") })
	plugin := admission.NewLimitRanger(reader(limitRange(corev1.LimitRangeItem{
		Type: corev1.LimitTypeContainer, Default: list("cpu", "500m", "memory", "1Gi"), DefaultRequest: list("cpu", "100m", "memory", "1Mi"),
	})))
	if err := pass(t, plugin, attributes(stock.Create, "pods", "", p, nil)); err != nil {
		t.Fatal(err)
	}
	got := p.Spec.Containers[0].Resources
	if got.Requests.Cpu().String() != "300m" || got.Requests.Memory().String() != "1Mi" || got.Limits.Cpu().String() != "500m" || got.Limits.Memory().String() != "1Gi" {
		t.Errorf("container: %v", got)
	}
	if init := p.Spec.InitContainers[0].Resources; init.Requests.Cpu().String() != "100m" || init.Limits.Memory().String() != "1Gi" {
		t.Errorf("init container: %v", init)
	}
	const note = "LimitRanger plugin set: memory request for container c; cpu, memory limit for container c; " +
		"cpu, memory request for init container i; cpu, memory limit for init container i"
	if p.Annotations["kubernetes.io/limit-ranger"] != note {
		t.Errorf("annotation: %q", p.Annotations["kubernetes.io/limit-ranger"])
	}
}

func TestLimitRanges(t *testing.T) {
	container := func(requests, limits corev1.ResourceList) *corev1.Pod {
		return pod(func(p *corev1.Pod) {
			p.Spec.InitContainers = nil
			p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: requests, Limits: limits}
		})
	}
	two := func(each corev1.ResourceList) *corev1.Pod {
		p := container(each, each)
		p.Spec.Containers = append(p.Spec.Containers, p.Spec.Containers[0])
		return p
	}
	claim := func(size string) *corev1.PersistentVolumeClaim {
		c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "c"}}
		c.Spec.Resources.Requests = list("storage", size)
		return c
	}
	perContainer := corev1.LimitRangeItem{Type: corev1.LimitTypeContainer, Min: list("cpu", "50m"), Max: list("cpu", "1"), MaxLimitRequestRatio: list("cpu", "2")}
	perPod := corev1.LimitRangeItem{Type: corev1.LimitTypePod, Max: list("cpu", "1")}
	perClaim := corev1.LimitRangeItem{Type: corev1.LimitTypePersistentVolumeClaim, Min: list("storage", "1Gi"), Max: list("storage", "2Gi")}
	for name, tt := range map[string]struct {
		item corev1.LimitRangeItem
		a    stock.Attributes
		want string
	}{
		"fits":             {perContainer, attributes(stock.Create, "pods", "", container(list("cpu", "500m"), list("cpu", "1")), nil), ""},
		"no request":       {perContainer, attributes(stock.Create, "pods", "", container(nil, list("cpu", "1")), nil), "minimum cpu usage per Container is 50m.  No request is specified"},
		"too little":       {perContainer, attributes(stock.Create, "pods", "", container(list("cpu", "10m"), list("cpu", "1")), nil), "is 50m, but request is 10m"},
		"limit too low":    {perContainer, attributes(stock.Create, "pods", "", container(list("cpu", "50m"), list("cpu", "40m")), nil), "is 50m, but limit is 40m"},
		"no limit":         {perContainer, attributes(stock.Create, "pods", "", container(list("cpu", "50m"), nil), nil), "maximum cpu usage per Container is 1.  No limit is specified"},
		"too much":         {perContainer, attributes(stock.Create, "pods", "", container(list("cpu", "2"), list("cpu", "2")), nil), "is 1, but limit is 2"},
		"ratio":            {perContainer, attributes(stock.Create, "pods", "", container(list("cpu", "100m"), list("cpu", "300m")), nil), "ratio per Container is 2, but provided ratio is 3.000000"},
		"pod fits":         {perPod, attributes(stock.Create, "pods", "", two(list("cpu", "500m")), nil), ""},
		"pod too large":    {perPod, attributes(stock.Create, "pods", "", two(list("cpu", "501m")), nil), "maximum cpu usage per Pod is 1, but limit is 1002m"},
		"pods that change": {perPod, attributes(stock.Update, "pods", "", two(list("cpu", "501m")), pod()), ""},
		"resized pods":     {perPod, attributes(stock.Update, "pods", "resize", two(list("cpu", "501m")), pod()), "but limit is 1002m"},
		"status of pods":   {perPod, attributes(stock.Update, "pods", "status", two(list("cpu", "501m")), pod()), ""},
		"claim fits":       {perClaim, attributes(stock.Create, "persistentvolumeclaims", "", claim("1Gi"), nil), ""},
		"claim too small":  {perClaim, attributes(stock.Create, "persistentvolumeclaims", "", claim("1Mi"), nil), "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 1Mi"},
		"claim grows":      {perClaim, attributes(stock.Update, "persistentvolumeclaims", "", claim("3Gi"), claim("1Gi")), "is 2Gi, but request is 3Gi"},
	} {
		t.Run(name, func(t *testing.T) {
			expect(t, pass(t, admission.NewLimitRanger(reader(limitRange(tt.item))), tt.a), tt.want)
		})
	}
}

func TestNewNodesAreNotReady(t *testing.T) {
	node := &corev1.Node{}
	for range 2 {
		if err := pass(t, admission.NewTaintNodesByCondition(), about(stock.Create, "nodes", "", node, nil)); err != nil {
			t.Fatal(err)
		}
	}
	if len(node.Spec.Taints) != 1 || node.Spec.Taints[0].Key != corev1.TaintNodeNotReady || node.Spec.Taints[0].Effect != corev1.TaintEffectNoSchedule {
		t.Errorf("got %v", node.Spec.Taints)
	}
}

func TestDefaultClasses(t *testing.T) {
	day := func(n int) metav1.Time { return metav1.NewTime(time.Date(2030, 1, n, 0, 0, 0, 0, time.UTC)) }
	class := func(name, annotation string, age metav1.Time) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, CreationTimestamp: age, Annotations: map[string]string{annotation: "true"}}
	}
	const marked, old = "storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"
	r := reader(&storagev1.StorageClass{ObjectMeta: class("older", old, day(1))}, &storagev1.StorageClass{ObjectMeta: class("b", marked, day(2))},
		&storagev1.StorageClass{ObjectMeta: class("a", marked, day(2))}, &storagev1.StorageClass{ObjectMeta: class("not", "x", day(3))},
		&networkingv1.IngressClass{ObjectMeta: class("front", networkingv1.AnnotationIsDefaultIngressClass, day(1))})
	claim, none := &corev1.PersistentVolumeClaim{}, &corev1.PersistentVolumeClaim{Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: new(string)}}
	ingress, legacy := &networkingv1.Ingress{}, &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{"kubernetes.io/ingress.class": "x"}}}
	for _, c := range []*corev1.PersistentVolumeClaim{claim, none} {
		expect(t, pass(t, admission.NewDefaultStorageClass(r), about(stock.Create, "persistentvolumeclaims", "", c, nil)), "")
	}
	for _, i := range []*networkingv1.Ingress{ingress, legacy} {
		expect(t, pass(t, admission.NewDefaultIngressClass(r), about(stock.Create, "ingresses.networking.k8s.io", "", i, nil)), "")
	}
	if claim.Spec.StorageClassName == nil || *claim.Spec.StorageClassName != "a" || *none.Spec.StorageClassName != "" {
		t.Errorf("claims: %v, %v", claim.Spec.StorageClassName, *none.Spec.StorageClassName)
	}
	if ingress.Spec.IngressClassName == nil || *ingress.Spec.IngressClassName != "front" || legacy.Spec.IngressClassName != nil {
		t.Errorf("ingresses: %v, %v", ingress.Spec.IngressClassName, legacy.Spec.IngressClassName)
	}
}

func TestStorageInUse(t *testing.T) {
	for want, obj := range map[string]client.Object{
		"kubernetes.io/pvc-protection": &corev1.PersistentVolumeClaim{}, "kubernetes.io/pv-protection": &corev1.PersistentVolume{},
		"kubernetes.io/vac-protection": &storagev1.VolumeAttributesClass{},
	} {
		for range 2 {
			expect(t, pass(t, admission.NewStorageObjectInUseProtection(), about(stock.Create, "x", "", obj, nil)), "")
		}
		if got := obj.GetFinalizers(); !slices.Equal(got, []string{want}) {
			t.Errorf("%T: %v", obj, got)
		}
	}
}

func TestClaimsGrow(t *testing.T) {
	yes := true
	r := reader(&storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "elastic"}, AllowVolumeExpansion: &yes}, &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "rigid"}})
	claim := func(size, class string, phase corev1.PersistentVolumeClaimPhase) *corev1.PersistentVolumeClaim {
		c := &corev1.PersistentVolumeClaim{Status: corev1.PersistentVolumeClaimStatus{Phase: phase}}
		c.Spec.StorageClassName, c.Spec.Resources.Requests = &class, list("storage", size)
		return c
	}
	for name, tt := range map[string]struct {
		now, was *corev1.PersistentVolumeClaim
		want     string
	}{
		"grows":     {claim("2Gi", "elastic", corev1.ClaimBound), claim("1Gi", "elastic", corev1.ClaimBound), ""},
		"shrinks":   {claim("1Gi", "rigid", corev1.ClaimBound), claim("2Gi", "rigid", corev1.ClaimBound), ""},
		"pending":   {claim("2Gi", "elastic", ""), claim("1Gi", "elastic", corev1.ClaimPending), "Only bound persistent volume claims"},
		"rigid":     {claim("2Gi", "rigid", corev1.ClaimBound), claim("1Gi", "rigid", corev1.ClaimBound), "must support resize"},
		"classless": {claim("2Gi", "", corev1.ClaimBound), claim("1Gi", "", corev1.ClaimBound), "must support resize"},
		"no class":  {claim("2Gi", "gone", corev1.ClaimBound), claim("1Gi", "gone", corev1.ClaimBound), "must support resize"},
	} {
		t.Run(name, func(t *testing.T) {
			expect(t, pass(t, admission.NewPersistentVolumeClaimResize(r), about(stock.Update, "persistentvolumeclaims", "", tt.now, tt.was)), tt.want)
		})
	}
}

func TestRuntimeClasses(t *testing.T) {
	class := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "vm"}, Handler: "kata", Overhead: &nodev1.Overhead{PodFixed: list("memory", "10Mi")},
		Scheduling: &nodev1.Scheduling{NodeSelector: map[string]string{"kvm": "yes"}, Tolerations: []corev1.Toleration{{Key: "vm", Operator: corev1.TolerationOpExists}}}}
	kept := class.DeepCopy()
	plain := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "plain"}, Handler: "runc"}
	named := func(name string, change ...func(*corev1.Pod)) *corev1.Pod {
		p := pod(change...)
		p.Spec.RuntimeClassName = &name
		return p
	}
	overhead := func(memory string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Overhead = list("memory", memory) }
	}
	for name, tt := range map[string]struct {
		pod  *corev1.Pod
		want string
	}{
		"none":             {pod(), ""},
		"class":            {named("vm"), ""},
		"same overhead":    {named("vm", overhead("10Mi")), ""},
		"other overhead":   {named("vm", overhead("11Mi")), "doesn't match"},
		"own overhead":     {pod(overhead("1Mi")), "without corresponding"},
		"class without":    {named("plain", overhead("1Mi")), "without corresponding"},
		"missing":          {named("gone"), `pod rejected: RuntimeClass "gone" not found`},
		"elsewhere":        {named("vm", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"kvm": "no"} }), "conflict: runtimeClass.scheduling.nodeSelector[kvm] = yes"},
		"another selector": {named("vm", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }), ""},
	} {
		t.Run(name, func(t *testing.T) {
			shared := reader(class, plain)
			err := pass(t, admission.NewRuntimeClass(shared), attributes(stock.Create, "pods", "", tt.pod, nil))
			expect(t, err, tt.want)
			if err == nil && tt.pod.Spec.RuntimeClassName != nil {
				if tt.pod.Spec.NodeSelector["kvm"] != "yes" || len(tt.pod.Spec.Tolerations) != 1 || tt.pod.Spec.Overhead.Memory().String() != "10Mi" {
					t.Errorf("got %+v", tt.pod.Spec)
				}
			}
		})
	}
	if !reflect.DeepEqual(class.Overhead, kept.Overhead) || !reflect.DeepEqual(class.Scheduling, kept.Scheduling) {
		t.Error("the class was changed")
	}
}

// signers allows verbs on names.
type signers map[string]string

func (s signers) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if a.GetResource() == "signers" && a.GetAPIGroup() == "certificates.k8s.io" && s[a.GetVerb()] == a.GetName() {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

func TestSigners(t *testing.T) {
	request := func(certificate string) *certificatesv1.CertificateSigningRequest {
		return &certificatesv1.CertificateSigningRequest{Spec: certificatesv1.CertificateSigningRequestSpec{SignerName: "ex.com/one"},
			Status: certificatesv1.CertificateSigningRequestStatus{Certificate: []byte(certificate)}}
	}
	bundle := func(owner, text string) *certificatesv1beta1.ClusterTrustBundle {
		return &certificatesv1beta1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Finalizers: []string{owner}},
			Spec: certificatesv1beta1.ClusterTrustBundleSpec{SignerName: "ex.com/one", TrustBundle: text}}
	}
	const csrs, bundles = "certificatesigningrequests.certificates.k8s.io", "clustertrustbundles.certificates.k8s.io"
	for name, tt := range map[string]struct {
		verb string
		a    stock.Attributes
		free bool // needs no permission
	}{
		"approve":       {"approve", about(stock.Update, csrs, "approval", request(""), request("")), false},
		"sign":          {"sign", about(stock.Update, csrs, "status", request("x"), request("")), false},
		"same status":   {"sign", about(stock.Update, csrs, "status", request("x"), request("x")), true},
		"request":       {"sign", about(stock.Update, csrs, "", request("x"), request("")), true},
		"publish":       {"attest", about(stock.Create, bundles, "", bundle("", "x"), nil), false},
		"change bundle": {"attest", about(stock.Update, bundles, "", bundle("", "y"), bundle("", "x")), false},
		"collect":       {"attest", about(stock.Update, bundles, "", bundle("gc", "x"), bundle("", "x")), true},
		"nobody's":      {"attest", about(stock.Create, bundles, "", &certificatesv1beta1.ClusterTrustBundle{}, nil), true},
	} {
		t.Run(name, func(t *testing.T) {
			for allowed, may := range map[string]bool{"ex.com/one": true, "ex.com/*": true, "ex.com/two": false, "": false} {
				authz := signers{tt.verb: allowed}
				chain := admission.Chain{{Interface: admission.NewCertificateApproval(authz)}, {Interface: admission.NewCertificateSigning(authz)},
					{Interface: admission.NewClusterTrustBundleAttest(authz)}, {Interface: admission.NewCertificateSubjectRestriction()}}
				err := chain.Validate(t.Context(), tt.a, nil)
				if (err == nil) != (may || tt.free) {
					t.Errorf("with %q: %v", allowed, err)
				}
			}
		})
	}
}

func TestNobodyAsksForMasters(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ask := func(signer, organization string) error {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x", Organization: []string{organization}}}, key)
		if err != nil {
			t.Fatal(err)
		}
		csr := &certificatesv1.CertificateSigningRequest{Spec: certificatesv1.CertificateSigningRequestSpec{
			SignerName: signer, Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}}
		return pass(t, admission.NewCertificateSubjectRestriction(), about(stock.Create, "certificatesigningrequests.certificates.k8s.io", "", csr, nil))
	}
	expect(t, ask(certificatesv1.KubeAPIServerClientSignerName, "system:masters"), "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed")
	expect(t, ask(certificatesv1.KubeAPIServerClientSignerName, "staff"), "")
	expect(t, ask(certificatesv1.KubeAPIServerClientSignerName, "barque:servers"), "use of kubernetes.io/kube-apiserver-client signer with barque:servers group is not allowed")
	expect(t, ask("ex.com/one", "system:masters"), "")
}

func TestTopologyLabels(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{corev1.LabelTopologyZone: "z", corev1.LabelTopologyRegion: "r", "x": "y"}}}
	plugin := admission.NewPodTopologyLabels(reader(node))
	binding := &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}
	expect(t, pass(t, plugin, attributes(stock.Create, "pods", "binding", binding, nil)), "")
	placed := pod(func(p *corev1.Pod) {
		p.Spec.NodeName, p.Labels = "n", map[string]string{"mine": "1", corev1.LabelTopologyZone: "wrong"}
	})
	expect(t, pass(t, plugin, attributes(stock.Create, "pods", "", placed, nil)), "")
	if len(binding.Labels) != 2 || binding.Labels[corev1.LabelTopologyZone] != "z" || len(placed.Labels) != 3 || placed.Labels[corev1.LabelTopologyZone] != "z" {
		t.Errorf("got %v, %v", binding.Labels, placed.Labels)
	}
	for _, free := range []*corev1.Pod{pod(), pod(func(p *corev1.Pod) { p.Spec.NodeName = "gone" })} {
		if err := pass(t, plugin, attributes(stock.Create, "pods", "", free, nil)); err != nil || len(free.Labels) != 0 {
			t.Errorf("got %v, %v", free.Labels, err)
		}
	}
}

func TestResizes(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{Allocatable: list("cpu", "1", "memory", "1Gi")}}
	windows := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "w", Labels: map[string]string{corev1.LabelOSStable: "windows"}}}
	asking := func(node, cpu string, generation int64) *corev1.Pod {
		return pod(func(p *corev1.Pod) {
			p.Spec.NodeName, p.Generation, p.Spec.Containers[0].Resources.Requests = node, generation, list("cpu", cpu)
		})
	}
	atPod := asking("n", "1m", 2)
	atPod.Spec.Resources = &corev1.ResourceRequirements{Requests: list("cpu", "2m")}
	for name, tt := range map[string]struct {
		pod  *corev1.Pod
		sub  string
		want string
	}{
		"fits":        {asking("n", "1", 2), "resize", ""},
		"too large":   {asking("n", "1001m", 2), "resize", "cpu, requested: 1001, allocatable: 1000"},
		"unchanged":   {asking("n", "1001m", 1), "resize", ""},
		"an update":   {asking("n", "1001m", 2), "", ""},
		"waits":       {asking("", "1001m", 2), "resize", ""},
		"no node":     {asking("gone", "1m", 2), "resize", `node "gone" not found`},
		"windows":     {asking("w", "1m", 2), "resize", "only supported on linux nodes"},
		"undeclared":  {atPod, "resize", "pod update requires features"},
		"not resized": {atPod, "status", ""},
	} {
		t.Run(name, func(t *testing.T) {
			chain := admission.Chain{{Interface: admission.NewNodeDeclaredFeatureValidator(reader(node, windows))}, {Interface: admission.NewPodResizeValidator(reader(node, windows))}}
			expect(t, chain.Validate(t.Context(), attributes(stock.Update, "pods", tt.sub, tt.pod, asking(tt.pod.Spec.NodeName, "1m", 1)), nil), tt.want)
		})
	}
}
