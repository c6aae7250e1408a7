package registry_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"

	"barque.dev/internal/apiserver/registry"
)

func TestBinding(t *testing.T) {
	s := start(t, nil)
	made := create[*corev1.Pod](s, "pods", "default", newPod("web"))
	bindPod(s, "web", "node1")
	pod := get[*corev1.Pod](s, "pods", "default", "web")
	if pod.Spec.NodeName != "node1" || len(pod.Status.Conditions) != 1 || pod.Status.Conditions[0].Type != corev1.PodScheduled {
		t.Errorf("pod is %s", asJSON(t, pod))
	}
	if asJSON(t, pod.ManagedFields) != asJSON(t, made.ManagedFields) {
		t.Errorf("binding is not recorded by stock, here: %s", asJSON(t, pod.ManagedFields))
	}
	again := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"}, Target: corev1.ObjectReference{Name: "node2"}}
	_, err := s.Create(t.Context(), s.sub("pods", "default", "web", "binding"), again, nil)
	if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), "already assigned to node") {
		t.Errorf("binding it twice: %v", err)
	}
	again.UID, again.Name = "other", "two"
	create[*corev1.Pod](s, "pods", "default", newPod("two"))
	if _, err = s.Create(t.Context(), s.sub("pods", "default", "two", "binding"), again, nil); !apierrors.IsConflict(err) {
		t.Errorf("binding another UID: %v", err)
	}
	again.UID = ""
	if _, err = s.Create(t.Context(), s.req("bindings", "default", ""), again, nil); err != nil {
		t.Errorf("by the older resource: %v", err)
	}
}

// What is wrong with a binding is told whether or not its pod exists.
func TestBindingInvalid(t *testing.T) {
	s := start(t, nil)
	for _, tt := range []struct {
		about  string
		target corev1.ObjectReference
		fault  string
	}{
		{"no node", corev1.ObjectReference{Kind: "Node"}, "target.name: Required value"},
		{"no name that a node can have", corev1.ObjectReference{Name: "a/b/c"}, `target.name: Invalid value: "a/b/c"`},
		{"another kind", corev1.ObjectReference{Kind: "Pod", Name: "a/b/c"}, `target.kind: Unsupported value: "Pod"`},
	} {
		binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "absent", Namespace: "default"}, Target: tt.target}
		_, err := s.Create(t.Context(), s.req("bindings", "default", ""), binding, nil)
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), tt.fault) {
			t.Errorf("%s: %v", tt.about, err)
		}
	}
}

func TestEviction(t *testing.T) {
	s := start(t, nil)
	for _, name := range []string{"a", "b"} {
		create[*corev1.Pod](s, "pods", "default", newPod(name))
		bindPod(s, name, "node1")
		pod := get[*corev1.Pod](s, "pods", "default", name)
		pod.Status.Phase = corev1.PodRunning
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue})
		if _, _, err := s.Update(t.Context(), s.sub("pods", "default", name, "status"), pod, nil); err != nil {
			t.Fatal(err)
		}
	}
	one := intstr.FromInt32(1)
	pdb := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}},
	}
	pdb = create[*policyv1.PodDisruptionBudget](s, "poddisruptionbudgets.policy", "default", pdb)
	pdb.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: 1, DisruptionsAllowed: 1, CurrentHealthy: 2, DesiredHealthy: 1, ExpectedPods: 2}
	if _, _, err := s.Update(t.Context(), s.sub("poddisruptionbudgets.policy", "default", "web", "status"), pdb, nil); err != nil {
		t.Fatal(err)
	}
	evict := func(name string) error {
		e := &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}}
		_, err := s.Create(t.Context(), s.sub("pods", "default", name, "eviction"), e, nil)
		return err
	}
	if err := evict("a"); err != nil {
		t.Fatal(err)
	}
	pod := get[*corev1.Pod](s, "pods", "default", "a")
	last := pod.Status.Conditions[len(pod.Status.Conditions)-1]
	if pod.DeletionTimestamp == nil || last.Type != corev1.DisruptionTarget {
		t.Errorf("the evicted pod is %s", asJSON(t, pod))
	}
	got := get[*policyv1.PodDisruptionBudget](s, "poddisruptionbudgets.policy", "default", "web")
	if got.Status.DisruptionsAllowed != 0 || len(got.Status.DisruptedPods) != 1 {
		t.Errorf("the budget is %s", asJSON(t, got.Status))
	}
	err := evict("b")
	if !apierrors.IsTooManyRequests(err) || !apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause) {
		t.Errorf("a second eviction: %v", err)
	}
	if pod := get[*corev1.Pod](s, "pods", "default", "b"); pod.DeletionTimestamp != nil {
		t.Error("it was deleted all the same")
	}
	if err := evict("a"); err != nil {
		t.Errorf("a pod that is going anyway: %v", err)
	}
	if err := evict("none"); !apierrors.IsNotFound(err) {
		t.Errorf("a pod that is not there: %v", err)
	}
}

func TestVirtualResources(t *testing.T) {
	s := start(t, func(cfg *registry.Config) {
		cfg.Virtual = map[string]registry.Handler{
			"tokenreviews.authentication.k8s.io": func(_ context.Context, _ registry.Request, obj runtime.Object) (runtime.Object, error) {
				review := obj.(*authenticationv1.TokenReview)
				review.Status.Authenticated = review.Spec.Token == "good"
				return review, nil
			},
		}
	})
	result, err := s.Create(t.Context(), s.req("tokenreviews.authentication.k8s.io", "", ""),
		&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: "good"}}, nil)
	if err != nil || !kept2[*authenticationv1.TokenReview](t, result.Object).Status.Authenticated {
		t.Errorf("got %v, %v", result.Object, err)
	}
	if _, err := s.Get(t.Context(), s.req("tokenreviews.authentication.k8s.io", "", "x"), nil); !apierrors.IsMethodNotSupported(err) {
		t.Errorf("reading one: %v", err)
	}
}

func TestSigningRequestsRecordWhoAsks(t *testing.T) {
	s := start(t, nil)
	ctx := request.WithUser(t.Context(), &user.DefaultInfo{Name: "jane", Groups: []string{"devs"}})
	csr := &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "r"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: []byte(csrPEM), SignerName: "example.com/s", Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth}, Username: "mallory",
		},
	}
	result, err := s.Create(ctx, s.req("certificatesigningrequests.certificates.k8s.io", "", ""), csr, nil)
	if err != nil {
		t.Fatal(err)
	}
	made := kept[*certificatesv1.CertificateSigningRequest](s, result)
	if made.Spec.Username != "jane" {
		t.Errorf("it is said to be of %q", made.Spec.Username)
	}
	made.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "x"}}
	if _, _, err = s.Update(ctx, s.sub("certificatesigningrequests.certificates.k8s.io", "", "r", "status"), made, nil); err == nil {
		if got := get[*certificatesv1.CertificateSigningRequest](s, "certificatesigningrequests.certificates.k8s.io", "", "r"); len(got.Status.Conditions) != 0 {
			t.Error("the status subresource approves")
		}
	}
	made = get[*certificatesv1.CertificateSigningRequest](s, "certificatesigningrequests.certificates.k8s.io", "", "r")
	made.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "x"}}
	if _, _, err = s.Update(ctx, s.sub("certificatesigningrequests.certificates.k8s.io", "", "r", "approval"), made, nil); err != nil {
		t.Fatal(err)
	}
	if got := get[*certificatesv1.CertificateSigningRequest](s, "certificatesigningrequests.certificates.k8s.io", "", "r"); len(got.Status.Conditions) != 1 {
		t.Error("the approval subresource does not approve")
	}
}

func TestEventsOfTwoGroups(t *testing.T) {
	s := start(t, nil)
	event := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: "e", Namespace: "default"},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "web", UID: "u"},
		Reason:         "Started", Message: "m", Type: "Normal", Source: corev1.EventSource{Component: "kubelet"},
	}
	create[*corev1.Event](s, "events", "default", event)
	result, err := s.Get(t.Context(), s.req("events.events.k8s.io", "default", "e"), nil)
	if err != nil {
		t.Fatal(err)
	}
	obj, err := result.Get()
	if err != nil {
		t.Fatal(err)
	}
	res, _ := s.Lookup(eventsv1.SchemeGroupVersion.WithResource("events"))
	other, err := res.Codec().Convert(obj, eventsv1.SchemeGroupVersion)
	if err != nil {
		t.Fatal(err)
	}
	if e, ok := other.(*eventsv1.Event); !ok || e.Regarding.Name != "web" || e.Note != "m" {
		t.Errorf("as events.k8s.io it is %s", asJSON(t, other))
	}
	newer := &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "f", Namespace: "default"}, EventTime: metav1.NowMicro(),
		ReportingController: "example.com/c", ReportingInstance: "c-1", Action: "Do", Reason: "Done", Type: "Normal",
		Regarding: corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "web"},
	}
	if _, err = s.Create(t.Context(), s.req("events.events.k8s.io", "default", ""), newer, nil); err != nil {
		t.Fatal(err)
	}
	if got := get[*corev1.Event](s, "events", "default", "f"); got.ReportingController != "example.com/c" {
		t.Errorf("as core it is %s", asJSON(t, got))
	}
}

func TestGuardsRefuse(t *testing.T) {
	s := start(t, func(cfg *registry.Config) {
		cfg.Guards = map[schema.GroupResource]registry.Guard{
			{Resource: "configmaps"}: func(_ context.Context, req registry.Request, _, old runtime.Object) error {
				if old == nil {
					return nil
				}
				return apierrors.NewForbidden(req.Resource.GroupResource, req.Name, errors.New("it is guarded"))
			},
		}
	})
	made := create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("one", nil))
	made.Data = map[string]string{"a": "b"}
	if _, _, err := s.Update(t.Context(), s.req("configmaps", "default", "one"), made, nil); !apierrors.IsForbidden(err) {
		t.Errorf("got %v", err)
	}
}
