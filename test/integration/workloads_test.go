package integration

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"barque.dev/examples"
)

// A Deployment rolls to a new image and back, and never leaves the bounds it was given.
func TestDeploymentRollsAndRollsBack(t *testing.T) {
	s := newScene(t)
	s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: d, namespace: NS}
spec:
  replicas: 3
  selector: {matchLabels: {app: d}}
  strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: d}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: hello, image: "` + examples.HelloV1 + `", readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}}
`)
	rollout := func(args ...string) string {
		return shared.kubectl(t, append([]string{"-n", s.ns, "rollout"}, args...)...)
	}
	rollout("status", "deployment/d", "--timeout=60s")
	watch, err := s.client.AppsV1().Deployments(s.ns).Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	watched := make(chan error, 1)
	go func() {
		defer close(watched)
		for e := range watch.ResultChan() {
			d, ok := e.Object.(*appsv1.Deployment)
			if ok && (d.Status.Replicas > 4 || d.Status.AvailableReplicas < 3) {
				watched <- fmt.Errorf("%d pods, %d available", d.Status.Replicas, d.Status.AvailableReplicas)
				return
			}
		}
	}()
	images := func(want string) {
		t.Helper()
		rollout("status", "deployment/d", "--timeout=60s")
		for _, p := range s.pods("app=d") {
			if p.DeletionTimestamp == nil && p.Spec.Containers[0].Image != want {
				t.Errorf("pod %s has %s, want %s", p.Name, p.Spec.Containers[0].Image, want)
			}
		}
	}
	set := func(image string) { shared.kubectl(t, "-n", s.ns, "set", "image", "deployment/d", "hello="+image) }
	set(examples.HelloV2)
	images(examples.HelloV2)
	rollout("undo", "deployment/d")
	images(examples.HelloV1)
	watch.Stop()
	if err := <-watched; err != nil {
		t.Errorf("out of bounds while rolling: %v", err)
	}

	// A paused Deployment scales but does not roll.
	rollout("pause", "deployment/d")
	set(examples.HelloV2)
	shared.kubectl(t, "-n", s.ns, "scale", "deployment/d", "--replicas=4")
	s.deployment("d", "is observed and scaled", func(d *appsv1.Deployment) bool {
		return d.Status.ObservedGeneration == d.Generation && d.Status.ReadyReplicas == 4 && d.Status.UpdatedReplicas == 0
	})
	rollout("resume", "deployment/d")
	images(examples.HelloV2)
	history := rollout("history", "deployment/d")
	if strings.Contains(history, "\n1 ") || !strings.Contains(history, "\n4 ") {
		t.Errorf("revisions after v1, v2, v1 again, v2 again:\n%s", history)
	}
	sets, err := s.client.AppsV1().ReplicaSets(s.ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	same(t, "replica sets", len(sets.Items), 2)
}

// deployment waits until a Deployment is as check wants it.
func (s *scene) deployment(name, what string, check func(*appsv1.Deployment) bool) {
	s.Helper()
	eventually(s, patience, "deployment "+name+" "+what, func() error {
		d, err := s.client.AppsV1().Deployments(s.ns).Get(s.Context(), name, metav1.GetOptions{})
		if err == nil && !check(d) {
			err = fmt.Errorf("generation %d, status %+v", d.Generation, d.Status)
		}
		return err
	})
}

// A Deployment that does not come on says so; Recreate ends the old before it starts the new.
func TestDeploymentDeadlineAndRecreate(t *testing.T) {
	s := newScene(t)
	s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: stuck, namespace: NS}
spec:
  progressDeadlineSeconds: 2
  selector: {matchLabels: {app: stuck}}
  template:
    metadata: {labels: {app: stuck}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: BUSYBOX, command: [sleep, "1000"], readinessProbe: {exec: {command: ["false"]}}}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: again, namespace: NS}
spec:
  replicas: 2
  strategy: {type: Recreate}
  selector: {matchLabels: {app: again}}
  template:
    metadata: {labels: {app: again}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: BUSYBOX, command: [sleep, "1000"]}]}
`)
	s.deployment("stuck", "gives up", func(d *appsv1.Deployment) bool {
		return slices.ContainsFunc(d.Status.Conditions, func(c appsv1.DeploymentCondition) bool {
			return c.Type == appsv1.DeploymentProgressing && c.Status == corev1.ConditionFalse && c.Reason == "ProgressDeadlineExceeded"
		})
	})
	shared.kubectl(t, "-n", s.ns, "rollout", "status", "deployment/again", "--timeout=60s")
	old := map[types.UID]bool{}
	for _, p := range s.pods("app=again") {
		old[p.UID] = true
	}
	shared.kubectl(t, "-n", s.ns, "rollout", "restart", "deployment/again")
	eventually(t, patience, "two new pods", func() error {
		before, after := 0, 0
		for _, p := range s.pods("app=again") {
			if old[p.UID] {
				before++
			} else {
				after++
			}
		}
		if before > 0 && after > 0 {
			t.Fatalf("%d old and %d new pods at once", before, after)
		}
		if after != 2 {
			return fmt.Errorf("%d", after)
		}
		return nil
	})
}

// A StatefulSet starts in order, keeps names, is found by DNS, and rolls from a partition on.
func TestStatefulSet(t *testing.T) {
	s := newScene(t)
	s.apply(`
apiVersion: v1
kind: Service
metadata: {name: db, namespace: NS}
spec: {clusterIP: None, selector: {app: db}, ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: NS}
spec:
  serviceName: db
  replicas: 3
  selector: {matchLabels: {app: db}}
  updateStrategy: {rollingUpdate: {partition: 1}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: c, image: BUSYBOX, command: [sleep, "1000"], readinessProbe: {exec: {command: ["true"]}, periodSeconds: 1}}
`)
	for i := range 3 {
		s.until(fmt.Sprint("db-", i), "ready", podReady)
	}
	pods := s.pods("app=db")
	slices.SortFunc(pods, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < 3; i++ {
		ready, made := podCondition(&pods[i-1], corev1.PodReady).LastTransitionTime, pods[i].CreationTimestamp
		if made.Before(&ready) {
			t.Errorf("db-%d was made at %v, before db-%d was ready at %v", i, made, i-1, ready)
		}
	}
	same(t, "host name", s.run("db-1", "c", "hostname"), "db-1")
	eventually(t, patience, "the name in DNS", func() error {
		out, err := s.exec("db-0", "c", "nslookup", "db-2.db."+s.ns+".svc.cluster.local")
		if err == nil && !strings.Contains(out, pods[2].Status.PodIP) {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	patch := `{"spec":{"template":{"metadata":{"annotations":{"roll":"1"}}}}}`
	if _, err := s.client.AppsV1().StatefulSets(s.ns).Patch(t.Context(), "db", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	for i := 2; i > 0; i-- {
		s.until(fmt.Sprint("db-", i), "rolled", func(p *corev1.Pod) error {
			if p.Annotations["roll"] != "1" {
				return fmt.Errorf("old")
			}
			return podReady(p)
		})
	}
	same(t, "the pod below the partition", string(s.until("db-0", "is old", podReady).UID), string(pods[0].UID))
	shared.kubectl(t, "-n", s.ns, "scale", "statefulset/db", "--replicas=1")
	s.gone("db-2")
	s.gone("db-1")
	same(t, "pods", len(s.pods("app=db")), 1)
}

// Jobs: completions, parallelism, indexes, failures, and their end.
func TestJobs(t *testing.T) {
	s := newScene(t)
	job := func(name, spec, script string) {
		s.apply(`
apiVersion: batch/v1
kind: Job
metadata: {name: ` + name + `, namespace: NS}
spec:
  ` + spec + `
  template:
    spec: {restartPolicy: Never, terminationGracePeriodSeconds: 0, containers: [{name: c, image: BUSYBOX, command: [sh, -c, '` + script + `']}]}
`)
	}
	job("many", "completions: 4\n  parallelism: 2", "true")
	job("indexed", "completions: 3\n  parallelism: 3\n  completionMode: Indexed", "echo $JOB_COMPLETION_INDEX")
	job("fails", "backoffLimit: 1", "exit 1")
	job("short", "ttlSecondsAfterFinished: 0", "true")
	job("late", "activeDeadlineSeconds: 2", "sleep 1000")
	wait := func(name string, kind batchv1.JobConditionType) *batchv1.Job {
		t.Helper()
		var j *batchv1.Job
		eventually(t, patience, "job "+name+" is "+string(kind), func() (err error) {
			if j, err = s.client.BatchV1().Jobs(s.ns).Get(t.Context(), name, metav1.GetOptions{}); err != nil {
				return err
			}
			for _, c := range j.Status.Conditions {
				if c.Type == kind && c.Status == corev1.ConditionTrue {
					return nil
				}
			}
			return fmt.Errorf("%+v", j.Status)
		})
		return j
	}
	same(t, "completions", wait("many", batchv1.JobComplete).Status.Succeeded, 4)
	j := wait("indexed", batchv1.JobComplete)
	same(t, "indexes", j.Status.CompletedIndexes, "0-2")
	said := map[string]bool{}
	for _, p := range s.pods("job-name=indexed") {
		said[strings.TrimSpace(s.logs(p.Name, "c"))] = true
		if index := p.Annotations[batchv1.JobCompletionIndexAnnotation]; !strings.HasPrefix(p.Name, "indexed-"+index+"-") {
			t.Errorf("pod %s has index %s", p.Name, index)
		}
	}
	same(t, "indexes in the environment", fmt.Sprint(slices.Sorted(maps.Keys(said))), "[0 1 2]")
	j = wait("fails", batchv1.JobFailed)
	same(t, "failures", j.Status.Failed, 2)
	same(t, "reason", j.Status.Conditions[len(j.Status.Conditions)-1].Reason, "BackoffLimitExceeded")
	same(t, "late", wait("late", batchv1.JobFailed).Status.Conditions[0].Message, "Job was active longer than specified deadline")
	eventually(t, patience, "job short is removed", func() error {
		_, err := s.client.BatchV1().Jobs(s.ns).Get(t.Context(), "short", metav1.GetOptions{})
		if err == nil {
			return fmt.Errorf("it is there")
		}
		return ignoreNotFound(err)
	})
}
