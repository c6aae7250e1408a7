package portability

import (
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	samples "barque.dev/test/objects"
)

// namespace is where the table's objects stand.
const namespace = samples.Namespace

// manager is the field manager of every write, so that both servers note the same.
const manager = "portability"

// An item is an object of the table and the resource that serves it.
type item struct {
	gvr    schema.GroupVersionResource
	object *unstructured.Unstructured
}

func (i item) String() string {
	return strings.Trim(i.gvr.GroupResource().String()+"/"+i.object.GetNamespace()+"/"+i.object.GetName(), "/")
}

func (i item) of(p *portal) dynamic.ResourceInterface {
	return p.dynamic.Resource(i.gvr).Namespace(i.object.GetNamespace())
}

// table reads the manifests and gives every object its resource as discovery tells it. Every
// kind that the server keeps must have an object.
func table(t *testing.T, p *portal) []item {
	t.Helper()
	objects, err := samples.All()
	if err != nil {
		t.Fatal(err)
	}
	_, lists, err := p.disco.ServerGroupsAndResources()
	if err != nil {
		t.Fatalf("discover what %s serves: %v", p.name, err)
	}
	var items []item
	have := map[*unstructured.Unstructured]bool{}
	covered := map[schema.GroupKind]bool{}
	var all []schema.GroupVersionKind
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.APIResources {
			if strings.Contains(r.Name, "/") || !slices.Contains(r.Verbs, "create") || !slices.Contains(r.Verbs, "get") {
				continue
			}
			gvk := gv.WithKind(r.Kind)
			all = append(all, gvk)
			for _, o := range objects {
				if o.GroupVersionKind() == gvk {
					items = append(items, item{gvr: gv.WithResource(r.Name), object: o})
					have[o], covered[gvk.GroupKind()] = true, true
				}
			}
		}
	}
	for _, gvk := range all {
		if !covered[gvk.GroupKind()] {
			t.Errorf("%s serves %s, of which test/objects has no object: add one", p.name, gvk)
		}
	}
	for _, o := range objects {
		if !have[o] {
			t.Errorf("%s does not serve %s %s", p.name, o.GroupVersionKind(), o.GetName())
		}
	}
	return items
}

// fill writes the table through a server.
func fill(t *testing.T, p *portal, items []item) {
	t.Helper()
	ns := &unstructured.Unstructured{}
	ns.SetAPIVersion("v1")
	ns.SetKind("Namespace")
	ns.SetName(namespace)
	options := metav1.CreateOptions{FieldManager: manager}
	namespaces := p.dynamic.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"})
	if _, err := namespaces.Create(t.Context(), ns, options); err != nil {
		t.Fatalf("create the namespace through %s: %v", p.name, err)
	}
	for _, i := range order(items) {
		if _, err := i.of(p).Create(t.Context(), i.object, options); err != nil {
			t.Errorf("create %s through %s: %v", i, p.name, err)
		}
	}
}

// order has what others need in front: accounts before pods, pods last.
func order(items []item) []item {
	rank := func(i item) int {
		switch i.gvr.Resource {
		case "serviceaccounts", "priorityclasses":
			return 0
		case "pods":
			return 2
		}
		return 1
	}
	sorted := slices.Clone(items)
	slices.SortStableFunc(sorted, func(a, b item) int { return rank(a) - rank(b) })
	return sorted
}
