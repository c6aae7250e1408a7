// Package worker makes pods run. There is one worker for each pod, a goroutine that is woken when
// something happened: the pod's definition changed, the runtime reported an event, a probe changed
// its mind, an effect ended, or a time set before has come. It then looks at what the runtime runs,
// lets package plan decide, begins the effects, and reports the pod's status. Effects that take
// time run beside it, so that a worker can always change its mind.
//
// Workers hold nothing that a new agent could not find out again: it takes over running containers
// as they are.
package worker

import (
	"context"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/image"
	"barque.dev/internal/agent/metrics"
	"barque.dev/internal/agent/podspec"
	"barque.dev/internal/agent/volume"
)

// Cgroups keeps the cgroups of pods.
type Cgroups interface {
	PodPath(pod *corev1.Pod) string
	Ensure(pod *corev1.Pod) error
	// Resize changes the limits of a group that Ensure has made.
	Resize(pod *corev1.Pod, limits podspec.Limits) error
	Remove(uid types.UID) error
}

// References holds what pods refer to.
type References interface {
	podspec.Sources
	Use(pod *corev1.Pod)
	Drop(uid types.UID)
}

// Forgetter lets go of what is kept about a pod.
type Forgetter interface{ Drop(uid types.UID) }

// Node tells about the node as it is now.
type Node interface {
	// Object is the node as the API server knows it; nil before it is registered.
	Object() *corev1.Node
	// Facts without the pod's own addresses.
	Facts() podspec.Facts
	// Services of the cluster, for environment variables; false until they are known.
	Services() ([]*corev1.Service, bool)
	// Handler returns the name of the runtime handler of a pod's runtime class.
	Handler(ctx context.Context, pod *corev1.Pod) (string, error)
}

// Config is what workers work with.
type Config struct {
	Client   kubernetes.Interface
	Runtime  cri.Runtime
	Volumes  *volume.Manager
	Objects  References
	Issued   []Forgetter // tokens and certificates
	Puller   *image.Puller
	Cgroups  Cgroups
	Node     Node
	Spec     podspec.Node
	Recorder record.EventRecorder
	// RuntimeName prefixes container ids, such as "containerd".
	RuntimeName string
	// Metrics may be nil.
	Metrics *metrics.Set
	Log     *slog.Logger
}

// Manager has the workers. It is safe for concurrent use.
type Manager struct {
	Config

	mu      sync.Mutex
	ctx     context.Context
	workers map[types.UID]*worker
	fenced  bool
	done    sync.WaitGroup
	closed  bool
	idle    chan struct{} // closed and replaced when a worker ends

	// starts and ends are apart, so that a node full of pods that don't come up can be emptied.
	// Killing containers is not bounded: a fence must not wait.
	starts, ends slots
}

// New returns a manager whose workers live as long as ctx.
func New(ctx context.Context, c Config) *Manager {
	return &Manager{Config: c, ctx: ctx, workers: map[types.UID]*worker{}, idle: make(chan struct{}), starts: newSlots(), ends: newSlots()}
}

// Wait returns when every worker has ended. The manager's context must have ended.
func (m *Manager) Wait() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.done.Wait()
}

// Update hands over a pod as the API server has it.
func (m *Manager) Update(pod *corev1.Pod) {
	w := m.worker(pod, false)
	if w == nil {
		return
	}
	w.update(pod)
}

// Delete says that the API server no longer has the pod.
func (m *Manager) Delete(pod *corev1.Pod) {
	m.mu.Lock()
	w := m.workers[pod.UID]
	m.mu.Unlock()
	if w == nil {
		return
	}
	w.mu.Lock()
	w.gone = true
	w.mu.Unlock()
	w.poke()
}

// Wake makes the pod's worker look again.
func (m *Manager) Wake(uid types.UID) {
	m.mu.Lock()
	w := m.workers[uid]
	m.mu.Unlock()
	if w != nil {
		w.poke()
	}
}

// Refresh makes the pod's worker bring volumes up to date.
func (m *Manager) Refresh(uid types.UID) {
	m.mu.Lock()
	w := m.workers[uid]
	m.mu.Unlock()
	if w != nil {
		w.mu.Lock()
		w.stale = true
		w.mu.Unlock()
		w.poke()
	}
}

// WakeAll makes every worker look again, as after events of the runtime may have been missed.
func (m *Manager) WakeAll() {
	for _, w := range m.all() {
		w.poke()
	}
}

// Fence stops, at once and without grace, every pod that must not run twice, and keeps such pods
// from being started until Unfence.
func (m *Manager) Fence() { m.setFence(true) }

// Unfence lets such pods run again.
func (m *Manager) Unfence() { m.setFence(false) }

func (m *Manager) setFence(on bool) {
	m.mu.Lock()
	changed := m.fenced != on
	m.fenced = on
	m.mu.Unlock()
	if changed {
		m.WakeAll()
	}
}

func (m *Manager) isFenced() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fenced
}

// Evict ends a pod for the node's sake. The pod fails with the reason.
func (m *Manager) Evict(uid types.UID, reason, message string) {
	m.mu.Lock()
	w := m.workers[uid]
	m.mu.Unlock()
	if w == nil {
		return
	}
	w.mu.Lock()
	if w.evicted == nil {
		w.evicted = &podspec.Refusal{Reason: reason, Message: message}
	}
	w.mu.Unlock()
	w.poke()
}

func (m *Manager) all() []*worker {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*worker, 0, len(m.workers))
	for _, w := range m.workers {
		out = append(out, w)
	}
	return out
}

// Pods returns the pods of this node with the status known last, ordered by creation.
func (m *Manager) Pods() []*corev1.Pod {
	var out []*corev1.Pod
	for _, w := range m.all() {
		w.mu.Lock()
		if w.pod != nil {
			out = append(out, w.pod)
		}
		w.mu.Unlock()
	}
	sort.Slice(out, func(i, j int) bool {
		a, b := out[i], out[j]
		if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
			return a.CreationTimestamp.Before(&b.CreationTimestamp)
		}
		return a.UID < b.UID
	})
	return out
}

// Known tells whether there is a worker for the pod.
func (m *Manager) Known(uid types.UID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.workers[uid] != nil
}

// worker returns the pod's worker, and makes one if there is none; gone says that the API server has
// no such pod.
func (m *Manager) worker(pod *corev1.Pod, gone bool) *worker {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed || m.ctx.Err() != nil {
		return nil
	}
	if w := m.workers[pod.UID]; w != nil {
		return w
	}
	w := newWorker(m, pod)
	w.gone = gone
	m.workers[pod.UID] = w
	m.done.Add(1)
	go func() {
		defer m.done.Done()
		w.run(m.ctx)
		m.Metrics.Forget(pod.Namespace, pod.Name, pod.UID)
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.workers, pod.UID)
		close(m.idle)
		m.idle = make(chan struct{})
		m.retryResizes()
	}()
	return w
}

// Adopt takes charge of what the runtime, the pods' folders and the cgroups still hold of pods the
// API server no longer has, and ends it. It is called once every pod is known.
func (m *Manager) Adopt(ctx context.Context) error {
	list, err := m.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	for _, s := range list.GetItems() {
		orphan := cri.LabelledPod(s.GetLabels())
		uid := orphan.UID
		if uid == "" || m.Known(uid) {
			continue
		}
		orphan.Spec.TerminationGracePeriodSeconds = new(int64)
		m.Log.Info("pod is gone, ending its containers", "pod", podspec.FullName(orphan), "uid", uid)
		m.worker(orphan, true)
	}
	folders, err := m.Volumes.Pods()
	if err != nil {
		return err
	}
	for _, uid := range folders {
		if m.Known(uid) {
			continue
		}
		if err := m.Volumes.Remove(uid); err != nil {
			m.Log.Warn("removing the folder of a pod that is gone", "uid", uid, "err", err)
		}
		if err := m.Cgroups.Remove(uid); err != nil {
			m.Log.Warn("removing the cgroup of a pod that is gone", "uid", uid, "err", err)
		}
	}
	return nil
}

// admit decides, one pod after the other, whether a pod fits beside those that were taken before.
func (m *Manager) admit(w *worker, pod *corev1.Pod) *podspec.Refusal {
	m.mu.Lock()
	defer m.mu.Unlock()
	var others []*corev1.Pod
	for _, o := range m.workers {
		if o != w && o.admitted {
			o.mu.Lock()
			// Whoever placed the pod does not know of one that is gone from the API server any
			// more: to refuse the pod for good, because that one takes a moment to end, would be wrong.
			if o.pod != nil && !o.ended && !o.gone {
				others = append(others, o.promised(o.pod))
			}
			o.mu.Unlock()
		}
	}
	if r := podspec.Admit(pod, m.Node.Object(), others); r != nil {
		return r
	}
	w.admitted = true
	asked := podspec.Asked(pod)
	w.allocated = &asked
	return nil
}

// now is cut off from the monotonic clock, so that it compares with what the runtime reports.
func now() time.Time { return time.Now().Round(0) }
