package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/cert"
	"k8s.io/utils/ptr"
)

// A webhook that runs in a pod, behind a service, is asked by every master, wherever the pod is.
func TestWebhookInPod(t *testing.T) {
	s := newScene(t)
	if err := buildTool(); err != nil {
		t.Fatal(err)
	}
	bundle := s.webhookPod("hook")
	at := func(path string) admissionv1.WebhookClientConfig {
		return admissionv1.WebhookClientConfig{CABundle: bundle, Service: &admissionv1.ServiceReference{Namespace: s.ns, Name: "hook", Path: ptr.To(path)}}
	}
	here := &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: s.ns}}
	none := ptr.To(admissionv1.SideEffectClassNone)
	creations := []admissionv1.RuleWithOperations{{Operations: []admissionv1.OperationType{admissionv1.Create},
		Rule: admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}}}}
	hooks := s.client.AdmissionregistrationV1()
	name := metav1.ObjectMeta{Name: s.ns}
	if _, err := hooks.MutatingWebhookConfigurations().Create(t.Context(), &admissionv1.MutatingWebhookConfiguration{ObjectMeta: name, Webhooks: []admissionv1.MutatingWebhook{{
		Name: "mutate.example.com", ClientConfig: at("/mutate"), Rules: creations, NamespaceSelector: here, SideEffects: none, AdmissionReviewVersions: []string{"v1"},
	}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := hooks.ValidatingWebhookConfigurations().Create(t.Context(), &admissionv1.ValidatingWebhookConfiguration{ObjectMeta: name, Webhooks: []admissionv1.ValidatingWebhook{{
		Name: "validate.example.com", ClientConfig: at("/validate"), Rules: creations, NamespaceSelector: here, SideEffects: none, AdmissionReviewVersions: []string{"v1"},
	}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.onEveryMaster("is asked", func(ctx context.Context, client kubernetes.Interface) error {
		cm, err := client.CoreV1().ConfigMaps(s.ns).Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "fine-"}, Data: map[string]string{"any": "thing"}}, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		if cm.Data["seen-by"] != "hook" {
			return fmt.Errorf("the webhook left %v", cm.Data)
		}
		refused := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "bad-"}, Data: map[string]string{"refuse": "a whim"}}
		_, err = client.CoreV1().ConfigMaps(s.ns).Create(ctx, refused, metav1.CreateOptions{})
		if want := `admission webhook "validate.example.com" denied the request: hook refuses: a whim`; err == nil || err.Error() != want {
			return fmt.Errorf("got %v, want %s", err, want)
		}
		return nil
	})
	if err := hooks.ValidatingWebhookConfigurations().Delete(t.Context(), s.ns, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := hooks.MutatingWebhookConfigurations().Delete(t.Context(), s.ns, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.onEveryMaster("is forgotten", func(ctx context.Context, client kubernetes.Interface) error {
		kept, err := client.CoreV1().ConfigMaps(s.ns).Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "free-"}, Data: map[string]string{"refuse": "nothing"}}, metav1.CreateOptions{})
		if err == nil && len(kept.Data) != 1 {
			err = fmt.Errorf("somebody left %v", kept.Data)
		}
		return err
	})
}

// webhookPod runs the tool as a webhook, behind a service of the pod's name, and returns the authority that vouches for it.
func (s *scene) webhookPod(name string) (bundle []byte) {
	s.Helper()
	certificate, key, err := cert.GenerateSelfSignedCertKey(name+"."+s.ns+".svc", nil, nil)
	if err != nil {
		s.Fatal(err)
	}
	if _, err := s.client.CoreV1().Secrets(s.ns).Create(s.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name},
		Data: map[string][]byte{"tls.crt": certificate, "tls.key": key}}, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	labels := map[string]string{"app": name}
	s.pod(name, `
volumes: [{name: tls, secret: {secretName: `+name+`}}]
containers:
- name: c
  image: `+toolImage+`
  args: [webhook, ":8443", /tls]
  volumeMounts: [{name: tls, mountPath: /tls}]
  readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1}
`, func(p *corev1.Pod) { p.Labels = labels })
	if _, err := s.client.CoreV1().Services(s.ns).Create(s.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
		Selector: labels, Ports: []corev1.ServicePort{{Port: 443, TargetPort: intstr.FromInt32(8443)}}}}, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	s.until(name, "is ready", podReady)
	return certificate
}

// onEveryMaster waits until something is so for requests to each of the masters.
func (s *scene) onEveryMaster(what string, check func(context.Context, kubernetes.Interface) error) {
	s.Helper()
	for _, m := range shared.Machines {
		client := shared.clientOf(s.T, m)
		eventually(s, patience, what+" by "+m.Name, func() error { return check(s.Context(), client) })
	}
}

// A policy holds on every master, with parameters that are changed while it does.
func TestPolicyOnEveryMaster(t *testing.T) {
	s := newScene(t)
	limit := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "limit", Labels: map[string]string{"exempt": "yes"}}, Data: map[string]string{"size": "3"}}
	limit, err := s.client.CoreV1().ConfigMaps(s.ns).Create(t.Context(), limit, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	policies := s.client.AdmissionregistrationV1()
	name := metav1.ObjectMeta{Name: s.ns}
	if _, err := policies.ValidatingAdmissionPolicies().Create(t.Context(), &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: name, Spec: admissionv1.ValidatingAdmissionPolicySpec{
		ParamKind: &admissionv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"},
		MatchConstraints: &admissionv1.MatchResources{
			ObjectSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "exempt", Operator: metav1.LabelSelectorOpDoesNotExist}}},
			ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
				Operations: []admissionv1.OperationType{admissionv1.Create},
				Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}}}}}},
		Validations: []admissionv1.Validation{{Expression: "size(object.data.value) <= int(params.data.size)", MessageExpression: "'at most ' + params.data.size"}},
	}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := policies.ValidatingAdmissionPolicyBindings().Create(t.Context(), &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: name, Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: s.ns, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
		ParamRef:       &admissionv1.ParamRef{Name: "limit", ParameterNotFoundAction: ptr.To(admissionv1.DenyAction)},
		MatchResources: &admissionv1.MatchResources{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: s.ns}}},
	}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	holds := func(size string) func(context.Context, kubernetes.Interface) error {
		return func(ctx context.Context, client kubernetes.Interface) error {
			_, err := client.CoreV1().ConfigMaps(s.ns).Create(ctx, &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{GenerateName: "long-"}, Data: map[string]string{"value": "12345678"}}, metav1.CreateOptions{})
			if err == nil || !strings.Contains(err.Error(), "denied request: at most "+size) {
				return fmt.Errorf("got %v", err)
			}
			return nil
		}
	}
	s.onEveryMaster("limits to 3", holds("3"))
	limit.Data["size"] = "5"
	if _, err := s.client.CoreV1().ConfigMaps(s.ns).Update(t.Context(), limit, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.onEveryMaster("limits to 5", holds("5"))
	for _, err := range []error{
		policies.ValidatingAdmissionPolicyBindings().Delete(t.Context(), s.ns, metav1.DeleteOptions{}),
		policies.ValidatingAdmissionPolicies().Delete(t.Context(), s.ns, metav1.DeleteOptions{}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
}
