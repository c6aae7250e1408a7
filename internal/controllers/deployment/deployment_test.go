package deployment_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/deployment"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
	"barque.dev/internal/controllers/replicaset"
)

func newDeployment(replicas int32) *appsv1.Deployment {
	one, zero := intstr.FromInt32(1), intstr.FromInt32(0)
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &one, MaxUnavailable: &zero},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web:1"}}},
			},
			ProgressDeadlineSeconds: ptr.To[int32](600),
			RevisionHistoryLimit:    ptr.To[int32](2),
		},
	}
}

// A cluster of Deployments and ReplicaSets whose pods run when the test says so.
type cluster struct {
	*controllertest.World
	t           *testing.T
	controllers []kit.Controller
}

func newCluster(t *testing.T, d *appsv1.Deployment) cluster {
	w := controllertest.New(t, d)
	return cluster{w, t, []kit.Controller{deployment.New(w.Deps()), replicaset.New(w.Deps())}}
}

// roll lets pods become ready until nothing moves any more.
func (c cluster) roll() {
	c.t.Helper()
	for range 100 {
		c.Settle(c.controllers...)
		moved := false
		for _, p := range c.Pods() {
			if p.Status.Phase == corev1.PodPending {
				c.Run(&p, true)
				moved = true
			}
		}
		if !moved {
			return
		}
	}
	c.t.Fatal("the rollout does not end")
}

func (c cluster) images() map[string]int {
	images := map[string]int{}
	for _, p := range c.Pods() {
		images[p.Spec.Containers[0].Image]++
	}
	return images
}

func (c cluster) sets() []appsv1.ReplicaSet {
	var list appsv1.ReplicaSetList
	if err := c.List(context.Background(), &list); err != nil {
		c.t.Fatal(err)
	}
	slices.SortFunc(list.Items, func(a, b appsv1.ReplicaSet) int {
		return strings.Compare(a.Annotations["deployment.kubernetes.io/revision"], b.Annotations["deployment.kubernetes.io/revision"])
	})
	return list.Items
}

func (c cluster) setImage(d *appsv1.Deployment, image string) {
	controllertest.Change(c.World, d, func(d *appsv1.Deployment) { d.Spec.Template.Spec.Containers[0].Image = image })
}

func reason(d *appsv1.Deployment, kind appsv1.DeploymentConditionType) string {
	for _, c := range d.Status.Conditions {
		if c.Type == kind {
			return c.Reason
		}
	}
	return ""
}

func TestRollsOutAndBack(t *testing.T) {
	d := newDeployment(3)
	c := newCluster(t, d)
	c.roll()
	hash := pods.TemplateHash(&d.Spec.Template, nil)
	first := c.sets()[0]
	if first.Name != "web-"+hash || first.Spec.Selector.MatchLabels["pod-template-hash"] != hash || first.Labels["pod-template-hash"] != hash || !metav1.IsControlledBy(&first, d) {
		t.Errorf("ReplicaSet %+v", first.ObjectMeta)
	}
	controllertest.Reload(c.World, d)
	if d.Status.AvailableReplicas != 3 || d.Status.UpdatedReplicas != 3 || d.Annotations["deployment.kubernetes.io/revision"] != "1" || reason(d, appsv1.DeploymentProgressing) != "NewReplicaSetAvailable" || reason(d, appsv1.DeploymentAvailable) != "MinimumReplicasAvailable" {
		t.Errorf("status %+v, annotations %v", d.Status, d.Annotations)
	}

	c.setImage(d, "web:2")
	c.roll()
	if images := c.images(); images["web:2"] != 3 || len(images) != 1 {
		t.Errorf("images %v", images)
	}
	if sets := c.sets(); len(sets) != 2 || *sets[0].Spec.Replicas != 0 || *sets[1].Spec.Replicas != 3 {
		t.Errorf("sets %+v", sets)
	}

	// kubectl rollout undo puts the template of the old set into the deployment.
	c.setImage(d, "web:1")
	c.roll()
	controllertest.Reload(c.World, d)
	sets := c.sets()
	if images := c.images(); images["web:1"] != 3 || len(sets) != 2 || sets[1].Name != first.Name || d.Annotations["deployment.kubernetes.io/revision"] != "3" {
		t.Errorf("images %v, sets %v, annotations %v", images, sets, d.Annotations)
	}
	if h := sets[1].Annotations["deployment.kubernetes.io/revision-history"]; h != "1" {
		t.Errorf("history %q", h)
	}
	for _, want := range []string{
		"Normal ScalingReplicaSet Scaled up replica set " + first.Name + " from 0 to 3",
		"Normal ScalingReplicaSet Scaled down replica set " + first.Name + " from 3 to 2",
	} {
		if !slices.Contains(c.Events(), want) {
			t.Errorf("no event %q in %q", want, c.Events())
		}
	}
}

func TestKeepsHistoryWithinItsLimit(t *testing.T) {
	d := newDeployment(1)
	c := newCluster(t, d)
	for i := range 6 {
		c.setImage(d, fmt.Sprint("web:", i))
		c.roll()
	}
	if sets := c.sets(); len(sets) != 3 || sets[0].Spec.Template.Spec.Containers[0].Image != "web:3" {
		t.Errorf("%d sets", len(sets))
	}
}

func TestPausedDeploymentScalesButDoesNotRoll(t *testing.T) {
	d := newDeployment(2)
	c := newCluster(t, d)
	c.roll()
	controllertest.Change(c.World, d, func(d *appsv1.Deployment) { d.Spec.Paused = true })
	c.setImage(d, "web:2")
	controllertest.Change(c.World, d, func(d *appsv1.Deployment) { d.Spec.Replicas = ptr.To[int32](4) })
	c.roll()
	if images := c.images(); images["web:1"] != 4 || len(images) != 1 {
		t.Errorf("images %v", images)
	}
	if r := reason(controllertest.Reload(c.World, d), appsv1.DeploymentProgressing); r != "DeploymentPaused" {
		t.Errorf("reason %s", r)
	}
	controllertest.Change(c.World, d, func(d *appsv1.Deployment) { d.Spec.Paused = false })
	c.roll()
	if images := c.images(); images["web:2"] != 4 || len(images) != 1 {
		t.Errorf("images %v", images)
	}
}

func TestRecreateWaitsForOldPods(t *testing.T) {
	d := newDeployment(2)
	d.Spec.Strategy = appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}
	c := newCluster(t, d)
	c.roll()
	old := c.Pods()
	controllertest.Change(c.World, &old[0], func(p *corev1.Pod) { p.Finalizers = []string{"test/hold"} })
	c.setImage(d, "web:2")
	c.roll()
	if images := c.images(); images["web:1"] != 1 || images["web:2"] != 0 {
		t.Fatalf("images %v while an old pod terminates", images)
	}
	controllertest.Change(c.World, &old[0], func(p *corev1.Pod) { p.Finalizers = nil })
	c.roll()
	if images := c.images(); images["web:2"] != 2 || len(images) != 1 {
		t.Errorf("images %v", images)
	}
}

func TestCollisionOfNames(t *testing.T) {
	d := newDeployment(1)
	other := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web-" + pods.TemplateHash(&d.Spec.Template, nil), Labels: map[string]string{"app": "other"}},
		Spec:       appsv1.ReplicaSetSpec{Replicas: new(int32), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "other"}}},
	}
	c := newCluster(t, d)
	c.MustCreate(other)
	if _, err := c.controllers[0].Reconcile(t.Context(), kit.RequestFor(d)); err == nil {
		t.Fatal("no error")
	}
	if n := controllertest.Reload(c.World, d).Status.CollisionCount; n == nil || *n != 1 {
		t.Fatalf("collision count %v", n)
	}
	c.roll()
	if sets := c.sets(); len(sets) != 2 || len(c.Pods()) != 1 {
		t.Errorf("sets %v", sets)
	}
}

func TestDeletedDeploymentChangesNothing(t *testing.T) {
	d := newDeployment(2)
	c := newCluster(t, d)
	c.roll()
	controllertest.Change(c.World, d, func(d *appsv1.Deployment) { d.Finalizers = []string{"foregroundDeletion"} })
	if err := c.Delete(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	c.setImage(d, "web:2")
	c.Settle(c.controllers...)
	if sets := c.sets(); len(sets) != 1 || *sets[0].Spec.Replicas != 2 {
		t.Errorf("sets %v", sets)
	}
}
