package controllers_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/controllers"
	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/cronjob"
	"barque.dev/internal/controllers/daemonset"
	"barque.dev/internal/controllers/deployment"
	"barque.dev/internal/controllers/job"
	"barque.dev/internal/controllers/replicaset"
	"barque.dev/internal/controllers/statefulset"
	"barque.dev/internal/testkit"
)

func template(app string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: app, Image: app + ":1"}}},
	}
}

func selector(app string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}
}

func meta(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "ns", Name: name} }

// workloads are one of each kind, which all their controllers run together.
func workloads() (*appsv1.Deployment, *appsv1.StatefulSet, *appsv1.DaemonSet, *batchv1.Job) {
	one := intstr.FromInt32(1)
	zero := intstr.FromInt32(0)
	d := &appsv1.Deployment{ObjectMeta: meta("web"), Spec: appsv1.DeploymentSpec{
		Replicas: ptr.To[int32](5), Selector: selector("web"), Template: template("web"),
		ProgressDeadlineSeconds: ptr.To[int32](600), RevisionHistoryLimit: ptr.To[int32](2),
		Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType,
			RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &one, MaxUnavailable: &one}},
	}}
	s := &appsv1.StatefulSet{ObjectMeta: meta("db"), Spec: appsv1.StatefulSetSpec{
		Replicas: ptr.To[int32](3), Selector: selector("db"), Template: template("db"), RevisionHistoryLimit: ptr.To[int32](2),
		UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType,
			RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: new(int32)}},
	}}
	ds := &appsv1.DaemonSet{ObjectMeta: meta("agent"), Spec: appsv1.DaemonSetSpec{
		Selector: selector("agent"), Template: template("agent"), RevisionHistoryLimit: ptr.To[int32](2),
		UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.RollingUpdateDaemonSetStrategyType,
			RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxSurge: &zero, MaxUnavailable: &one}},
	}}
	j := &batchv1.Job{ObjectMeta: meta("sum"), Spec: batchv1.JobSpec{
		Parallelism: ptr.To[int32](2), Completions: ptr.To[int32](4), BackoffLimit: ptr.To[int32](6), Selector: selector("sum"), Template: template("sum"),
	}}
	return d, s, ds, j
}

// kubelet lets pods run, or succeed if they are a job's.
func kubelet(ctx context.Context, w *controllertest.World) {
	for ctx.Err() == nil {
		for _, p := range w.Pods() {
			if p.Status.Phase != corev1.PodPending || p.DeletionTimestamp != nil {
				continue
			}
			p.Status.Phase = corev1.PodRunning
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
			if p.Labels["app"] == "sum" {
				p.Status.Phase, p.Status.Conditions = corev1.PodSucceeded, nil
			}
			// A conflict is retried on the next round.
			_ = w.Status().Update(ctx, &p)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Millisecond):
		}
	}
}

func workloadControllers(deps controllers.Deps) []controllers.Controller {
	return []controllers.Controller{
		deployment.New(deps), replicaset.New(deps), statefulset.New(deps), daemonset.New(deps), job.New(deps), job.NewTTL(deps), cronjob.New(deps),
	}
}

func TestWorkloadsRunTogether(t *testing.T) {
	defer goleak.VerifyNone(t)
	w := controllertest.New(t)
	r, err := controllers.NewRunner(controllers.RunnerConfig{Watcher: w, Controllers: workloadControllers(w.Deps()), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done, kubeletDone := make(chan struct{}), make(chan error, 1), make(chan struct{})
	go func() { done <- r.Run(ctx, func() { close(ready) }) }()
	go func() { defer close(kubeletDone); kubelet(ctx, w) }()
	defer func() {
		cancel()
		<-kubeletDone
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	<-ready

	d, s, ds, j := workloads()
	for _, obj := range []client.Object{&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "b"}}, d, s, ds, j} {
		w.MustCreate(obj)
	}
	eventually(t, w, "everything runs", func() bool {
		return controllertest.Reload(w, d).Status.AvailableReplicas == 5 && controllertest.Reload(w, s).Status.AvailableReplicas == 3 &&
			controllertest.Reload(w, ds).Status.NumberAvailable == 2 && controllertest.Reload(w, j).Status.Succeeded == 4 && j.Status.CompletionTime != nil
	})
	edit(t, w, d, func() { d.Spec.Template.Spec.Containers[0].Image = "web:2" })
	edit(t, w, s, func() { s.Spec.Template.Spec.Containers[0].Image = "db:2" })
	edit(t, w, ds, func() { ds.Spec.Template.Spec.Containers[0].Image = "agent:2" })
	eventually(t, w, "everything is updated", func() bool {
		images := map[string]int{}
		for _, p := range w.Pods() {
			images[p.Spec.Containers[0].Image]++
		}
		return images["web:2"] == 5 && images["db:2"] == 3 && images["agent:2"] == 2 && len(images) == 4 &&
			controllertest.Reload(w, d).Status.AvailableReplicas == 5 && d.Status.Replicas == 5
	})
}

func edit(t *testing.T, w *controllertest.World, obj client.Object, change func()) {
	t.Helper()
	eventually(t, w, "an edit goes through", func() bool {
		controllertest.Reload(w, obj)
		change()
		return w.Update(t.Context(), obj) == nil
	})
}

func eventually(t *testing.T, w *controllertest.World, what string, f func() bool) {
	t.Helper()
	if err := testkit.Poll(30*time.Second, testkit.Holds(f)); err != nil {
		t.Fatalf("not in time: %s; events %q", what, w.Events())
	}
}
