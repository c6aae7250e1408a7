package wire

import (
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestContentIsShared: what has no Go type is written without its kind in an item and with it as an object, at another
// revision too, and is left as it was.
func TestContentIsShared(t *testing.T) {
	kind := schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Ship"}
	obj := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "example.com/v1", "kind": "Ship", "spec": map[string]any{"masts": int64(3)},
		"metadata": map[string]any{"name": "pamir", "resourceVersion": "7"},
	}}
	before := obj.DeepCopy()
	e := NewEncoder(kind, JSON, func(o runtime.Object) (runtime.Object, error) { return o, nil })
	for revision, want := range map[int64]string{0: "7", 9: "9"} {
		item, err := e.Item(&version{obj: obj}, revision)
		if err != nil {
			t.Fatal(err)
		}
		if got := `{"metadata":{"name":"pamir","resourceVersion":"` + want + `"},"spec":{"masts":3}}`; string(item) != got {
			t.Errorf("item at %d: %s", revision, item)
		}
		whole := `{"kind":"Ship","apiVersion":"example.com/v1","metadata":{"name":"pamir","resourceVersion":"` + want + `"},"spec":{"masts":3}}` + "\n"
		if got := string(e.Object(item).Bytes()); got != whole {
			t.Errorf("object at %d: %s", revision, got)
		}
	}
	if !unstructuredEqual(obj, before) {
		t.Errorf("the object became %v", obj)
	}
	if _, err := NewEncoder(kind, Protobuf, func(o runtime.Object) (runtime.Object, error) { return o, nil }).ItemOf(obj); err == nil {
		t.Error("it has no protobuf form")
	}
}

func unstructuredEqual(a, b *unstructured.Unstructured) bool {
	x, _ := a.MarshalJSON()
	y, _ := b.MarshalJSON()
	return string(x) == string(y)
}
