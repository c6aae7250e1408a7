package examples

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// TestManifest checks that the manifest holds what the API knows, and that its parts fit.
func TestManifest(t *testing.T) {
	data, err := HelloManifest()
	if err != nil {
		t.Fatal(err)
	}
	var service corev1.Service
	var deployment appsv1.Deployment
	kinds := map[string]any{"ConfigMap": &corev1.ConfigMap{}, "Secret": &corev1.Secret{}, "Service": &service, "Deployment": &deployment}
	reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal(document, &meta); err != nil {
			t.Fatal(err)
		}
		into, ok := kinds[meta.Kind]
		if !ok {
			t.Fatalf("a kind too many or twice: %q", meta.Kind)
		}
		delete(kinds, meta.Kind)
		if err := yaml.UnmarshalStrict(document, into); err != nil {
			t.Errorf("%s: %v", meta.Kind, err)
		}
	}
	if len(kinds) > 0 {
		t.Errorf("missing: %v", kinds)
	}
	pod := deployment.Spec.Template
	if service.Spec.Ports[0].NodePort != HelloNodePort || pod.Spec.Containers[0].Image != HelloV1 {
		t.Errorf("the manifest has port %d and image %s", service.Spec.Ports[0].NodePort, pod.Spec.Containers[0].Image)
	}
	for k, v := range service.Spec.Selector {
		if pod.Labels[k] != v || deployment.Spec.Selector.MatchLabels[k] != v {
			t.Errorf("the label %s=%s of the service is not the pods'", k, v)
		}
	}
}
