package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/plan"
	"barque.dev/internal/agent/podspec"
	"barque.dev/internal/agent/status"
)

// apiCall bounds one write to the API server.
const apiCall = 15 * time.Second

// report sends the pod's status if it is not what the API server has. It returns whether the API
// server has it.
func (w *worker) report(ctx context.Context, pod *corev1.Pod, observed cri.Pod, d plan.Decision, fenced bool) bool {
	w.mu.Lock()
	gone := w.gone
	w.mu.Unlock()
	if gone {
		return true
	}
	if final(pod) && !anyLive(observed) && !statusRuns(pod) {
		return true // it is history: what it was made from may be gone already
	}
	starting := map[string]bool{}
	for name := range w.busy {
		if container, ok := strings.CutPrefix(string(name), "start/"); ok {
			starting[container] = true
		}
	}
	desired := status.Compute(status.Input{
		Pod: pod, Observed: observed, Probes: w.probeResults(observed),
		Waiting: w.waiting, Starting: starting, Applied: w.applied(observed), Resize: w.resizeStatus(),
		Ended: d.Ended && !fenced, Verdict: w.verdict,
		Runtime: w.m.RuntimeName, HostIPs: w.m.Node.Facts().HostIPs, Now: now(),
	})
	if desired.QOSClass == "" {
		desired.QOSClass = podspec.QOS(pod)
	}
	w.timeStart(pod, desired)
	if equality.Semantic.DeepEqual(pod.Status, desired) {
		return true
	}
	if w.busy[taskStatus] != nil {
		return false
	}
	if r, failed := w.retries[taskStatus]; failed && now().Before(r.at) {
		return false
	}
	w.begin(ctx, taskStatus, time.Time{}, func(ctx context.Context) error { return w.patchStatus(ctx, pod, desired) })
	return false
}

// timeStart takes in how long the pod took to run, once, if this agent has started it.
func (w *worker) timeStart(pod *corev1.Pod, desired corev1.PodStatus) {
	if w.timed || desired.Phase == corev1.PodPending {
		return
	}
	w.timed = true
	if desired.Phase == corev1.PodRunning && (pod.Status.Phase == corev1.PodPending || pod.Status.Phase == "") {
		w.m.Metrics.PodStarted(time.Since(w.seen))
	}
}

func anyLive(observed cri.Pod) bool {
	for _, c := range observed.Containers {
		if c.State == cri.StateRunning || c.State == cri.StateUnknown {
			return true
		}
	}
	return false
}

// statusRuns tells whether the pod's status still calls a container running.
func statusRuns(pod *corev1.Pod) bool {
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].State.Running != nil {
				return true
			}
		}
	}
	return false
}

// patchStatus sends the difference between two statuses.
func (w *worker) patchStatus(ctx context.Context, pod *corev1.Pod, desired corev1.PodStatus) error {
	ctx, cancel := context.WithTimeout(ctx, apiCall)
	defer cancel()
	before, err := json.Marshal(corev1.Pod{Status: pod.Status})
	if err != nil {
		return err
	}
	// The uid makes sure that it is this pod and not another of the same name.
	after, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: pod.UID}, Status: desired})
	if err != nil {
		return err
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
	if err != nil {
		return fmt.Errorf("status of pod %s: %w", podspec.FullName(pod), err)
	}
	updated, err := w.m.Client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	switch {
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err) && w.replaced(ctx, pod):
		w.mu.Lock()
		w.gone = true
		w.mu.Unlock()
		return nil
	case err != nil:
		if ctx.Err() == nil {
			w.m.Log.Debug("sending a pod's status failed", "pod", podspec.FullName(pod), "err", err)
		}
		return fmt.Errorf("patch status of pod %s: %w", podspec.FullName(pod), err)
	}
	w.mu.Lock()
	if updated.UID == pod.UID && !older(updated, w.pod) {
		w.pod = updated
	}
	w.mu.Unlock()
	return nil
}

// replaced tells whether the API server has another pod of the same name.
func (w *worker) replaced(ctx context.Context, pod *corev1.Pod) bool {
	other, err := w.m.Client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
	return apierrors.IsNotFound(err) || err == nil && other.UID != pod.UID
}

// finish cleans up after a pod that stands still for good, and lets the API server forget it if that
// is what it waits for. It returns whether the worker is done.
func (w *worker) finish(ctx context.Context, pod *corev1.Pod, observed cri.Pod, gone, current bool) (done bool, wake time.Time) {
	leaving := gone || pod.DeletionTimestamp != nil
	for _, name := range []plan.Task{taskCleanUp, taskDelete, taskVolumes, taskTidy, taskStatus} {
		if w.busy[name] != nil {
			return false, time.Time{}
		}
		if r, failed := w.retries[name]; failed && now().Before(r.at) {
			return false, r.at
		}
	}
	if !leaving {
		if !w.cleaned && current {
			w.cleaned = true
			w.begin(ctx, taskCleanUp, time.Time{}, func(context.Context) error { return w.release(pod) })
		}
		return false, time.Time{}
	}
	if !current {
		return false, time.Time{}
	}
	_, failed := w.retries[taskCleanUp]
	if len(observed.Sandboxes) > 0 || !w.removed || failed {
		w.removed = true
		w.begin(ctx, taskCleanUp, time.Time{}, func(ctx context.Context) error { return w.remove(ctx, pod, observed) })
		return false, time.Time{}
	}
	if gone {
		return true, time.Time{}
	}
	if !w.deleted {
		w.begin(ctx, taskDelete, time.Time{}, func(ctx context.Context) error { return w.delete(ctx, pod) })
	}
	return false, time.Time{}
}

// release gives back what a pod that ended does not need any more. Its containers stay, so that
// their logs can be read.
func (w *worker) release(pod *corev1.Pod) error {
	w.m.Objects.Drop(pod.UID)
	for _, issued := range w.m.Issued {
		issued.Drop(pod.UID)
	}
	return errors.Join(w.m.Volumes.Remove(pod.UID), w.m.Cgroups.Remove(pod.UID))
}

// remove removes every trace of the pod from the node.
func (w *worker) remove(ctx context.Context, pod *corev1.Pod, observed cri.Pod) error {
	var failures []error
	for _, s := range observed.Sandboxes {
		failures = append(failures, w.removeSandbox(ctx, s.ID))
	}
	if err := errors.Join(failures...); err != nil {
		return err
	}
	w.m.Puller.Drop(string(pod.UID))
	return errors.Join(w.release(pod), os.RemoveAll(w.m.Spec.LogDir(pod)))
}

// delete tells the API server that nothing of the pod runs any more.
func (w *worker) delete(ctx context.Context, pod *corev1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, apiCall)
	defer cancel()
	none := int64(0)
	err := w.m.Client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &none,
		Preconditions:      &metav1.Preconditions{UID: &pod.UID},
	})
	if err != nil && !apierrors.IsNotFound(err) && !(apierrors.IsConflict(err) && w.replaced(ctx, pod)) {
		return fmt.Errorf("delete pod %s: %w", podspec.FullName(pod), err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pod == nil || len(w.pod.Finalizers) == 0 {
		w.gone = true
	}
	return nil
}
