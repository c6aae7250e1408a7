package admission_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	stock "k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/admission"
	"barque.dev/internal/apiserver/registry/registrytest"
	"barque.dev/internal/testkit/fakeclient"
)

func account(name string) *corev1.ServiceAccount {
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}}
}

func pod(change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}, Spec: corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "i"}}, Containers: []corev1.Container{{Name: "c"}},
	}}
	for _, f := range change {
		f(p)
	}
	return p
}

func attributes(op stock.Operation, resource, sub string, obj, old runtime.Object) stock.Attributes {
	gvr := corev1.SchemeGroupVersion.WithResource(resource)
	return stock.NewAttributesRecord(obj, old, schema.GroupVersionKind{}, "a", "p", gvr, sub, op, nil, false, nil)
}

// defaults is the default chain over a state, where everybody may do everything.
func defaults(t *testing.T, state ...client.Object) admission.Chain {
	t.Helper()
	state = append(state, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
	chain, err := admission.Default(admission.Config{
		Reader: fakeclient.Builder().WithObjects(state...).Build(), Authorizer: authorizerfactory.NewAlwaysAllowAuthorizer(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

// create passes a pod through the default chain.
func create(t *testing.T, p *corev1.Pod, state ...client.Object) error {
	t.Helper()
	chain := defaults(t, state...)
	a := attributes(stock.Create, "pods", "", p, nil)
	if err := chain.Admit(t.Context(), a, nil); err != nil {
		return err
	}
	return validate(t, chain, a)
}

// validate asks a chain, whose plugins must not change what they are asked about.
func validate(t *testing.T, chain admission.Chain, a stock.Attributes) error {
	t.Helper()
	return registrytest.Unchanging(t, chain).(stock.ValidationInterface).Validate(t.Context(), a, nil)
}

func TestNewPod(t *testing.T) {
	sa := account("default")
	sa.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "pull"}}
	p := pod()
	if err := create(t, p, sa); err != nil {
		t.Fatal(err)
	}
	if p.Spec.ServiceAccountName != "default" || p.Spec.DeprecatedServiceAccount != "default" || len(p.Spec.ImagePullSecrets) != 1 {
		t.Errorf("account: %+v", p.Spec)
	}
	if len(p.Spec.Volumes) != 1 || !strings.HasPrefix(p.Spec.Volumes[0].Name, "kube-api-access-") || len(p.Spec.Volumes[0].Projected.Sources) != 3 {
		t.Fatalf("volumes: %+v", p.Spec.Volumes)
	}
	for _, c := range append(p.Spec.InitContainers, p.Spec.Containers...) {
		if len(c.VolumeMounts) != 1 || c.VolumeMounts[0].Name != p.Spec.Volumes[0].Name || !c.VolumeMounts[0].ReadOnly {
			t.Errorf("container %s: %+v", c.Name, c.VolumeMounts)
		}
	}
	if p.Spec.Priority == nil || *p.Spec.Priority != 0 || *p.Spec.PreemptionPolicy != corev1.PreemptLowerPriority {
		t.Errorf("priority: %v", p.Spec.Priority)
	}
	if len(p.Spec.Tolerations) != 2 || *p.Spec.Tolerations[0].TolerationSeconds != 300 {
		t.Errorf("tolerations: %+v", p.Spec.Tolerations)
	}
	// What passed once passes unchanged.
	again := p.DeepCopy()
	if err := create(t, again, sa); err != nil || len(again.Spec.Volumes) != 1 || len(again.Spec.Containers[0].VolumeMounts) != 1 || len(again.Spec.Tolerations) != 2 {
		t.Errorf("the second time: %+v, %v", again.Spec, err)
	}
}

func TestAutomount(t *testing.T) {
	yes, no := true, false
	for name, tt := range map[string]struct {
		pod, account *bool
		want         bool
	}{
		"nobody cares": {nil, nil, true}, "account says no": {nil, &no, false},
		"pod says no": {&no, &yes, false}, "pod says yes": {&yes, &no, true},
	} {
		sa := account("default")
		sa.AutomountServiceAccountToken = tt.account
		p := pod(func(p *corev1.Pod) { p.Spec.AutomountServiceAccountToken = tt.pod })
		if err := create(t, p, sa); err != nil || (len(p.Spec.Volumes) == 1) != tt.want {
			t.Errorf("%s: %v, %v", name, p.Spec.Volumes, err)
		}
	}
	own := corev1.VolumeMount{Name: "own", MountPath: "/var/run/secrets/kubernetes.io/serviceaccount"}
	p := pod(func(p *corev1.Pod) {
		p.Spec.InitContainers[0].VolumeMounts = []corev1.VolumeMount{own}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{own}
	})
	if err := create(t, p, account("default")); err != nil || len(p.Spec.Volumes) != 0 {
		t.Errorf("mounted over the user's own: %v, %v", p.Spec.Volumes, err)
	}
}

func TestRefusedPods(t *testing.T) {
	strict := account("strict")
	strict.Annotations = map[string]string{"kubernetes.io/enforce-mountable-secrets": "true"}
	strict.Secrets = []corev1.ObjectReference{{Name: "mine"}}
	mirror := func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} }
	env := func(secret string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: secret}}}}
		}
	}
	as := func(name string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.ServiceAccountName = name } }
	class := func(name string, value *int32) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.PriorityClassName, p.Spec.Priority = name, value }
	}
	seven := int32(7)
	for name, tt := range map[string]struct {
		pod  *corev1.Pod
		want string
	}{
		"unknown account":     {pod(as("missing")), "error looking up service account a/missing"},
		"its own secret":      {pod(as("strict"), env("mine")), ""},
		"another secret":      {pod(as("strict"), env("theirs")), "does not reference that secret"},
		"mirror":              {pod(mirror), ""},
		"mirror with account": {pod(mirror, as("strict")), "may not reference service accounts"},
		"mirror with secret":  {pod(mirror, env("mine")), "may not reference secrets"},
		"unknown class":       {pod(class("missing", nil)), "no PriorityClass with name missing"},
		"class of a system":   {pod(class("system-node-critical", nil)), ""},
		"class":               {pod(class("high", &seven)), ""},
		"priority by hand":    {pod(class("", &seven)), "must not be provided"},
	} {
		t.Run(name, func(t *testing.T) {
			err := create(t, tt.pod, strict, account("default"), &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "high"}, Value: 7})
			if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestDefaultPriorityClass(t *testing.T) {
	never := corev1.PreemptNever
	standard := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "standard"}, Value: 5, GlobalDefault: true, PreemptionPolicy: &never}
	p := pod()
	if err := create(t, p, account("default"), standard); err != nil {
		t.Fatal(err)
	}
	if p.Spec.PriorityClassName != "standard" || *p.Spec.Priority != 5 || *p.Spec.PreemptionPolicy != never {
		t.Errorf("got %+v", p.Spec)
	}
	chain := defaults(t, standard)
	second := standard.DeepCopy()
	second.Name = "second"
	if err := chain.Validate(t.Context(), attributes(stock.Create, "priorityclasses", "", second, nil), nil); err == nil {
		t.Error("a second default was let in")
	}
	if err := chain.Validate(t.Context(), attributes(stock.Update, "priorityclasses", "", standard, standard), nil); err != nil {
		t.Error(err)
	}
	// A client that does not know priorities updates the pod.
	old, update := p, p.DeepCopy()
	update.Spec.Priority, update.Spec.PreemptionPolicy = nil, nil
	if err := chain.Admit(t.Context(), attributes(stock.Update, "pods", "", update, old), nil); err != nil || update.Spec.Priority == nil || update.Spec.PreemptionPolicy == nil {
		t.Errorf("update lost the priority: %v", err)
	}
}

func TestTolerationsOfUsersStay(t *testing.T) {
	minute := int64(60)
	p := pod(func(p *corev1.Pod) {
		p.Spec.Tolerations = []corev1.Toleration{
			{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoExecute, Operator: corev1.TolerationOpExists, TolerationSeconds: &minute},
			{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoSchedule, Operator: corev1.TolerationOpExists},
		}
	})
	if err := create(t, p, account("default")); err != nil {
		t.Fatal(err)
	}
	if len(p.Spec.Tolerations) != 3 || *p.Spec.Tolerations[0].TolerationSeconds != 60 || p.Spec.Tolerations[2].Key != corev1.TaintNodeUnreachable {
		t.Errorf("got %+v", p.Spec.Tolerations)
	}
}
