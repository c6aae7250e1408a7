package customresourcedefinition

import (
	"errors"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/api"
	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/kit"
)

func TestNamesThatBecomeFreeAreGiven(t *testing.T) {
	ships, boats := definition("ships.example.com", names("ships", "Ship", "sh")), definition("boats.example.com", names("boats", "Boat", "sh"))
	w := controllertest.New(t, &ships, &boats)
	c := New(w.Deps())
	w.Reconcile(c, &ships)
	w.Reconcile(c, &boats)
	got := controllertest.Reload(w, &boats)
	if apihelpers.IsCRDConditionTrue(got, apiextensionsv1.Established) || !apihelpers.IsCRDConditionTrue(controllertest.Reload(w, &ships), apiextensionsv1.Established) {
		t.Fatalf("two want one name: %+v", got.Status)
	}
	if at := apihelpers.FindCRDCondition(got, apiextensionsv1.NamesAccepted).LastTransitionTime; !at.Time.Equal(w.Clock.Now()) {
		t.Errorf("the condition is of %v", at)
	}
	gone := controllertest.Reload(w, &ships)
	if err := w.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	requests := c.Watches[0].Requests(barqueclient.Event{Old: gone})
	if len(requests) != 2 || requests[1] != (reconcile.Request{NamespacedName: types.NamespacedName{Name: "boats.example.com"}}) {
		t.Fatalf("asked for %v", requests)
	}
	w.Reconcile(c, &boats)
	if got = controllertest.Reload(w, &boats); !apihelpers.IsCRDConditionTrue(got, apiextensionsv1.Established) {
		t.Errorf("the name is free: %+v", got.Status)
	}
}

// TestNeverEstablishedGoesAtOnce: there is nothing to be emptied.
func TestNeverEstablishedGoesAtOnce(t *testing.T) {
	now := metav1.Now()
	crd := definition("ships.example.com", names("ships", "Ship"))
	crd.DeletionTimestamp, crd.Finalizers = &now, []string{apiextensionsv1.CustomResourceCleanupFinalizer, "example.com/hold"}
	w := controllertest.New(t)
	held := crd.DeepCopy()
	held.DeletionTimestamp = nil
	w.MustCreate(held)
	if err := w.Delete(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	w.Reconcile(New(w.Deps()), &crd)
	got := controllertest.Reload(w, &crd)
	if apihelpers.CRDHasFinalizer(got, apiextensionsv1.CustomResourceCleanupFinalizer) || len(got.Finalizers) != 1 {
		t.Errorf("finalizers are %v", got.Finalizers)
	}
	if c := apihelpers.FindCRDCondition(got, apiextensionsv1.Terminating); c == nil || c.Reason != "NeverEstablished" {
		t.Errorf("condition is %+v", c)
	}
}

// builtinNamed is an established definition of names that built-in resources have, as older servers let them be.
func builtinNamed(group, plural, kind string) *apiextensionsv1.CustomResourceDefinition {
	crd := definition(plural+"."+group, names(plural, kind))
	crd.Spec.Group, crd.Finalizers = group, []string{apiextensionsv1.CustomResourceCleanupFinalizer, "example.com/hold"}
	crd.Spec.Versions = []apiextensionsv1.CustomResourceDefinitionVersion{{Name: "v1", Served: true, Storage: true}}
	crd.Status.AcceptedNames = crd.Spec.Names
	apihelpers.SetCRDCondition(&crd, apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue})
	return &crd
}

// TestBuiltinObjectsSurvive: what goes with a definition is its custom resources, whatever kind it names.
func TestBuiltinObjectsSurvive(t *testing.T) {
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "cluster-admin"}}
	class := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: "system-cluster-critical"}}
	roles := builtinNamed("rbac.authorization.k8s.io", "clusterroles", "ClusterRole")
	foos := builtinNamed("scheduling.k8s.io", "foos", "PriorityClass")
	w := controllertest.New(t, role, class, roles, foos)
	c := New(w.Deps())
	for _, crd := range []*apiextensionsv1.CustomResourceDefinition{roles, foos} {
		if err := w.Delete(t.Context(), controllertest.Reload(w, crd)); err != nil {
			t.Fatal(err)
		}
	}
	w.Reconcile(c, roles)
	if _, err := c.Reconcile(t.Context(), kit.RequestFor(foos)); err == nil || !strings.Contains(err.Error(), "foos.scheduling.k8s.io of kind PriorityClass is not served here") {
		t.Errorf("a resource of another's kind is emptied: %v", err)
	}
	for _, obj := range []client.Object{role, class} {
		if err := w.Get(t.Context(), client.ObjectKeyFromObject(obj), obj); err != nil {
			t.Errorf("%s went with a definition: %v", obj.GetName(), err)
		}
	}
	if apihelpers.CRDHasFinalizer(controllertest.Reload(w, roles), apiextensionsv1.CustomResourceCleanupFinalizer) {
		t.Error("a definition that never had objects is held")
	}
	if !apihelpers.CRDHasFinalizer(controllertest.Reload(w, foos), apiextensionsv1.CustomResourceCleanupFinalizer) {
		t.Error("a definition whose objects nobody reaches is let go")
	}
}

// oneKind serves nothing but one kind.
type oneKind struct{ resource *api.Resource }

func (k oneKind) Resources() []*api.Resource { return []*api.Resource{k.resource} }
func (oneKind) Changed() <-chan struct{}     { return nil }

// TestHeldUntilCaughtUp: whether a definition has objects is not known before the image has caught up.
func TestHeldUntilCaughtUp(t *testing.T) {
	ships := builtinNamed("example.com", "ships", "Ship")
	w := controllertest.New(t, ships)
	w.Cut = errors.New("no quorum")
	deps := w.Deps()
	deps.Kinds = oneKind{&api.Resource{
		GroupResource: schema.GroupResource{Group: "example.com", Resource: "ships"}, Kind: "Ship", Prefix: "example.com/ships",
		Kept: schema.GroupVersion{Group: "example.com", Version: "v1"}, Custom: &api.Custom{},
	}}
	if err := w.Delete(t.Context(), controllertest.Reload(w, ships)); err != nil {
		t.Fatal(err)
	}
	if _, err := New(deps).Reconcile(t.Context(), kit.RequestFor(ships)); !errors.Is(err, w.Cut) {
		t.Errorf("cut off: %v", err)
	}
	if !apihelpers.CRDHasFinalizer(controllertest.Reload(w, ships), apiextensionsv1.CustomResourceCleanupFinalizer) {
		t.Error("it is let go")
	}
}
