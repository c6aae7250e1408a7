package integration

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A ReplicaSet replaces what is deleted and adopts what matches.
func TestReplicaSet(t *testing.T) {
	s := newScene(t)
	s.pod("orphan", "containers: [{name: c, command: [sleep, '1000']}]", func(p *corev1.Pod) { p.Labels = map[string]string{"app": "rs"} })
	s.apply(`
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: rs, namespace: NS}
spec:
  replicas: 2
  selector: {matchLabels: {app: rs}}
  template:
    metadata: {labels: {app: rs}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: BUSYBOX, command: [sleep, "1000"]}]}
`)
	full := func() {
		t.Helper()
		eventually(t, patience, "two ready replicas", func() error {
			rs, err := s.client.AppsV1().ReplicaSets(s.ns).Get(t.Context(), "rs", metav1.GetOptions{})
			if err == nil && (rs.Status.ReadyReplicas != 2 || len(s.pods("app=rs")) != 2) {
				err = fmt.Errorf("%+v", rs.Status)
			}
			return err
		})
	}
	full()
	pod := s.until("orphan", "is adopted", podReady)
	if ref := metav1.GetControllerOf(pod); ref == nil || ref.Name != "rs" {
		t.Errorf("owner %+v", ref)
	}
	if err := s.client.CoreV1().Pods(s.ns).Delete(t.Context(), "orphan", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.gone("orphan")
	full()
}

// A DaemonSet has a pod on each node, and rolls.
func TestDaemonSet(t *testing.T) {
	s := newScene(t)
	s.apply(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: ds, namespace: NS}
spec:
  selector: {matchLabels: {app: ds}}
  template:
    metadata: {labels: {app: ds}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: BUSYBOX, command: [sleep, "1000"]}]}
`)
	rollout := func() { shared.kubectl(t, "-n", s.ns, "rollout", "status", "daemonset/ds", "--timeout=60s") }
	nodes := func() int {
		set := map[string]bool{}
		for _, p := range s.pods("app=ds") {
			set[p.Spec.NodeName] = true
		}
		return len(set)
	}
	rollout()
	same(t, "nodes", nodes(), 3)
	old := map[types.UID]bool{}
	for _, p := range s.pods("app=ds") {
		old[p.UID] = true
	}
	shared.kubectl(t, "-n", s.ns, "rollout", "restart", "daemonset/ds")
	rollout()
	for _, p := range s.pods("app=ds") {
		if old[p.UID] && p.DeletionTimestamp == nil {
			t.Errorf("pod %s did not roll", p.Name)
		}
	}
	same(t, "nodes after the roll", nodes(), 3)
}

// A CronJob starts what its schedule has missed, and by hand.
func TestCronJob(t *testing.T) {
	s := newScene(t)
	manifest := `
apiVersion: batch/v1
kind: CronJob
metadata: {name: cron, namespace: NS}
spec:
  schedule: "* * * * *"
  suspend: true
  jobTemplate:
    spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: BUSYBOX, command: [echo, hi]}]}}}
`
	s.apply(manifest)
	shared.kubectl(t, "-n", s.ns, "create", "job", "by-hand", "--from=cronjob/cron")
	shared.kubectl(t, "-n", s.ns, "wait", "--for=condition=Complete", "job/by-hand", "--timeout=60s")
	// What was last started an hour ago has missed its start while it was suspended.
	status, err := json.Marshal(map[string]any{"status": map[string]any{"lastScheduleTime": metav1.NewTime(metav1.Now().Add(-3600e9))}})
	if err != nil {
		t.Fatal(err)
	}
	cronJobs := s.client.BatchV1().CronJobs(s.ns)
	if _, err := cronJobs.Patch(t.Context(), "cron", types.MergePatchType, status, metav1.PatchOptions{}, "status"); err != nil {
		t.Fatal(err)
	}
	if _, err := cronJobs.Patch(t.Context(), "cron", types.MergePatchType, []byte(`{"spec":{"suspend":false}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "a job of the schedule", func() error {
		jobs, err := s.client.BatchV1().Jobs(s.ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, j := range jobs.Items {
			if ref := metav1.GetControllerOf(&j); strings.HasPrefix(j.Name, "cron-") && ref != nil && ref.Name == "cron" && j.Status.Succeeded == 1 {
				return nil
			}
		}
		return fmt.Errorf("%d jobs", len(jobs.Items))
	})
}
