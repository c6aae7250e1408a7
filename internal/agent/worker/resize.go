package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/plan"
	"barque.dev/internal/agent/podspec"
	"barque.dev/internal/agent/status"
)

// resizeRetry is how often a resize that waits is decided on again, even if no pod of the node has
// given anything back: the node itself may have grown.
const resizeRetry = time.Minute

// resizes is what a worker knows about changes of its pod's resources.
type resizes struct {
	mu sync.Mutex // guards kept, onDisk and limits, which the resize task changes
	// kept is what has to survive the agent, onDisk tells whether it does yet: a pod that was
	// never resized keeps nothing.
	kept   kept
	onDisk bool
	// limits of the pod's control group; nil if they are as they were made.
	limits *podspec.Limits

	// looked is the version of the pod that was looked at last, allocated what it was promised
	// then, shown the one with the other.
	looked, shown *corev1.Pod
	allocated     *podspec.Allocation
	pending       *podspec.Refusal
	announced     int64 // the generation whose waiting was announced
	going         bool
	failure       string
	// killed holds the ids of containers that were stopped in order to be resized.
	killed map[string]bool
}

// allocate returns the pod with the resources that the node has promised to it, after asking for those
// of its definition if they are others. wake is when to ask again.
func (w *worker) allocate(pod *corev1.Pod, observed *cri.Pod, stopping bool) (allocated *corev1.Pod, wake time.Time) {
	r := &w.resizes
	if r.looked == nil {
		w.recall(pod, observed)
	}
	if stopping {
		r.pending, r.going = nil, false
		return r.allocated.Of(pod), time.Time{}
	}
	promise, generation, refused := w.m.promise(w, pod, r.looked != pod || r.shown != pod)
	if promise != r.allocated {
		if err := w.keep(func(k *kept) { k.Allocated, k.Generation = *promise, generation }); err != nil {
			w.m.Log.Warn("keeping a pod's allocation", append(w.log(), "err", err)...)
			return r.allocated.Of(pod), now().Add(time.Second)
		}
		r.allocated, r.looked, r.going, r.failure = promise, nil, true, ""
		delete(w.retries, plan.TaskResize)
		w.eventf(pod, "", corev1.EventTypeNormal, "ResizeStarted", "%s", podspec.ResizeMessage("started", promise.Of(pod), generation, ""))
	}
	if r.looked != pod {
		r.looked, r.shown = pod, promise.Of(pod)
	}
	if refused == nil && r.shown != pod {
		wake = now().Add(time.Second) // the node is not known yet
	}
	if refused != nil {
		wake = now().Add(resizeRetry)
		if err := w.keep(nil); err != nil {
			w.m.Log.Warn("keeping a pod's allocation", append(w.log(), "err", err)...)
		}
		if r.pending == nil || r.pending.Reason != refused.Reason || r.announced != pod.Generation {
			r.announced = pod.Generation
			w.eventf(pod, "", corev1.EventTypeWarning, "Resize"+refused.Reason, "%s", podspec.ResizeMessage(refused.Reason, pod, pod.Generation, refused.Message))
		}
	}
	r.pending = refused
	return r.shown, wake
}

// recall finds out what was promised to a pod that another agent has worked on.
func (w *worker) recall(pod *corev1.Pod, observed *cri.Pod) {
	r := &w.resizes
	for _, c := range pod.Status.Conditions {
		switch c.Type {
		case corev1.PodResizeInProgress:
			r.going = true
		case corev1.PodResizePending:
			r.pending, r.announced = &podspec.Refusal{Reason: c.Reason, Message: c.Message}, c.ObservedGeneration
		}
	}
	k, found, err := w.m.readKept(w.uid)
	if err != nil {
		w.m.Log.Warn("a pod's allocation can't be read", append(w.log(), "err", err)...)
	}
	r.mu.Lock()
	r.kept, r.onDisk = k, found
	if found {
		r.limits = &podspec.Limits{} // whatever they are: they are set again
	}
	r.mu.Unlock()
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	if w.allocated == nil {
		if !found {
			// It was promised what its containers were made with.
			made := map[string]corev1.ResourceRequirements{}
			for _, c := range slices.Backward(observed.Containers) {
				if c.Resources != nil {
					made[c.Name] = *c.Resources
				}
			}
			k.Allocated = podspec.Asked(pod).With(made)
		}
		w.allocated = &k.Allocated
	}
	r.allocated = w.allocated
	if !found {
		r.mu.Lock()
		r.kept = kept{Allocated: *w.allocated, Generation: pod.Generation}
		r.mu.Unlock()
	}
}

// promised returns the pod with what was promised to it. The manager's lock is held.
func (w *worker) promised(pod *corev1.Pod) *corev1.Pod {
	if w.allocated == nil {
		return pod
	}
	return w.allocated.Of(pod)
}

// promise returns what the pod is promised, since which generation of its definition, and, if that is
// not what it asks for, why. changed says that it may ask for something that was not decided on.
func (m *Manager) promise(w *worker, pod *corev1.Pod, changed bool) (*podspec.Allocation, int64, *podspec.Refusal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if w.refused != nil || changed && w.promised(pod) != pod {
		m.decideResizes()
	}
	return w.allocated, w.agreed, w.refused
}

// decideResizes decides on everything that pods ask for beyond what they were promised. The lock is
// held.
func (m *Manager) decideResizes() {
	node := m.Node.Object()
	if node == nil {
		return
	}
	var workers []*worker
	for _, w := range m.workers {
		if w.admitted && w.allocated != nil {
			workers = append(workers, w)
		}
	}
	slices.SortFunc(workers, func(a, b *worker) int { return cmp.Compare(a.uid, b.uid) })
	pods := make([]podspec.Resizable, 0, len(workers))
	workers = slices.DeleteFunc(workers, func(w *worker) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.pod == nil || w.ended || w.gone {
			w.refused = nil
			return true
		}
		p := podspec.Resizable{Pod: w.pod, Allocated: *w.allocated}
		if w.pod.DeletionTimestamp != nil {
			p.Pod = w.promised(w.pod) // it asks for nothing any more
		}
		pods = append(pods, p)
		return false
	})
	granted, refused := podspec.Resize(pods, node.Status.Allocatable)
	for i, w := range workers {
		w.refused = nil
		if r, ok := refused[i]; ok {
			w.refused = &r
		}
	}
	for _, i := range granted {
		asked := podspec.Asked(pods[i].Pod)
		workers[i].allocated, workers[i].agreed = &asked, pods[i].Pod.Generation
		workers[i].poke()
	}
}

// retryResizes wakes the workers of pods whose resize waits. The lock is held.
func (m *Manager) retryResizes() {
	for _, w := range m.workers {
		if w.refused != nil {
			w.poke()
		}
	}
}

// wakeResizes is retryResizes for those who don't hold the lock.
func (m *Manager) wakeResizes() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.retryResizes()
}

// Allocated returns the pods as Pods does, with the resources that the node has promised to them.
func (m *Manager) Allocated() []*corev1.Pod {
	pods := m.Pods()
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, pod := range pods {
		if w := m.workers[pod.UID]; w != nil {
			pods[i] = w.promised(pod)
		}
	}
	return pods
}

// applied returns the resources that the pod's containers have, by id, where they are known.
func (w *worker) applied(observed cri.Pod) map[string]corev1.ResourceRequirements {
	w.resizes.mu.Lock()
	defer w.resizes.mu.Unlock()
	out := make(map[string]corev1.ResourceRequirements, len(observed.Containers))
	for _, c := range observed.Containers {
		if r, ok := w.resizes.kept.Applied[c.ID]; ok {
			out[c.ID] = r
		} else if c.Resources != nil {
			out[c.ID] = *c.Resources
		}
	}
	return out
}

func (w *worker) limits() *podspec.Limits {
	w.resizes.mu.Lock()
	defer w.resizes.mu.Unlock()
	return w.resizes.limits
}

func (w *worker) setLimits(l podspec.Limits) {
	w.resizes.mu.Lock()
	defer w.resizes.mu.Unlock()
	w.resizes.limits = &l
}

// noteResize keeps how far a resize has come, and tells when it is over.
func (w *worker) noteResize(pod *corev1.Pod, d plan.Decision, stop *plan.Stop) {
	r := &w.resizes
	if stop != nil {
		return
	}
	if r.going && !d.Resizing {
		w.eventf(pod, "", corev1.EventTypeNormal, "ResizeCompleted", "%s", podspec.ResizeMessage("completed", pod, w.generation(), ""))
		r.failure = ""
	}
	r.going = d.Resizing
}

// generation is that of the definition that was agreed to.
func (w *worker) generation() int64 {
	w.resizes.mu.Lock()
	defer w.resizes.mu.Unlock()
	return w.resizes.kept.Generation
}

// learnResize keeps why a resize failed.
func (w *worker) learnResize(result result) {
	if result.task != plan.TaskResize || errors.Is(result.err, context.Canceled) {
		return
	}
	before := w.resizes.failure
	w.resizes.failure = ""
	if result.err == nil {
		return
	}
	w.resizes.failure = result.err.Error()
	if pod := w.resizes.shown; w.resizes.failure != before && pod != nil {
		w.eventf(pod, "", corev1.EventTypeWarning, "ResizeError", "%s", podspec.ResizeMessage("error", pod, w.generation(), w.resizes.failure))
	}
}

func (w *worker) resizeStatus() status.Resize {
	r := &w.resizes
	return status.Resize{Pending: r.pending, InProgress: r.going, Error: r.failure, Generation: w.generation()}
}

// resize gives what runs of the pod other resources.
func (w *worker) resize(ctx context.Context, pod *corev1.Pod, observed cri.Pod, r plan.Resize) error {
	if r.Limits != nil {
		if err := w.m.Cgroups.Resize(pod, *r.Limits); err != nil {
			return err
		}
		w.setLimits(*r.Limits)
		return nil
	}
	applied := w.applied(observed)
	if err := w.roomy(ctx, pod, observed, r.Containers, applied); err != nil {
		return err
	}
	for _, c := range observed.Containers {
		if !slices.Contains(r.Containers, c.ID) {
			continue
		}
		spec := podspec.Container(pod, c.Name)
		request := &runtimeapi.UpdateContainerResourcesRequest{
			ContainerId: c.ID, Linux: podspec.Resized(pod, spec, applied[c.ID], w.m.Spec.Memory, w.m.Spec.Unified),
		}
		whole, cancel := w.whole(ctx)
		_, err := w.m.Runtime.UpdateContainerResources(whole, request)
		cancel()
		if cri.NotFound(err) {
			continue
		} else if err != nil {
			return fmt.Errorf("update resources of container %s of pod %s: %w", c.Name, podspec.FullName(pod), err)
		}
		if err := w.keep(func(k *kept) { k.apply(c.ID, spec.Resources, observed) }); err != nil {
			return err
		}
	}
	return nil
}

// roomy returns an error if a container uses more memory than it is to have.
func (w *worker) roomy(ctx context.Context, pod *corev1.Pod, observed cri.Pod, ids []string, applied map[string]corev1.ResourceRequirements) error {
	var tight []string
	for _, c := range observed.Containers {
		if !slices.Contains(ids, c.ID) {
			continue
		}
		limit, before := podspec.Container(pod, c.Name).Resources.Limits.Memory().Value(), applied[c.ID]
		if had := before.Limits.Memory().Value(); limit == 0 || had != 0 && had <= limit {
			continue
		}
		reply, err := w.m.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{Id: c.ID}})
		if err != nil {
			return fmt.Errorf("memory usage of container %s of pod %s: %w", c.Name, podspec.FullName(pod), err)
		}
		for _, s := range reply.GetStats() {
			if usage := s.GetMemory().GetUsageBytes().GetValue(); s.GetAttributes().GetId() == c.ID && usage >= uint64(limit) {
				tight = append(tight, fmt.Sprintf("attempting to set container %q memory limit (%d) below current usage (%d)", c.Name, limit, usage))
			}
		}
	}
	if len(tight) > 0 {
		return errors.New("cannot decrease memory limits: " + strings.Join(tight, ", "))
	}
	return nil
}
