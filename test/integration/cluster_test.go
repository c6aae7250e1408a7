package integration

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Every master answers every request, and so does the virtual IP, with the same state.
func TestEveryMasterAnswers(t *testing.T) {
	ns := shared.namespace(t)
	for _, m := range shared.Machines {
		client := shared.clientOf(t, m)
		_, err := client.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: "by-" + m.Name}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatalf("write by %s: %v", m.Name, err)
		}
		for _, other := range shared.Machines {
			// A consistent read by another master sees what was acknowledged just now.
			if _, err := shared.clientOf(t, other).CoreV1().ConfigMaps(ns).Get(t.Context(), "by-"+m.Name, metav1.GetOptions{}); err != nil {
				t.Errorf("%s does not see what %s acknowledged: %v", other.Name, m.Name, err)
			}
		}
	}
	maps, err := shared.client(t).CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, cm := range maps.Items {
		if strings.HasPrefix(cm.Name, "by-") {
			found++
		}
	}
	if found != len(shared.Machines) {
		t.Errorf("the virtual IP shows %d of %d", found, len(shared.Machines))
	}
}
