package registry_test

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/api"
)

// TestKindsHaveOneOwner: whoever asks by kind gets the resource that had it first, whatever else comes and goes.
func TestKindsHaveOneOwner(t *testing.T) {
	s := start(t, nil)
	kind := schema.GroupKind{Group: "scheduling.k8s.io", Kind: "PriorityClass"}
	classes, table, _ := s.ForKind(kind)
	foos := *classes
	foos.Resource, foos.Prefix, foos.Custom = "foos", "scheduling.k8s.io/foos", &api.Custom{}
	if err := s.Register(&foos); err == nil || !strings.Contains(err.Error(), "is that of priorityclasses.scheduling.k8s.io") {
		t.Errorf("another resource of the kind: %v", err)
	}
	s.Unregister(foos.GroupResource)
	same := *classes
	same.Custom = &api.Custom{}
	if err := s.Register(&same); err == nil || !strings.Contains(err.Error(), "built-in") {
		t.Errorf("a custom resource in place of a built-in one: %v", err)
	}
	if res, now, ok := s.ForKind(kind); !ok || res != classes || now != table {
		t.Errorf("the kind is that of %v", res)
	}
	if res, ok := s.Lookup(classes.GVR("")); !ok || res != classes {
		t.Errorf("the resource is %v", res)
	}
}
