package rootca

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/controllers/controllertest"
)

func TestPublishesAndMends(t *testing.T) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}}
	ending := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ending"}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceTerminating}}
	w := controllertest.New(t, ns, ending)
	c := New(w.Deps(), []byte("PEM"))
	w.Reconcile(c, ns)
	w.Reconcile(c, ending)

	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	if err := w.Get(t.Context(), client.ObjectKeyFromObject(cm), cm); err != nil || cm.Data[key] != "PEM" {
		t.Fatalf("got %v, %v", cm.Data, err)
	}
	controllertest.Change(w, cm, func(cm *corev1.ConfigMap) { cm.Data = map[string]string{key: "forged"} })
	w.Reconcile(c, ns)
	if cm = controllertest.Reload(w, cm); cm.Data[key] != "PEM" {
		t.Errorf("a damaged ConfigMap was not mended: %v", cm.Data)
	}
	var all corev1.ConfigMapList
	if err := w.List(t.Context(), &all); err != nil || len(all.Items) != 1 {
		t.Errorf("%d ConfigMaps, %v: a namespace that ends needs none", len(all.Items), err)
	}
}
