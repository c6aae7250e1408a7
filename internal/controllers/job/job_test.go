package job

import (
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/client"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/kit"
)

func newJob(parallelism int32, completions *int32) *batchv1.Job {
	labels := map[string]string{"job": "sum"}
	return &batchv1.Job{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "sum"},
		Spec: batchv1.JobSpec{
			Parallelism:          &parallelism,
			Completions:          completions,
			BackoffLimit:         ptr.To[int32](6),
			CompletionMode:       ptr.To(batchv1.NonIndexedCompletion),
			Suspend:              ptr.To(false),
			PodReplacementPolicy: ptr.To(batchv1.TerminatingOrFailed),
			Selector:             &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{RestartPolicy: corev1.RestartPolicyNever, Containers: []corev1.Container{{Name: "sum", Image: "sum"}}},
			},
		},
	}
}

func newIndexedJob(parallelism, completions int32) *batchv1.Job {
	j := newJob(parallelism, &completions)
	j.Spec.CompletionMode = ptr.To(batchv1.IndexedCompletion)
	return j
}

// unfinished returns the pods that have not ended.
func unfinished(w *controllertest.World) []corev1.Pod {
	return slices.DeleteFunc(w.Pods(), func(p corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	})
}

func conditions(j *batchv1.Job) string {
	var list []string
	for _, c := range j.Status.Conditions {
		list = append(list, fmt.Sprintf("%s=%s(%s)", c.Type, c.Status, c.Reason))
	}
	return strings.Join(list, " ")
}

func TestRunsToCompletion(t *testing.T) {
	j := newJob(2, ptr.To[int32](3))
	w := controllertest.New(t, j)
	c := New(w.Deps())
	for range 3 {
		w.Settle(c)
		w.End(&unfinished(w)[0], corev1.PodSucceeded)
	}
	w.Settle(c)
	controllertest.Reload(w, j)
	s := j.Status
	if s.Succeeded != 3 || s.Failed != 0 || s.Active != 0 || s.CompletionTime == nil || s.StartTime == nil || len(s.UncountedTerminatedPods.Succeeded) != 0 {
		t.Errorf("status %+v", s)
	}
	if got := conditions(j); got != "SuccessCriteriaMet=True(CompletionsReached) Complete=True(CompletionsReached)" {
		t.Errorf("conditions %s", got)
	}
	list := w.Pods()
	if len(list) != 3 {
		t.Errorf("%d pods", len(list))
	}
	for _, p := range list {
		if len(p.Finalizers) != 0 {
			t.Errorf("pod %s holds %v", p.Name, p.Finalizers)
		}
	}
	if !slices.Contains(w.Events(), "Normal Completed Job completed") {
		t.Errorf("events %q", w.Events())
	}
}

func TestWorkQueueStopsAfterTheFirstSuccess(t *testing.T) {
	j := newJob(3, nil)
	w := controllertest.New(t, j)
	c := New(w.Deps())
	w.Settle(c)
	list := unfinished(w)
	w.End(&list[0], corev1.PodSucceeded)
	w.Settle(c)
	if n := len(w.Pods()); n != 3 || finished(controllertest.Reload(w, j)) != nil {
		t.Fatalf("%d pods, %s", n, conditions(j))
	}
	w.End(&list[1], corev1.PodSucceeded)
	w.End(&list[2], corev1.PodFailed)
	w.Settle(c)
	if s := controllertest.Reload(w, j).Status; s.Succeeded != 2 || s.Failed != 1 || finished(j).Type != batchv1.JobComplete {
		t.Errorf("status %+v", s)
	}
}

func TestBacksOffAndFails(t *testing.T) {
	j := newJob(1, ptr.To[int32](1))
	j.Spec.BackoffLimit = ptr.To[int32](2)
	w := controllertest.New(t, j)
	c := New(w.Deps())
	for _, wait := range []time.Duration{10 * time.Second, 20 * time.Second} {
		w.Settle(c)
		w.End(&unfinished(w)[0], corev1.PodFailed)
		w.Settle(c)
		if r := w.Reconcile(c, j); r.RequeueAfter != wait || len(unfinished(w)) != 0 {
			t.Errorf("the next pod waits %v, want %v", r.RequeueAfter, wait)
		}
		w.Clock.Step(wait)
	}
	w.Settle(c)
	w.End(&unfinished(w)[0], corev1.PodFailed)
	w.Settle(c)
	controllertest.Reload(w, j)
	if got := conditions(j); got != "FailureTarget=True(BackoffLimitExceeded) Failed=True(BackoffLimitExceeded)" || j.Status.Failed != 3 {
		t.Errorf("conditions %s, %d failed", got, j.Status.Failed)
	}
}

func TestDeadline(t *testing.T) {
	j := newJob(2, ptr.To[int32](2))
	j.Spec.ActiveDeadlineSeconds = ptr.To[int64](60)
	w := controllertest.New(t, j)
	c := New(w.Deps())
	w.Settle(c)
	for _, p := range unfinished(w) {
		w.Run(&p, true)
	}
	w.Clock.Step(45 * time.Second)
	if r := w.Reconcile(c, j); r.RequeueAfter != 15*time.Second {
		t.Errorf("looks again after %v", r.RequeueAfter)
	}
	w.Clock.Step(15 * time.Second)
	w.Settle(c)
	controllertest.Reload(w, j)
	if got := conditions(j); got != "FailureTarget=True(DeadlineExceeded) Failed=True(DeadlineExceeded)" || j.Status.Failed != 2 || j.Status.Active != 0 || len(w.Pods()) != 0 {
		t.Errorf("conditions %s, status %+v, %d pods", got, j.Status, len(w.Pods()))
	}
}

func TestSuspension(t *testing.T) {
	j := newJob(2, ptr.To[int32](2))
	w := controllertest.New(t, j)
	c := New(w.Deps())
	w.Settle(c)
	suspend := func(yes bool) {
		controllertest.Change(w, j, func(j *batchv1.Job) { j.Spec.Suspend = &yes })
		w.Settle(c)
		controllertest.Reload(w, j)
	}
	suspend(true)
	if got := conditions(j); got != "Suspended=True(JobSuspended)" || j.Status.StartTime != nil || len(w.Pods()) != 0 || j.Status.Active != 0 || j.Status.Failed != 0 {
		t.Errorf("conditions %s, status %+v, %d pods", got, j.Status, len(w.Pods()))
	}
	w.Clock.Step(time.Hour)
	suspend(false)
	if got := conditions(j); got != "Suspended=False(JobResumed)" || !j.Status.StartTime.Time.Equal(w.Clock.Now()) || j.Status.Active != 2 {
		t.Errorf("conditions %s, status %+v", got, j.Status)
	}
}

func TestIndexed(t *testing.T) {
	j := newIndexedJob(2, 5)
	w := controllertest.New(t, j)
	c := New(w.Deps())
	w.Settle(c)
	p := unfinished(w)[0]
	if p.Annotations[batchv1.JobCompletionIndexAnnotation] != "0" || p.Labels[batchv1.JobCompletionIndexAnnotation] != "0" || p.Spec.Hostname != "sum-0" || !strings.HasPrefix(p.Name, "sum-0-") || p.Spec.Containers[0].Env[0].Name != "JOB_COMPLETION_INDEX" {
		t.Errorf("pod %+v", p)
	}
	end := func(index int, phase corev1.PodPhase) {
		t.Helper()
		for _, p := range unfinished(w) {
			if indexOf(&p) == index {
				w.End(&p, phase)
				w.Settle(c)
				return
			}
		}
		t.Fatalf("no pod of index %d", index)
	}
	end(1, corev1.PodSucceeded)
	end(2, corev1.PodSucceeded)
	end(3, corev1.PodFailed)
	if s := controllertest.Reload(w, j).Status; s.CompletedIndexes != "1,2" || s.Succeeded != 2 || s.Failed != 1 {
		t.Errorf("status %+v", s)
	}
	w.Clock.Step(time.Minute)
	w.Settle(c)
	for _, i := range []int{3, 4, 0} {
		end(i, corev1.PodSucceeded)
	}
	if s := controllertest.Reload(w, j).Status; s.CompletedIndexes != "0-4" || finished(j).Type != batchv1.JobComplete || s.FailedIndexes != nil {
		t.Errorf("status %+v", s)
	}
}

func TestBackoffLimitPerIndex(t *testing.T) {
	j := newIndexedJob(2, 2)
	j.Spec.BackoffLimitPerIndex = ptr.To[int32](1)
	j.Spec.BackoffLimit = ptr.To[int32](1000)
	w := controllertest.New(t, j)
	c := New(w.Deps())
	w.Settle(c)
	list := unfinished(w)
	w.End(&list[0], corev1.PodFailed)
	w.End(&list[1], corev1.PodSucceeded)
	w.Settle(c)
	if len(controllertest.Reload(w, &list[0]).Finalizers) == 0 {
		t.Error("the failed pod was released before its replacement has its count")
	}
	if r := w.Reconcile(c, j); r.RequeueAfter != 10*time.Second {
		t.Errorf("looks again after %v", r.RequeueAfter)
	}
	w.Clock.Step(10 * time.Second)
	w.Settle(c)
	again := unfinished(w)
	if len(again) != 1 || again[0].Annotations[batchv1.JobIndexFailureCountAnnotation] != "1" {
		t.Fatalf("pods %+v", again)
	}
	w.End(&again[0], corev1.PodFailed)
	w.Settle(c)
	controllertest.Reload(w, j)
	if got := conditions(j); got != "FailureTarget=True(FailedIndexes) Failed=True(FailedIndexes)" || *j.Status.FailedIndexes != "0" || j.Status.CompletedIndexes != "1" || j.Status.Failed != 2 {
		t.Errorf("conditions %s, status %+v", got, j.Status)
	}
}

func TestPodFailurePolicy(t *testing.T) {
	policy := &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{
		{Action: batchv1.PodFailurePolicyActionIgnore, OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}}},
		{Action: batchv1.PodFailurePolicyActionFailJob, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{42}}},
	}}
	exit := func(p *corev1.Pod, code int32) {
		p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "sum", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}}}
	}
	for name, c := range map[string]struct {
		change     func(*corev1.Pod)
		failed     int32
		conditions string
	}{
		"ignored": {func(p *corev1.Pod) {
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue})
		}, 0, ""},
		"fatal":    {func(p *corev1.Pod) { exit(p, 42) }, 1, "FailureTarget=True(PodFailurePolicy) Failed=True(PodFailurePolicy)"},
		"ordinary": {func(p *corev1.Pod) { exit(p, 1) }, 1, ""},
	} {
		j := newJob(1, ptr.To[int32](1))
		j.Spec.PodFailurePolicy, j.Spec.PodReplacementPolicy = policy, ptr.To(batchv1.Failed)
		w := controllertest.New(t, j)
		ctl := New(w.Deps())
		w.Settle(ctl)
		p := unfinished(w)[0]
		w.End(&p, corev1.PodFailed)
		controllertest.Change(w, &p, c.change)
		w.Settle(ctl)
		controllertest.Reload(w, j)
		if got := conditions(j); got != c.conditions || j.Status.Failed != c.failed {
			t.Errorf("%s: conditions %q, %d failed", name, got, j.Status.Failed)
		}
	}
}

func TestSuccessPolicy(t *testing.T) {
	j := newIndexedJob(3, 3)
	j.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: ptr.To("0"), SucceededCount: ptr.To[int32](1)}}}
	w := controllertest.New(t, j)
	c := New(w.Deps())
	w.Settle(c)
	list := unfinished(w)
	for _, i := range []int{1, 0} {
		w.End(&list[i], corev1.PodSucceeded)
		w.Settle(c)
	}
	controllertest.Reload(w, j)
	if got := conditions(j); got != "SuccessCriteriaMet=True(SuccessPolicy) Complete=True(SuccessPolicy)" || j.Status.Succeeded != 2 || j.Status.Failed != 0 {
		t.Errorf("conditions %s, status %+v", got, j.Status)
	}
}

func TestPodReplacementPolicy(t *testing.T) {
	for policy, want := range map[batchv1.PodReplacementPolicy]int{batchv1.TerminatingOrFailed: 2, batchv1.Failed: 1} {
		j := newJob(1, ptr.To[int32](1))
		j.Spec.PodReplacementPolicy = &policy
		w := controllertest.New(t, j)
		c := New(w.Deps())
		w.Settle(c)
		p := unfinished(w)[0]
		controllertest.Change(w, &p, func(p *corev1.Pod) { p.Finalizers = append(p.Finalizers, "test/hold") })
		if err := w.Delete(t.Context(), &p); err != nil {
			t.Fatal(err)
		}
		w.Settle(c)
		w.Clock.Step(time.Minute)
		w.Settle(c)
		if n := len(w.Pods()); n != want {
			t.Errorf("%s: %d pods, want %d", policy, n, want)
		}
		if s := controllertest.Reload(w, j).Status; *s.Terminating != 1 {
			t.Errorf("%s: status %+v", policy, s)
		}
	}
}

func TestReleasesStrays(t *testing.T) {
	j := newJob(1, ptr.To[int32](1))
	w := controllertest.New(t, j)
	c := New(w.Deps())
	w.Settle(c)
	p := unfinished(w)[0]
	gone := j.DeepCopy()
	if err := w.Delete(t.Context(), j); err != nil {
		t.Fatal(err)
	}
	w.Reconcile(c, gone)
	if len(controllertest.Reload(w, &p).Finalizers) != 0 {
		t.Error("the pod of a job that is gone was not released")
	}
	orphan := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "orphan", Finalizers: []string{batchv1.JobTrackingFinalizer, "other"}}}
	w.MustCreate(orphan)
	requests := c.Watches[2].Requests(barqueclient.Event{New: orphan})
	if len(requests) != 1 {
		t.Fatalf("an orphan wakes %v", requests)
	}
	if _, err := c.Reconcile(t.Context(), requests[0]); err != nil {
		t.Fatal(err)
	}
	if f := controllertest.Reload(w, orphan).Finalizers; !slices.Equal(f, []string{"other"}) {
		t.Errorf("finalizers %v", f)
	}
}

func TestLeavesJobsOfOthersAlone(t *testing.T) {
	j := newJob(1, nil)
	j.Spec.ManagedBy = ptr.To("example.com/other")
	w := controllertest.New(t, j)
	w.Settle(New(w.Deps()))
	if len(w.Pods()) != 0 {
		t.Error("a job of another controller was run")
	}
}

func TestTTL(t *testing.T) {
	j := newJob(1, ptr.To[int32](1))
	j.Spec.TTLSecondsAfterFinished = ptr.To[int32](100)
	w := controllertest.New(t, j)
	c, ttl := New(w.Deps()), NewTTL(w.Deps())
	w.Settle(c, ttl)
	w.End(&unfinished(w)[0], corev1.PodSucceeded)
	w.Settle(c, ttl)
	w.Clock.Step(40 * time.Second)
	if r := w.Reconcile(ttl, j); r.RequeueAfter != time.Minute {
		t.Errorf("looks again after %v", r.RequeueAfter)
	}
	w.Clock.Step(time.Minute)
	w.Reconcile(ttl, j)
	if err := w.Get(t.Context(), client.ObjectKeyFromObject(j), j); !apierrors.IsNotFound(err) {
		t.Errorf("the job is still there: %v", err)
	}
}

// Pods end in any way while the controller's writes fail, before or after they took effect, at
// random. When the job ends, every pod that ended by itself has been counted exactly once.
func TestCountsEveryPodOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		indexed := rapid.Bool().Draw(t, "indexed")
		completions := rapid.Int32Range(1, 4).Draw(t, "completions")
		j := newJob(rapid.Int32Range(1, 4).Draw(t, "parallelism"), &completions)
		if indexed {
			j.Spec.CompletionMode = ptr.To(batchv1.IndexedCompletion)
		}
		j.Spec.BackoffLimit = ptr.To(rapid.Int32Range(0, 5).Draw(t, "backoffLimit"))
		w := controllertest.New(t, j)
		c := New(w.Deps())
		var trouble int
		var seed uint32
		// Writes are concurrent, so that their fates follow from what they are, not from their order.
		mayFail := func(when string) func(string, client.Object) error {
			return func(verb string, obj client.Object) error {
				h := fnv.New32a()
				fmt.Fprint(h, seed, when, verb, obj.GetName())
				if int(h.Sum32()%10) < trouble {
					return errors.New("the network is down")
				}
				return nil
			}
		}
		w.Fail, w.After = mayFail("before"), mayFail("after")
		succeeded, failed := map[types.UID]int{}, map[types.UID]bool{}
		for step := 0; finished(controllertest.Reload(w, j)) == nil; step++ {
			if step > 300 {
				t.Fatalf("the job does not end: %+v", j.Status)
			}
			trouble, seed = rapid.IntRange(0, 4).Draw(t, "trouble")*(1-step/250), rapid.Uint32().Draw(t, "seed")
			_, _ = c.Reconcile(t.Context(), kit.RequestFor(j))
			trouble = 0
			w.Clock.Step(time.Duration(rapid.IntRange(0, 300).Draw(t, "seconds")) * time.Second)
			for _, p := range unfinished(w) {
				if p.DeletionTimestamp != nil {
					continue
				}
				switch rapid.IntRange(0, 2).Draw(t, "fate of a pod") {
				case 0:
					w.End(&p, corev1.PodSucceeded)
					succeeded[p.UID] = indexOf(&p)
				case 1:
					w.End(&p, corev1.PodFailed)
					failed[p.UID] = true
				}
			}
		}
		trouble = 0
		s := j.Status
		wantSucceeded := len(succeeded)
		if indexed {
			var all indexes
			for _, n := range succeeded {
				all = all.with(n)
			}
			wantSucceeded = all.total()
			if s.CompletedIndexes != all.String() {
				t.Fatalf("indexes %s, want %s", s.CompletedIndexes, all)
			}
		}
		if int(s.Succeeded) != wantSucceeded || len(s.UncountedTerminatedPods.Succeeded)+len(s.UncountedTerminatedPods.Failed) != 0 {
			t.Fatalf("%d succeeded, counted %d; status %+v", wantSucceeded, s.Succeeded, s)
		}
		// A job that fails counts the pods that it stops too.
		if int(s.Failed) < len(failed) || finished(j).Type == batchv1.JobComplete && int(s.Failed) != len(failed) || int(s.Failed) > len(failed)+int(*j.Spec.Parallelism) {
			t.Fatalf("%d failed, counted %d", len(failed), s.Failed)
		}
		if finished(j).Type == batchv1.JobComplete && s.Succeeded != completions {
			t.Fatalf("complete with %d of %d", s.Succeeded, completions)
		}
		for _, p := range w.Pods() {
			if tracked(&p) {
				t.Fatalf("pod %s is still held", p.Name)
			}
		}
	})
}
