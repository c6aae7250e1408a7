package worker

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/plan"
	"barque.dev/internal/agent/podspec"
	"barque.dev/internal/agent/status"
)

// worker is in charge of one pod.
type worker struct {
	m     *Manager
	uid   types.UID
	name  string // namespace/name
	wake  chan struct{}
	tasks sync.WaitGroup
	// mounting is held while a container that mounts images is made.
	mounting sync.Mutex

	// What follows is guarded by the manager's lock.

	admitted bool
	// allocated is what the node has promised to the pod; nil before that is known. It is
	// replaced, not changed. agreed is the generation that asked for it, once the pod was
	// resized, refused why it is not what the pod asks for now.
	allocated *podspec.Allocation
	agreed    int64
	refused   *podspec.Refusal

	mu sync.Mutex
	// pod is the newest version seen, from the watch or as the answer to a write of ours.
	pod     *corev1.Pod
	gone    bool // the API server has no such pod any more
	stale   bool // volumes may be out of date
	ended   bool
	evicted *podspec.Refusal
	results []result
	probes  map[string]plan.Probes

	// What follows belongs to the worker's goroutine alone.

	busy     map[plan.Task]*task
	retries  map[plan.Task]retry
	waiting  map[string]status.Waiting
	probing  map[string]*probing
	messages map[string]string // termination messages by container id
	verdict  *status.Verdict
	// stopping is when the worker first knew that the pod has to end.
	stopping  time.Time
	refreshAt time.Time
	// seen is when the worker was made, stepped the version of the pod its last step looked at, and
	// timed that the pod's start was taken in, or is none of this worker's.
	seen    time.Time
	stepped *corev1.Pod
	timed   bool
	// What of the pod's end is done: its resources given back, its traces removed, the API
	// server told.
	cleaned, removed, deleted bool
	backoff                   map[string]int // attempts whose back-off was announced, by container name
	resizes                   resizes
}

// task is an effect under way.
type task struct {
	cancel context.CancelFunc
	by     time.Time
	seq    int
}

// result is how a task ended.
type result struct {
	task plan.Task
	seq  int
	err  error
	// next is when volumes are to be refreshed.
	next time.Time
}

type retry struct {
	at    time.Time
	delay time.Duration
}

// The delays between attempts of an effect that failed.
const (
	retryMin = 500 * time.Millisecond
	retryMax = 5 * time.Second
)

func newWorker(m *Manager, pod *corev1.Pod) *worker {
	return &worker{
		m: m, uid: pod.UID, name: podspec.FullName(pod), wake: make(chan struct{}, 1), pod: pod,
		probes: map[string]plan.Probes{}, busy: map[plan.Task]*task{}, retries: map[plan.Task]retry{},
		waiting: map[string]status.Waiting{}, probing: map[string]*probing{}, messages: map[string]string{},
		backoff: map[string]int{}, seen: time.Now(), resizes: resizes{killed: map[string]bool{}},
	}
}

// poke makes the worker look again.
func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// update takes over a version of the pod unless a newer one is known.
func (w *worker) update(pod *corev1.Pod) {
	w.mu.Lock()
	if w.pod == nil || !older(pod, w.pod) {
		w.pod = pod
		w.stale = true // the downward API may say something else now
	}
	w.mu.Unlock()
	w.poke()
}

// older tells whether a is an older version of the pod than b. Versions that cannot be compared
// count as newer.
func older(a, b *corev1.Pod) bool {
	x, err := strconv.ParseUint(a.ResourceVersion, 10, 64)
	if err != nil {
		return false
	}
	y, err := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return err == nil && x < y
}

func (w *worker) log() []any {
	return []any{"pod", w.name, "uid", w.uid}
}

// run works until the pod is gone or ctx ends. It leaves containers alone when ctx ends.
func (w *worker) run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	defer w.tasks.Wait()
	defer cancel()
	w.poke()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
		wake, done := w.safeStep(ctx)
		if done {
			return
		}
		delay := time.Hour
		if !wake.IsZero() {
			delay = max(time.Until(wake), 0)
		}
		timer.Reset(delay)
	}
}

// safeStep is step, except that a panic is this pod's trouble alone.
func (w *worker) safeStep(ctx context.Context) (wake time.Time, done bool) {
	defer func() {
		if r := recover(); r != nil {
			w.m.Log.Error("panic in a pod's worker", append(w.log(), "panic", r, "stack", string(debug.Stack()))...)
			wake, done = now().Add(retryMax), false
		}
	}()
	return w.step(ctx)
}

// begin starts a task beside the worker, in place of one of the same name. by is the moment by
// which it will be over, where that is known.
func (w *worker) begin(ctx context.Context, name plan.Task, by time.Time, f func(ctx context.Context) error) {
	w.beginNext(ctx, name, by, func(ctx context.Context) (time.Time, error) { return time.Time{}, f(ctx) })
}

func (w *worker) beginNext(ctx context.Context, name plan.Task, by time.Time, f func(ctx context.Context) (time.Time, error)) {
	seq := 0
	if before := w.busy[name]; before != nil {
		before.cancel()
		seq = before.seq + 1
	}
	ctx, cancel := context.WithCancel(ctx)
	w.busy[name] = &task{cancel: cancel, by: by, seq: seq}
	w.tasks.Add(1)
	go func() {
		defer w.tasks.Done()
		defer cancel()
		var next time.Time
		err := func() (err error) {
			defer func() {
				if r := recover(); r != nil {
					w.m.Log.Error("panic in a pod's task", "uid", w.uid, "task", name, "panic", r, "stack", string(debug.Stack()))
					err = fmt.Errorf("internal error: %v", r)
				}
			}()
			next, err = f(ctx)
			return err
		}()
		w.mu.Lock()
		w.results = append(w.results, result{task: name, seq: seq, err: err, next: next})
		w.mu.Unlock()
		w.poke()
	}()
}

// collect takes in what tasks that ended have to say.
func (w *worker) collect() {
	w.mu.Lock()
	results := w.results
	w.results = nil
	w.mu.Unlock()
	for _, r := range results {
		if t := w.busy[r.task]; t == nil || t.seq != r.seq {
			continue // it was replaced meanwhile
		}
		delete(w.busy, r.task)
		if r.task == taskVolumes {
			w.refreshAt = r.next
		}
		w.learn(r)
		w.learnResize(r)
		if r.err == nil {
			w.deleted = w.deleted || r.task == taskDelete
			delete(w.retries, r.task)
			continue
		}
		if before := w.retries[r.task]; before.delay == retryMin && !errors.Is(r.err, context.Canceled) {
			// Not the first failure, which often heals by itself, and not each that follows.
			w.m.Log.Warn("a pod's task fails again", append(w.log(), "task", r.task, "err", r.err)...)
		}
		delay := min(max(2*w.retries[r.task].delay, retryMin), retryMax)
		at := now().Add(delay)
		if when := retryAt(r.err); !when.IsZero() {
			at, delay = when, 0
		}
		w.retries[r.task] = retry{at: at, delay: delay}
	}
}

// learn keeps why a container did not start, for its status.
func (w *worker) learn(r result) {
	name, ok := strings.CutPrefix(string(r.task), "start/")
	if !ok {
		return
	}
	var failed *startError
	switch {
	case r.err == nil:
		delete(w.waiting, name)
	case errors.As(r.err, &failed):
		w.waiting[name] = status.Waiting{Reason: failed.reason, Message: failed.message}
	}
}

// busyFor tells the planner what is under way.
func (w *worker) busyFor() map[plan.Task]time.Time {
	out := make(map[plan.Task]time.Time, len(w.busy))
	for name, t := range w.busy {
		out[name] = t.by
	}
	return out
}

func (w *worker) notBefore() map[plan.Task]time.Time {
	out := make(map[plan.Task]time.Time, len(w.retries))
	for name, r := range w.retries {
		out[name] = r.at
	}
	return out
}

// eventf records an event about the pod, or about one of its containers.
func (w *worker) eventf(pod *corev1.Pod, container, eventType, reason, format string, args ...any) {
	var object = reference(pod, container)
	w.m.Recorder.Eventf(object, eventType, reason, format, args...)
}

func (w *worker) probeResults(observed cri.Pod) map[string]plan.Probes {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := make(map[string]plan.Probes, len(observed.Containers))
	for _, c := range observed.Containers {
		if p, ok := w.probes[c.ID]; ok {
			out[c.ID] = p
		}
	}
	return out
}
