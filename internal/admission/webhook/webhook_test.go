package webhook_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	registration "k8s.io/api/admissionregistration/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/utils/ptr"

	"barque.dev/internal/store"
)

func TestMutation(t *testing.T) {
	c := start(t)
	h := serve(t, patch(`[{"op": "add", "path": "/data/b", "value": "2"}, {"op": "replace", "path": "/data/a", "value": "changed"}]`))
	c.mutate("m", h.Server, nil)
	got, err := c.create(t.Context(), "x", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.Data["a"] != "changed" || got.Data["b"] != "2" {
		t.Errorf("kept %v", got.Data)
	}
	asked := h.asked()
	if len(asked) != 1 {
		t.Fatalf("asked %d times", len(asked))
	}
	q := asked[0]
	var sent corev1.ConfigMap
	if err := json.Unmarshal(q.Object.Raw, &sent); err != nil {
		t.Fatal(err)
	}
	if q.Operation != admissionv1.Create || q.Name != "x" || q.Namespace != "default" || q.Kind.Kind != "ConfigMap" || q.Resource.Resource != "configmaps" ||
		q.UserInfo.Username != "system:apiserver" || len(q.OldObject.Raw) != 0 || *q.DryRun ||
		sent.Kind != "ConfigMap" || sent.APIVersion != "v1" || sent.Data["a"] != "1" {
		t.Errorf("asked %+v", q)
	}
}

func TestDenial(t *testing.T) {
	c := start(t)
	for _, test := range []struct {
		name, want string
		code       int32
		answer     func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse
	}{
		{"message", `admission webhook "message.example.com" denied the request: not today`, 400, deny("not today")},
		{"silent", `admission webhook "silent.example.com" denied the request without explanation`, 400,
			func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
				return &admissionv1.AdmissionResponse{}
			}},
		{"reason", `admission webhook "reason.example.com" denied the request: Teapot`, 418,
			func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
				return &admissionv1.AdmissionResponse{Result: &metav1.Status{Code: 418, Reason: "Teapot"}}
			}},
	} {
		for _, kind := range []string{"validating", "mutating"} {
			h := serve(t, test.answer)
			if kind == "validating" {
				c.validate(test.name, h.Server, nil)
			} else {
				c.mutate(test.name, h.Server, nil)
			}
			_, err := c.create(t.Context(), "x", nil, nil)
			var status *apierrors.StatusError
			if !errors.As(err, &status) || status.ErrStatus.Message != test.want || status.ErrStatus.Code != test.code {
				t.Errorf("%s: %v, want %q", kind, err, test.want)
			}
			c.forget(kind+"webhookconfigurations.admissionregistration.k8s.io", test.name)
			if _, err := c.create(t.Context(), test.name+"-"+kind, nil, nil); err != nil {
				t.Errorf("the %s webhook is gone: %v", kind, err)
			}
		}
	}
}

// forget deletes a configuration.
func (c *cluster) forget(resource, name string) {
	c.t.Helper()
	if _, _, err := c.Delete(c.t.Context(), c.req(resource, "", name), nil); err != nil {
		c.t.Fatal(err)
	}
}

func TestFailurePolicyAndTimeout(t *testing.T) {
	c := start(t)
	stop := make(chan struct{})
	slow := raw(t, func(_ http.ResponseWriter, req *http.Request) {
		select {
		case <-stop:
		case <-req.Context().Done():
		}
	})
	defer close(stop)
	gone := raw(t, nil)
	gone.Close()
	broken := raw(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	for _, test := range []struct {
		name, want string
		tune       func(*registration.ValidatingWebhook)
	}{
		{"slow", "context deadline exceeded", func(h *registration.ValidatingWebhook) {
			h.ClientConfig.URL, h.TimeoutSeconds = ptr.To(slow.URL), ptr.To[int32](1)
		}},
		{"gone", "connection refused", func(h *registration.ValidatingWebhook) { h.ClientConfig.URL = ptr.To(gone.URL) }},
		{"broken", "status code 418", func(h *registration.ValidatingWebhook) { h.ClientConfig.URL = ptr.To(broken.URL) }},
		{"stranger", "certificate signed by unknown authority", func(h *registration.ValidatingWebhook) { h.ClientConfig.CABundle = nil }},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, policy := range []registration.FailurePolicyType{registration.Fail, registration.Ignore} {
				c.validate(test.name, broken, func(h *registration.ValidatingWebhook) {
					h.FailurePolicy = ptr.To(policy)
					test.tune(h)
				})
				begin := time.Now()
				_, err := c.create(t.Context(), strings.ToLower(test.name+"-"+string(policy)), nil, nil)
				if took := time.Since(begin); took > 9*time.Second && test.name == "slow" {
					t.Errorf("%s: it took %v, the webhook may take 1 s, not the default of 10 s", policy, took)
				}
				c.forget("validatingwebhookconfigurations.admissionregistration.k8s.io", test.name)
				if policy == registration.Ignore {
					if err != nil {
						t.Errorf("a failure that is to be ignored: %v", err)
					}
					continue
				}
				if !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), `failed calling webhook "`+test.name+`.example.com"`) ||
					!strings.Contains(err.Error(), test.want) {
					t.Errorf("got %v, want %q", err, test.want)
				}
			}
		})
	}
}

// A webhook that is to be asked again sees what those behind it made of the object; one that is not, is not.
func TestReinvocation(t *testing.T) {
	c := start(t)
	var rounds atomic.Int32
	first := serve(t, func(q *admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		if rounds.Add(1) == 1 {
			return allow(q)
		}
		return patch(`[{"op": "add", "path": "/data/again", "value": "yes"}]`)(q)
	})
	second := serve(t, patch(`[{"op": "add", "path": "/data/b", "value": "2"}]`))
	c.mutate("a-first", first.Server, func(h *registration.MutatingWebhook) {
		h.ReinvocationPolicy = ptr.To(registration.IfNeededReinvocationPolicy)
	})
	c.mutate("b-second", second.Server, nil)
	got, err := c.create(t.Context(), "x", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got.Data["again"] != "yes" || got.Data["b"] != "2" || len(first.asked()) != 2 || len(second.asked()) != 1 {
		t.Errorf("kept %v, asked %d and %d times", got.Data, len(first.asked()), len(second.asked()))
	}
	var again corev1.ConfigMap
	if err := json.Unmarshal(first.asked()[1].Object.Raw, &again); err != nil || again.Data["b"] != "2" {
		t.Errorf("asked again about %v, %v", again.Data, err)
	}
}

func TestDryRun(t *testing.T) {
	c := start(t)
	h := serve(t, allow)
	dry := &metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	c.validate("v", h.Server, func(h *registration.ValidatingWebhook) {
		h.SideEffects = ptr.To(registration.SideEffectClassNoneOnDryRun)
	})
	if _, err := c.create(t.Context(), "x", nil, dry); err != nil {
		t.Fatal(err)
	}
	if asked := h.asked(); len(asked) != 1 || !*asked[0].DryRun {
		t.Errorf("asked %+v", asked)
	}
	// A configuration of before version 1 may have effects, which the API no longer lets in.
	res := c.req("validatingwebhookconfigurations.admissionregistration.k8s.io", "", "old").Resource
	old := &registration.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "old"}, Webhooks: []registration.ValidatingWebhook{{
		Name: "old.example.com", ClientConfig: registration.WebhookClientConfig{URL: ptr.To(h.URL), CABundle: caOf(h.Server)},
		Rules: rule(registration.Create), SideEffects: ptr.To(registration.SideEffectClassSome), AdmissionReviewVersions: []string{"v1"}}}}
	res.Codec().Default(old)
	value, err := res.Codec().Encode(old)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Table(res.GroupResource).Create(t.Context(), store.Key{Name: "old"}, value, store.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	_, err = c.create(t.Context(), "x", nil, dry)
	if !apierrors.IsBadRequest(err) || err.Error() != `admission webhook "old.example.com" does not support dry run` {
		t.Errorf("got %v", err)
	}
}

func TestSelectorsAndConditions(t *testing.T) {
	c := start(t)
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "watched", Labels: map[string]string{"hooks": "on"}}}
	if _, err := c.Create(t.Context(), c.req("namespaces", "", ""), ns, &metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	alice := request.WithUser(t.Context(), &user.DefaultInfo{Name: "alice"})
	in := func(namespace string) func(*corev1.ConfigMap) {
		return func(cm *corev1.ConfigMap) { cm.Namespace = namespace }
	}
	labelled := func(cm *corev1.ConfigMap) { cm.Labels = map[string]string{"look": "at-me"} }
	condition := func(expression string) func(*registration.ValidatingWebhook) {
		return func(h *registration.ValidatingWebhook) {
			h.MatchConditions = []registration.MatchCondition{{Name: "c", Expression: expression}}
		}
	}
	for i, test := range []struct {
		name   string
		ctx    context.Context
		hook   func(*registration.ValidatingWebhook)
		object func(*corev1.ConfigMap)
		asked  bool
		err    string
	}{
		{"namespace selected", t.Context(), func(h *registration.ValidatingWebhook) {
			h.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"hooks": "on"}}
		}, in("watched"), true, "denied"},
		{"namespace not selected", t.Context(), func(h *registration.ValidatingWebhook) {
			h.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"hooks": "on"}}
		}, in("default"), false, ""},
		{"object selected", t.Context(), func(h *registration.ValidatingWebhook) {
			h.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"look": "at-me"}}
		}, labelled, true, "denied"},
		{"object not selected", t.Context(), func(h *registration.ValidatingWebhook) {
			h.ObjectSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"look": "at-me"}}
		}, nil, false, ""},
		{"condition holds", t.Context(), condition(`object.data.a == "1" && request.operation == "CREATE"`), nil, true, "denied"},
		{"condition does not hold", t.Context(), condition(`object.data.a == "2"`), nil, false, ""},
		{"condition can't be told", t.Context(), condition(`object.data.nothing == "2"`), nil, false, "no such key"},
		{"condition asks for permissions", alice, condition(`authorizer.group("").resource("pods").check("get").allowed()`), nil, true, "denied"},
		{"condition asks for permissions that lack", t.Context(), condition(`authorizer.group("").resource("pods").check("get").allowed()`), nil, false, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := serve(t, deny("denied"))
			c.validate("v", h.Server, test.hook)
			defer c.forget("validatingwebhookconfigurations.admissionregistration.k8s.io", "v")
			_, err := c.create(test.ctx, "x"+string(rune('a'+i)), test.object, nil)
			if (len(h.asked()) > 0) != test.asked || (err == nil) != (test.err == "") || (err != nil && !strings.Contains(err.Error(), test.err)) {
				t.Errorf("asked %d times: %v", len(h.asked()), err)
			}
		})
	}
}

// A rule that names one version of a kind matches requests in another, and sees the version that it names.
func TestEquivalentVersions(t *testing.T) {
	c := start(t)
	h := serve(t, patch(`[{"op": "replace", "path": "/spec/targetCPUUtilizationPercentage", "value": 70}]`))
	tune := func(match registration.MatchPolicyType) func(*registration.MutatingWebhook) {
		return func(h *registration.MutatingWebhook) {
			h.MatchPolicy = &match
			h.Rules[0].Rule = registration.Rule{APIGroups: []string{"autoscaling"}, APIVersions: []string{"v1"}, Resources: []string{"horizontalpodautoscalers"}}
		}
	}
	make := func(name string) int32 {
		hpa := &autoscalingv2.HorizontalPodAutoscaler{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
			Spec: autoscalingv2.HorizontalPodAutoscalerSpec{MaxReplicas: 3,
				ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "d"},
				Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
					Name: "cpu", Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: ptr.To[int32](50)}}}}}}
		obj := c.Must(c.Create(t.Context(), c.req("horizontalpodautoscalers.autoscaling", "default", ""), hpa, &metav1.CreateOptions{}))
		return *obj.(*autoscalingv2.HorizontalPodAutoscaler).Spec.Metrics[0].Resource.Target.AverageUtilization
	}
	c.mutate("exact", h.Server, tune(registration.Exact))
	if got := make("exact"); got != 50 || len(h.asked()) != 0 {
		t.Errorf("an exact rule was asked %d times and made it %d", len(h.asked()), got)
	}
	c.forget("mutatingwebhookconfigurations.admissionregistration.k8s.io", "exact")
	c.mutate("equivalent", h.Server, tune(registration.Equivalent))
	if got := make("equivalent"); got != 70 {
		t.Errorf("the utilization is %d, want the webhook's 70", got)
	}
	asked := h.asked()
	if len(asked) != 1 || asked[0].Kind.Version != "v1" || asked[0].RequestKind.Version != "v2" || asked[0].Resource.Version != "v1" {
		t.Errorf("asked %+v", asked)
	}
}

func TestDeleteAndConnect(t *testing.T) {
	c := start(t)
	h := serve(t, deny("no"))
	c.validate("v", h.Server, func(h *registration.ValidatingWebhook) {
		h.Rules = append(rule(registration.Delete), registration.RuleWithOperations{
			Operations: []registration.OperationType{registration.Connect},
			Rule:       registration.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods/attach"}}})
	})
	if _, err := c.create(t.Context(), "x", nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Delete(t.Context(), c.req("configmaps", "default", "x"), nil); err == nil {
		t.Error("it was deleted")
	}
	attach := c.req("pods", "default", "p")
	attach.Subresource = "attach"
	if err := c.Connect(t.Context(), attach, &corev1.PodAttachOptions{Container: "c"}); err == nil {
		t.Error("it was attached to")
	}
	asked := h.asked()
	if len(asked) != 2 {
		t.Fatalf("asked %d times", len(asked))
	}
	var old corev1.ConfigMap
	if err := json.Unmarshal(asked[0].OldObject.Raw, &old); err != nil || old.Data["a"] != "1" || string(asked[0].Object.Raw) != "" {
		t.Errorf("of the deletion it was shown %s: %v", asked[0].OldObject.Raw, err)
	}
	var options corev1.PodAttachOptions
	if err := json.Unmarshal(asked[1].Object.Raw, &options); err != nil || options.Container != "c" || options.Kind != "PodAttachOptions" ||
		asked[1].SubResource != "attach" || asked[1].Operation != admissionv1.Connect {
		t.Errorf("of the connection it was shown %+v: %v", asked[1], err)
	}
}

// recorder keeps warnings.
type recorder struct{ got []string }

func (r *recorder) AddWarning(_, text string) { r.got = append(r.got, text) }

func TestWarnings(t *testing.T) {
	c := start(t)
	h := serve(t, func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Allowed: true, Warnings: []string{"mind the gap"}}
	})
	c.validate("v", h.Server, nil)
	r := &recorder{}
	if _, err := c.create(warning.WithWarningRecorder(t.Context(), r), "x", nil, nil); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.got, []string{"mind the gap"}) {
		t.Errorf("warned of %q", r.got)
	}
}

// Whoever can configure webhooks can always mend them.
func TestConfigurationsAreExempt(t *testing.T) {
	c := start(t)
	h := serve(t, deny("never"))
	everything := []registration.RuleWithOperations{{Operations: []registration.OperationType{registration.OperationAll},
		Rule: registration.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*/*"}}}}
	c.validate("v", h.Server, func(h *registration.ValidatingWebhook) { h.Rules = everything })
	c.mutate("m", h.Server, func(h *registration.MutatingWebhook) { h.Rules = everything })
	if _, err := c.create(t.Context(), "x", nil, nil); err == nil {
		t.Error("nothing is denied")
	}
	c.forget("mutatingwebhookconfigurations.admissionregistration.k8s.io", "m")
	c.forget("validatingwebhookconfigurations.admissionregistration.k8s.io", "v")
	if _, err := c.create(t.Context(), "x", nil, nil); err != nil {
		t.Error(err)
	}
}

// A configuration that can't be read might have said no, so nothing passes but what mends it.
func TestDamagedConfiguration(t *testing.T) {
	c := start(t)
	const resource = "validatingwebhookconfigurations.admissionregistration.k8s.io"
	table := c.Table(c.req(resource, "", "").Resource.GroupResource)
	if _, err := table.Create(t.Context(), store.Key{Name: "damaged"}, []byte("k8s\x00nonsense"), store.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.create(t.Context(), "x", nil, nil); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("got %v", err)
	}
	h := serve(t, deny("no"))
	c.validate("v", h.Server, nil) // configurations can be written
	if _, _, err := table.Delete(t.Context(), store.Key{Name: "damaged"}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := c.create(t.Context(), "x", nil, nil); err == nil || !strings.Contains(err.Error(), "denied the request: no") {
		t.Errorf("mended: %v", err)
	}
}

// A webhook is reached through its service, and has to be who the service's name says.
func TestService(t *testing.T) {
	c := start(t)
	h := serve(t, deny("through the service"))
	c.services["hooks/guard"] = h.Listener.Addr().String()
	c.validate("v", h.Server, func(h *registration.ValidatingWebhook) {
		h.ClientConfig.URL = nil
		h.ClientConfig.Service = &registration.ServiceReference{Namespace: "hooks", Name: "guard", Path: ptr.To("/check")}
	})
	_, err := c.create(t.Context(), "x", nil, nil)
	if err == nil || !strings.Contains(err.Error(), "not guard.hooks.svc") {
		t.Errorf("the test's certificate is not for guard.hooks.svc: %v", err)
	}
}

// What one server is told is effective on the others as soon as their image holds it.
func TestOtherServers(t *testing.T) {
	c := start(t)
	other := on(t, c.member)
	h := serve(t, deny("everywhere"))
	c.validate("v", h.Server, nil)
	// A consistent read of something that is missing brings the other server's image up to date.
	res := c.req("configmaps", "", "").Resource
	if _, err := other.Find(t.Context(), res.GroupResource, "default", "none"); !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	if _, err := other.create(t.Context(), "x", nil, nil); err == nil || !strings.Contains(err.Error(), "everywhere") {
		t.Errorf("got %v", err)
	}
}
