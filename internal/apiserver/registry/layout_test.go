package registry_test

import (
	"bytes"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"

	"barque.dev/internal/api"
)

// TestStoredLayout: keys and bytes in etcd are what kube-apiserver would have written.
func TestStoredLayout(t *testing.T) {
	s := start(t, nil)
	create[*corev1.Pod](s, "pods", "default", newPod("web"))
	create[*corev1.Service](s, "services", "default", newService("web", corev1.ServiceTypeNodePort))
	create[*corev1.Node](s, "nodes", "", &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})
	create[*corev1.Event](s, "events", "default", &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "e", Namespace: "default"}, InvolvedObject: corev1.ObjectReference{Namespace: "default"},
	})
	create[*networkingv1.Ingress](s, "ingresses.networking.k8s.io", "default", &networkingv1.Ingress{
		ObjectMeta: metav1.ObjectMeta{Name: "i", Namespace: "default"},
		Spec: networkingv1.IngressSpec{DefaultBackend: &networkingv1.IngressBackend{
			Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{Number: 80}}}},
	})
	codecs := api.Codecs()
	for key, gvk := range map[string]schema.GroupVersionKind{
		"/registry/pods/default/web":           {Version: "v1", Kind: "Pod"},
		"/registry/services/specs/default/web": {Version: "v1", Kind: "Service"},
		"/registry/minions/n":                  {Version: "v1", Kind: "Node"},
		"/registry/events/default/e":           {Version: "v1", Kind: "Event"},
		"/registry/ingress/default/i":          {Group: "networking.k8s.io", Version: "v1", Kind: "Ingress"},
		"/registry/namespaces/kube-system":     {Version: "v1", Kind: "Namespace"},
		"/registry/ipaddresses/10.43.0.1":      {Group: "networking.k8s.io", Version: "v1", Kind: "IPAddress"},
		"/registry/servicecidrs/kubernetes":    {Group: "networking.k8s.io", Version: "v1", Kind: "ServiceCIDR"},
		"/registry/ranges/servicenodeports":    {Version: "v1", Kind: "RangeAllocation"},
	} {
		value, err := s.raw(key)
		if err != nil || value == nil {
			t.Errorf("%s: %v", key, err)
			continue
		}
		if !bytes.HasPrefix(value, []byte("k8s\x00")) {
			t.Errorf("%s starts with %q", key, value[:4])
			continue
		}
		var unknown runtime.Unknown
		if err := unknown.Unmarshal(value[4:]); err != nil {
			t.Errorf("%s: %v", key, err)
			continue
		}
		if unknown.APIVersion != gvk.GroupVersion().String() || unknown.Kind != gvk.Kind || unknown.ContentEncoding != "" || unknown.ContentType != "" {
			t.Errorf("%s is a %s %s", key, unknown.APIVersion, unknown.Kind)
		}
		// kube-apiserver's storage codec, given the object that it would read, writes the
		// same bytes.
		decode := codecs.CodecForVersions(protobuf.NewSerializer(api.Scheme(), api.Scheme()), codecs.UniversalDeserializer(), gvk.GroupVersion(),
			schema.GroupVersion{Group: gvk.Group, Version: runtime.APIVersionInternal})
		hub, err := runtime.Decode(decode, value)
		if err != nil {
			t.Errorf("%s: %v", key, err)
			continue
		}
		again, err := runtime.Encode(decode, hub)
		if err != nil {
			t.Errorf("%s: %v", key, err)
			continue
		}
		if !bytes.Equal(again, value) {
			t.Errorf("%s: kube-apiserver would write\n%q, not\n%q", key, again, value)
		}
	}
}
