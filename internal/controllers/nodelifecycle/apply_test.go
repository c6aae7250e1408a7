package nodelifecycle

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/controllers/controllertest"
)

// A node that speaks between the verdict and its writing is not made silent.
func TestUnknownIsSaidOfTheNodeThatWasJudged(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	node.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: "KubeletNotReady"}}
	w := controllertest.New(t, node)
	var judged corev1.Node
	if err := w.Get(t.Context(), client.ObjectKeyFromObject(node), &judged); err != nil {
		t.Fatal(err)
	}
	spoke := judged.DeepCopy()
	spoke.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}}
	if err := w.Status().Update(t.Context(), spoke); err != nil {
		t.Fatal(err)
	}
	c := &controller{deps: w.Deps(), recorder: w.Deps().Recorder("node-controller"), signs: map[string]sign{}}
	if err := c.apply(t.Context(), &judged, unknown, time.Now()); !apierrors.IsConflict(err) {
		t.Errorf("got %v, want a conflict", err)
	}
	var now corev1.Node
	if err := w.Get(t.Context(), client.ObjectKeyFromObject(node), &now); err != nil {
		t.Fatal(err)
	}
	if !isReady(&now) || len(now.Spec.Taints) != 0 {
		t.Errorf("the node is %v, with taints %v", now.Status.Conditions, now.Spec.Taints)
	}
}
