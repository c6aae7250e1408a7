package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/podspec"
)

// reference is what an event about the pod, or about one of its containers, points at.
func reference(pod *corev1.Pod, container string) runtime.Object {
	ref := &corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		ResourceVersion: pod.ResourceVersion,
	}
	if container == "" {
		return ref
	}
	list := "containers"
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == container {
			list = "initContainers"
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == container {
			list = "ephemeralContainers"
		}
	}
	ref.FieldPath = fmt.Sprintf("spec.%s{%s}", list, container)
	return ref
}

// errServices is why nothing starts before the cluster's services are known: containers would lack
// environment variables they count on.
var errServices = errors.New("services have not yet been read at least once, cannot construct envvars")

// The bounds of one change of the runtime's state: by itself, and once the agent is to end.
const (
	changeBound     = 4 * time.Minute
	changeBoundLast = 10 * time.Second
)

// whole returns the context for a call that changes the runtime's state. The call goes on when the
// pod's plans change meanwhile: a runtime that is interrupted between two steps can leave processes
// behind that it no longer knows of.
func (w *worker) whole(ctx context.Context) (context.Context, context.CancelFunc) {
	whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeBound)
	stop := context.AfterFunc(w.m.ctx, func() {
		last := time.AfterFunc(changeBoundLast, cancel)
		<-whole.Done()
		last.Stop()
	})
	return whole, func() { stop(); cancel() }
}

// createSandbox makes everything the pod has in common, and its sandbox.
func (w *worker) createSandbox(ctx context.Context, pod *corev1.Pod, attempt uint32) error {
	if _, err := w.m.Volumes.Prepare(ctx, pod, w.facts(pod, nil)); err != nil {
		if ctx.Err() == nil {
			w.eventf(pod, "", corev1.EventTypeWarning, "FailedMount", "%v", err)
		}
		return err
	}
	if err := w.m.Cgroups.Ensure(pod); err != nil {
		w.eventf(pod, "", corev1.EventTypeWarning, "FailedCreatePodContainer", "unable to ensure pod container exists: %v", err)
		return err
	}
	w.setLimits(podspec.LimitsOf(pod))
	handler, err := w.m.Node.Handler(ctx, pod)
	if err != nil {
		w.eventf(pod, "", corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: %v", err)
		return err
	}
	config, err := w.m.Spec.SandboxConfig(pod, attempt, w.m.Cgroups.PodPath(pod))
	if err != nil {
		w.eventf(pod, "", corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: %v", err)
		return err
	}
	if err := os.MkdirAll(config.GetLogDirectory(), 0o755); err != nil {
		return fmt.Errorf("make log folder of pod %s: %w", podspec.FullName(pod), err)
	}
	release, err := w.m.starts.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	whole, cancel := w.whole(ctx)
	defer cancel()
	reply, err := w.m.Runtime.RunPodSandbox(whole, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		if ctx.Err() == nil {
			w.eventf(pod, "", corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: %v", err)
		}
		return fmt.Errorf("run sandbox of pod %s: %w", podspec.FullName(pod), err)
	}
	w.m.Log.Debug("sandbox runs", "pod", podspec.FullName(pod), "sandbox", reply.GetPodSandboxId())
	return nil
}

func (w *worker) stopSandbox(ctx context.Context, id string) error {
	release, err := w.m.ends.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	if _, err := w.m.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil && !cri.NotFound(err) {
		return fmt.Errorf("stop sandbox %s: %w", id, err)
	}
	return nil
}

// tidy removes containers and sandboxes that nobody will ask about any more: of each container the
// present one and the one before are kept, of sandboxes the present one and those with containers.
func (w *worker) tidy(ctx context.Context, observed cri.Pod) {
	if w.busy[taskTidy] != nil || len(w.busy) > 0 {
		return
	}
	seen := map[string]int{}
	used := map[string]bool{}
	var containers, sandboxes []string
	for _, c := range observed.Containers {
		seen[c.Name]++
		if seen[c.Name] > 2 && (c.State == cri.StateExited || c.State == cri.StateCreated) {
			containers = append(containers, c.ID)
			continue
		}
		used[c.SandboxID] = true
	}
	for i, s := range observed.Sandboxes {
		if i > 0 && !s.Ready && !used[s.ID] {
			sandboxes = append(sandboxes, s.ID)
		}
	}
	if len(containers)+len(sandboxes) == 0 {
		return
	}
	if r, failed := w.retries[taskTidy]; failed && now().Before(r.at) {
		return // the next event is soon enough
	}
	w.begin(ctx, taskTidy, time.Time{}, func(ctx context.Context) error {
		var failures []error
		for _, id := range containers {
			if _, err := w.m.Runtime.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil && !cri.NotFound(err) {
				failures = append(failures, fmt.Errorf("remove container %s: %w", id, err))
			}
		}
		for _, id := range sandboxes {
			failures = append(failures, w.removeSandbox(ctx, id))
		}
		return errors.Join(failures...)
	})
}

func (w *worker) removeSandbox(ctx context.Context, id string) error {
	release, err := w.m.ends.take(ctx)
	if err != nil {
		return err
	}
	defer release()
	ctx, cancel := w.whole(ctx)
	defer cancel()
	if _, err := w.m.Runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil && !cri.NotFound(err) {
		return fmt.Errorf("remove sandbox %s: %w", id, err)
	}
	return nil
}
