package registry_test

import (
	"context"
	"slices"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"

	"barque.dev/internal/apiserver/registry"
)

// witness is an admission plugin that shows what it sees to f.
type witness func(a admission.Attributes, o admission.ObjectInterfaces)

func (witness) Handles(admission.Operation) bool { return true }

func (w witness) Admit(_ context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	w(a, o)
	return nil
}

// Plugins can look at an object in any version that the cluster serves, and write into the
// request's version what they made of it.
func TestAdmissionConvertsBetweenVersions(t *testing.T) {
	var asked bool
	s := start(t, func(cfg *registry.Config) {
		cfg.Admission = witness(func(a admission.Attributes, o admission.ObjectInterfaces) {
			if a.GetKind().Kind != "HorizontalPodAutoscaler" {
				return
			}
			asked = true
			v1 := autoscalingv1.SchemeGroupVersion.WithKind("HorizontalPodAutoscaler")
			versioned, err := admission.NewVersionedAttributes(a, v1, o)
			if err != nil {
				t.Error(err)
				return
			}
			hpa, ok := versioned.VersionedObject.Object().DeepCopyObject().(*autoscalingv1.HorizontalPodAutoscaler)
			if !ok || hpa.GroupVersionKind() != v1 || *hpa.Spec.TargetCPUUtilizationPercentage != 60 {
				t.Errorf("a plugin of version 1 sees %+v", versioned.VersionedObject.Object())
				return
			}
			hpa.Spec.MaxReplicas = 9
			if err := o.GetObjectConvertor().Convert(hpa, a.GetObject(), nil); err != nil {
				t.Error(err)
			}
		})
	})
	hpa := decode[*autoscalingv2.HorizontalPodAutoscaler](t, `{"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
		"metadata": {"name": "a"}, "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "metrics": [
			{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}}]}}`)
	kept := create[*autoscalingv2.HorizontalPodAutoscaler](s, "horizontalpodautoscalers.autoscaling", "default", hpa)
	if !asked || kept.Spec.MaxReplicas != 9 || *kept.Spec.Metrics[0].Resource.Target.AverageUtilization != 60 {
		t.Errorf("asked %v, kept %+v", asked, kept.Spec)
	}
}

func TestEquivalentResources(t *testing.T) {
	var o admission.ObjectInterfaces
	s := start(t, func(cfg *registry.Config) {
		cfg.Admission = witness(func(_ admission.Attributes, given admission.ObjectInterfaces) { o = given })
	})
	create[*corev1.ConfigMap](s, "configmaps", "default", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c"}})
	mapper := o.GetEquivalentResourceMapper()
	gvr := func(group, version, resource string) schema.GroupVersionResource {
		return schema.GroupVersionResource{Group: group, Version: version, Resource: resource}
	}
	for _, test := range []struct {
		of          schema.GroupVersionResource
		subresource string
		want        []schema.GroupVersionResource
	}{
		{gvr("autoscaling", "v1", "horizontalpodautoscalers"), "",
			[]schema.GroupVersionResource{gvr("autoscaling", "v1", "horizontalpodautoscalers"), gvr("autoscaling", "v2", "horizontalpodautoscalers")}},
		{gvr("", "v1", "events"), "", []schema.GroupVersionResource{gvr("", "v1", "events"), gvr("events.k8s.io", "v1", "events")}},
		{gvr("apps", "v1", "deployments"), "scale", []schema.GroupVersionResource{gvr("apps", "v1", "deployments")}},
		{gvr("apps", "v1", "deployments"), "nothing", nil},
		{gvr("example.com", "v1", "things"), "", nil},
	} {
		got := mapper.EquivalentResourcesFor(test.of, test.subresource)
		slices.SortFunc(got, func(a, b schema.GroupVersionResource) int {
			return slices.Compare([]byte(a.String()), []byte(b.String()))
		})
		if !slices.Equal(got, test.want) {
			t.Errorf("%v/%s: %v, want %v", test.of, test.subresource, got, test.want)
		}
	}
	for _, test := range []struct {
		of          schema.GroupVersionResource
		subresource string
		want        schema.GroupVersionKind
	}{
		{gvr("apps", "v1", "deployments"), "scale", autoscalingv1.SchemeGroupVersion.WithKind("Scale")},
		{gvr("apps", "v1", "deployments"), "status", appsv1.SchemeGroupVersion.WithKind("Deployment")},
		{gvr("", "v1", "pods"), "exec", corev1.SchemeGroupVersion.WithKind("PodExecOptions")},
		{gvr("", "v1", "pods"), "nothing", schema.GroupVersionKind{}},
	} {
		if got := mapper.KindFor(test.of, test.subresource); got != test.want {
			t.Errorf("%v/%s is %v, want %v", test.of, test.subresource, got, test.want)
		}
	}
	raw := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "ConfigMap", "data": map[string]any{"k": "v"}}}
	typed, err := o.GetObjectConvertor().ConvertToVersion(raw, corev1.SchemeGroupVersion)
	if cm, ok := typed.(*corev1.ConfigMap); err != nil || !ok || cm.Data["k"] != "v" {
		t.Errorf("a config map without a type becomes %T, %v", typed, err)
	}
}

func TestConnectPassesAdmission(t *testing.T) {
	var seen admission.Attributes
	s := start(t, func(cfg *registry.Config) {
		cfg.Admission = witness(func(a admission.Attributes, _ admission.ObjectInterfaces) { seen = a })
	})
	options := &corev1.PodExecOptions{Command: []string{"sh"}}
	if err := s.Connect(t.Context(), s.sub("pods", "default", "p", "exec"), options); err != nil {
		t.Fatal(err)
	}
	if seen.GetOperation() != admission.Connect || seen.GetSubresource() != "exec" || seen.GetName() != "p" ||
		seen.GetNamespace() != "default" || seen.GetObject() != options || seen.GetKind().Kind != "PodExecOptions" ||
		seen.GetKind() != options.GroupVersionKind() {
		t.Errorf("admission saw %+v", seen)
	}
}
