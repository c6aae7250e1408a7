package customresourcedefinition

import (
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/controllertest"
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
