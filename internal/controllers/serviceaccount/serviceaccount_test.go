package serviceaccount

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/controllers/controllertest"
)

func TestEveryLivingNamespaceHasTheDefaultAccount(t *testing.T) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}}
	ending := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ending"}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceTerminating}}
	w := controllertest.New(t, ns, ending)
	c := New(w.Deps())
	for range 2 { // the second time, it is there
		w.Reconcile(c, ns)
		w.Reconcile(c, ending)
	}
	w.Reconcile(c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "gone"}})
	var accounts corev1.ServiceAccountList
	if err := w.List(t.Context(), &accounts); err != nil {
		t.Fatal(err)
	}
	if len(accounts.Items) != 1 || accounts.Items[0].Namespace != "ns" || accounts.Items[0].Name != "default" {
		t.Errorf("got %+v", accounts.Items)
	}
}
