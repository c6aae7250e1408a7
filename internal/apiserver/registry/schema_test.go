package registry

import (
	"testing"

	"barque.dev/internal/api"
)

// TestEveryKindHasASchema: without one, a kind's managed fields would silently stay empty.
func TestEveryKindHasASchema(t *testing.T) {
	types := newLazyTypes()
	for _, res := range api.Resources() {
		if res.Virtual() {
			continue
		}
		for _, version := range res.Served {
			obj, err := kindCreater{}.New(res.GVK(version))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := types.ObjectToTyped(obj); err != nil {
				t.Errorf("%s: %v", res.GVK(version), err)
			}
		}
	}
	scale, err := kindCreater{}.New(scaleKind())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := types.ObjectToTyped(scale); err != nil {
		t.Error(err)
	}
}
