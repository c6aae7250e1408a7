package aggregate

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestEmpty: everything that is namespaced and can be deleted goes, at once or one by one; what stays is told.
func TestEmpty(t *testing.T) {
	const base = "/apis/wardle.example.com/v1alpha1/namespaces/ns/"
	kept := map[string][]string{"flunders": {"a", "b"}, "fischers": {"c"}, "readings": {"d"}, "held": {"e"}}
	var deleted []string
	x := newExtension(t, func(w http.ResponseWriter, req *http.Request) {
		if who := req.Header.Get("X-Remote-User"); who != "system:serviceaccount:kube-system:namespace-controller" {
			t.Errorf("%s asks", who)
		}
		resource, name, single := strings.Cut(strings.TrimPrefix(req.URL.Path, base), "/")
		if req.Method == http.MethodDelete {
			deleted = append(deleted, resource+"/"+name)
			if resource != "held" {
				kept[resource] = slices.DeleteFunc(kept[resource], func(n string) bool { return !single || n == name })
			}
			return
		}
		var items []string
		for _, n := range kept[resource] {
			items = append(items, fmt.Sprintf(`{"metadata":{"name":%q,"finalizers":["example.com/hold"]}}`, n))
		}
		fmt.Fprintf(w, `{"kind":"List","items":[%s]}`, strings.Join(items, ","))
	})
	b := x.backend(t, nil)
	a := &Aggregator{}
	a.routes.Store(&map[schema.GroupVersion]*Backend{wardle: b})
	if left, silent, err := a.Empty(t.Context(), "ns"); err != nil || len(left) != 0 || !slices.Equal(silent, []string{b.name}) {
		t.Errorf("a server that has not answered: %v, %v, %v", left, silent, err)
	}
	resource := func(name string, scope apidiscoveryv2.ResourceScope, verbs ...string) apidiscoveryv2.APIResourceDiscovery {
		return apidiscoveryv2.APIResourceDiscovery{Resource: name, Scope: scope, Verbs: append(verbs, "list")}
	}
	b.said.Store(&statement{Description: Description{Resources: []apidiscoveryv2.APIResourceDiscovery{
		resource("flunders", apidiscoveryv2.ScopeNamespace, "delete", "deletecollection"),
		resource("fischers", apidiscoveryv2.ScopeNamespace, "delete"),
		resource("readings", apidiscoveryv2.ScopeNamespace),
		resource("held", apidiscoveryv2.ScopeNamespace, "delete"),
		resource("worlds", apidiscoveryv2.ScopeCluster, "delete", "deletecollection"),
	}}})
	left, silent, err := a.Empty(t.Context(), "ns")
	if err != nil || len(silent) != 0 {
		t.Fatal(silent, err)
	}
	held := left[schema.GroupResource{Group: wardle.Group, Resource: "held"}]
	if len(left) != 1 || len(held) != 1 || held[0].Name != "e" || len(held[0].Finalizers) != 1 {
		t.Errorf("left: %v", left)
	}
	if want := []string{"flunders/", "fischers/c", "held/e"}; !slices.Equal(deleted, want) {
		t.Errorf("deleted %v, want %v", deleted, want)
	}
	x.gone.Store(true)
	if _, _, err := a.Empty(t.Context(), "ns"); err == nil {
		t.Error("a server that can't be reached has nothing")
	}
}
