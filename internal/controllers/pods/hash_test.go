package pods_test

import (
	"encoding/json"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"barque.dev/internal/controllers/pods"
)

func load(t *testing.T, name string) *corev1.PodTemplateSpec {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	var template corev1.PodTemplateSpec
	if err := json.Unmarshal(data, &template); err != nil {
		t.Fatal(err)
	}
	return &template
}

// The wanted values were computed by kube-controller-manager's own functions, v1.37.1.
func TestTemplateHashIsUpstreams(t *testing.T) {
	one := int32(1)
	for _, c := range []struct {
		name       string
		collisions *int32
		want       string
	}{
		{"small", nil, "557577df75"},
		{"small", &one, "957fbb766"},
		{"large", nil, "6b47884d5b"},
		{"large", &one, "6584677bd5"},
	} {
		template := load(t, c.name)
		if got := pods.TemplateHash(template, c.collisions); got != c.want {
			t.Errorf("%s: hash %s, want %s", c.name, got, c.want)
		}
		// Whoever calculates with a quantity makes it forget its text.
		for i := range template.Spec.Containers {
			for name, q := range template.Spec.Containers[i].Resources.Requests {
				q.Neg()
				q.Neg()
				template.Spec.Containers[i].Resources.Requests[name] = q
			}
		}
		if got := pods.TemplateHash(template, c.collisions); got != c.want {
			t.Errorf("%s: hash %s after calculations with its quantities, want %s", c.name, got, c.want)
		}
	}
}

func TestEqualTemplatesIgnoresTheHashLabelOnly(t *testing.T) {
	a, b := load(t, "small"), load(t, "small")
	b.Labels["pod-template-hash"] = "x"
	if !pods.EqualTemplates(a, b) {
		t.Error("templates that differ by the hash label are not equal")
	}
	if b.Labels["pod-template-hash"] != "x" {
		t.Error("the comparison changed its argument")
	}
	b.Spec.Containers[0].Image = "other"
	if pods.EqualTemplates(a, b) {
		t.Error("templates with different images are equal")
	}
}
