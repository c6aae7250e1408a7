package objects

import "testing"

func TestAll(t *testing.T) {
	first, err := All()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, o := range first {
		id := o.GroupVersionKind().String() + "/" + o.GetName()
		if o.GetKind() == "" || o.GetName() == "" || seen[id] {
			t.Errorf("%q is unnamed, or twice there", id)
		}
		seen[id] = true
		if ns := o.GetNamespace(); ns != "" && ns != Namespace {
			t.Errorf("%s stands in %s", id, ns)
		}
	}
	first[0].SetName("changed")
	again, err := All()
	if err != nil || len(again) != len(first) || again[0].GetName() == "changed" {
		t.Errorf("what one has changed another sees: %v", err)
	}
}
