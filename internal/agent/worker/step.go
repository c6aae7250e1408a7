package worker

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/logs"
	"barque.dev/internal/agent/metrics"
	"barque.dev/internal/agent/plan"
	"barque.dev/internal/agent/podspec"
	"barque.dev/internal/agent/status"
)

// Tasks of the worker itself, beside those that are planned.
const (
	taskVolumes plan.Task = "volumes"
	taskStatus  plan.Task = "status"
	taskDelete  plan.Task = "delete"
	taskCleanUp plan.Task = "clean-up"
	taskTidy    plan.Task = "tidy"
)

// step looks, decides and acts. It returns when to look again even if nothing happens, and whether
// the worker's work is done.
func (w *worker) step(ctx context.Context) (wake time.Time, done bool) {
	w.collect()
	w.mu.Lock()
	pod, gone, evicted := w.pod, w.gone, w.evicted
	w.mu.Unlock()
	defer w.timeStep(pod, time.Now())

	observed, err := cri.Observe(ctx, w.m.Runtime, pod.UID)
	if err != nil {
		if ctx.Err() == nil {
			w.m.Log.Warn("asking the runtime about a pod failed", append(w.log(), "err", err)...)
		}
		return now().Add(time.Second), false
	}
	w.readMessages(ctx, &observed)
	if !w.admit(pod, &observed) {
		w.m.Log.Info("pod was not admitted", append(w.log(), "reason", w.verdict.Reason, "message", w.verdict.Message)...)
	}
	if evicted != nil && w.verdict == nil {
		w.verdict = &status.Verdict{Reason: evicted.Reason, Message: evicted.Message}
		w.eventf(pod, "", corev1.EventTypeWarning, evicted.Reason, "%s", evicted.Message)
	}
	at := now()
	stop, fenced, wakeStop := w.stop(pod, gone, at)
	known := pod
	pod, wakeResize := w.allocate(known, &observed, stop != nil)
	if stop == nil {
		w.m.Objects.Use(pod)
	}
	w.syncProbes(ctx, pod, observed, stop)
	in := plan.Input{
		Pod: pod, Observed: observed, Probes: w.probeResults(observed),
		Busy: w.busyFor(), NotBefore: w.notBefore(), Stop: stop, Now: at,
		Applied: w.applied(observed), Limits: w.limits(), Resized: w.resizes.killed,
	}
	decision := plan.Next(in)
	w.noteResize(pod, decision, stop)
	wake = earliest(earliest(decision.Wake, wakeStop), wakeResize)
	w.note(pod, decision)
	w.mu.Lock()
	ended := decision.Ended && !fenced
	changed := ended != w.ended
	w.ended = ended
	w.mu.Unlock()
	if changed {
		w.m.wakeResizes()
	}
	w.act(ctx, pod, observed, decision, stop)

	current := w.report(ctx, pod, observed, decision, fenced)
	wake = earliest(wake, w.keepVolumes(ctx, known, pod, observed, stop, at))
	w.tidy(ctx, observed)
	if decision.Stopped && !fenced {
		done, when := w.finish(ctx, pod, observed, gone, current)
		return earliest(wake, when), done
	}
	for name, r := range w.retries {
		if name == taskStatus && w.busy[name] == nil {
			wake = earliest(wake, r.at)
		}
	}
	return wake, false
}

// timeStep takes in how long the step that ends now took.
func (w *worker) timeStep(pod *corev1.Pod, began time.Time) {
	operation := metrics.OperationSync
	switch w.stepped {
	case pod:
	case nil:
		operation = metrics.OperationCreate
	default:
		operation = metrics.OperationUpdate
	}
	w.stepped = pod
	w.m.Metrics.PodStep(operation, time.Since(began))
}

func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// admit lets the node have a say about a pod that is new to it, once.
func (w *worker) admit(pod *corev1.Pod, observed *cri.Pod) bool {
	if w.verdict != nil || w.isAdmitted() {
		return true
	}
	if len(observed.Sandboxes) > 0 || pod.Status.StartTime != nil || pod.DeletionTimestamp != nil || final(pod) {
		w.m.mu.Lock()
		w.admitted = true
		w.m.mu.Unlock()
		return true
	}
	refusal := w.m.admit(w, pod)
	if refusal == nil {
		return true
	}
	w.verdict = &status.Verdict{Reason: refusal.Reason, Message: "Pod was rejected: " + refusal.Message}
	w.eventf(pod, "", corev1.EventTypeWarning, refusal.Reason, "%s", refusal.Message)
	return false
}

func (w *worker) isAdmitted() bool {
	w.m.mu.Lock()
	defer w.m.mu.Unlock()
	return w.admitted
}

func final(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// stop tells whether, and how, the pod has to end. fenced says that it is only to stand still for
// now. wake is when the answer may become another one.
func (w *worker) stop(pod *corev1.Pod, gone bool, at time.Time) (s *plan.Stop, fenced bool, wake time.Time) {
	grace := time.Duration(corev1.DefaultTerminationGracePeriodSeconds) * time.Second
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		grace = time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second
	}
	if limit := pod.Spec.ActiveDeadlineSeconds; limit != nil && pod.Status.StartTime != nil && w.verdict == nil && !final(pod) {
		wake = pod.Status.StartTime.Add(time.Duration(*limit) * time.Second)
		if !at.Before(wake) {
			const message = "Pod was active on the node longer than the specified deadline"
			w.verdict = &status.Verdict{Reason: "DeadlineExceeded", Message: message}
			w.eventf(pod, "", corev1.EventTypeNormal, "DeadlineExceeded", message)
			wake = time.Time{}
		}
	}
	switch {
	case pod.DeletionTimestamp != nil:
		if pod.DeletionGracePeriodSeconds != nil {
			grace = time.Duration(*pod.DeletionGracePeriodSeconds) * time.Second
		}
	case gone:
		grace = plan.MinimumGrace
	case w.verdict != nil && w.verdict.Reason == "Evicted":
		grace = plan.MinimumGrace
	case w.verdict != nil || final(pod):
	default:
		if w.m.isFenced() && podspec.RunOnce(pod) {
			return &plan.Stop{Now: true, Deadline: at, Message: "Stopping container %s: no server can be reached"}, true, wake
		}
		w.stopping = time.Time{}
		return nil, false, wake
	}
	if w.stopping.IsZero() {
		w.stopping = at
	}
	if w.m.isFenced() && podspec.RunOnce(pod) {
		return &plan.Stop{Now: true, Deadline: at}, false, wake
	}
	return &plan.Stop{Deadline: w.stopping.Add(grace)}, false, wake
}

// note keeps what the decision says about containers that wait to be restarted.
func (w *worker) note(pod *corev1.Pod, d plan.Decision) {
	for name, b := range d.Backoff {
		message := fmt.Sprintf("back-off %s restarting failed container=%s pod=%s_%s(%s)", b.Delay, name, pod.Name, pod.Namespace, pod.UID)
		w.waiting[name] = status.Waiting{Reason: "CrashLoopBackOff", Message: message}
		if until := int(b.Until.Unix()); w.backoff[name] != until {
			w.backoff[name] = until
			w.eventf(pod, name, corev1.EventTypeWarning, "BackOff", "Back-off restarting failed container %s in pod %s_%s(%s)", name, pod.Name, pod.Namespace, pod.UID)
		}
	}
}

// act begins what was decided.
func (w *worker) act(ctx context.Context, pod *corev1.Pod, observed cri.Pod, d plan.Decision, stop *plan.Stop) {
	if stop != nil {
		// What was to be started no longer is.
		for name, t := range w.busy {
			if name == plan.TaskSandbox || strings.HasPrefix(string(name), "start/") {
				t.cancel()
			}
		}
	}
	if d.CreateSandbox != nil {
		attempt := *d.CreateSandbox
		w.begin(ctx, plan.TaskSandbox, time.Time{}, func(ctx context.Context) error { return w.createSandbox(ctx, pod, attempt) })
	}
	for _, k := range d.Kill {
		c := k
		if k.Resize {
			w.resizes.killed[k.ID] = true
		}
		w.begin(ctx, plan.TaskKill(k.ID), now().Add(k.Grace), func(ctx context.Context) error { return w.killContainer(ctx, pod, observed, c) })
	}
	for _, id := range d.StopSandboxes {
		w.begin(ctx, plan.TaskStopSandbox(id), time.Time{}, func(ctx context.Context) error { return w.stopSandbox(ctx, id) })
	}
	if d.Resize != nil {
		r := *d.Resize
		w.begin(ctx, plan.TaskResize, time.Time{}, func(ctx context.Context) error { return w.resize(ctx, pod, observed, r) })
	}
	for _, s := range d.Start {
		start := s
		if w.waiting[s.Name].Reason == "CrashLoopBackOff" {
			delete(w.waiting, s.Name)
		}
		w.begin(ctx, plan.TaskStart(s.Name), time.Time{}, func(ctx context.Context) error { return w.startContainer(ctx, pod, observed, start) })
	}
}

// keepVolumes brings volumes up to date when something they show has changed, or is about to expire.
// known is the version of the pod that the step looks at, pod the same with what was allocated to it.
func (w *worker) keepVolumes(ctx context.Context, known, pod *corev1.Pod, observed cri.Pod, stop *plan.Stop, at time.Time) time.Time {
	sandbox, ok := observed.Sandbox()
	if stop != nil || !ok || !sandbox.Ready || len(pod.Spec.Volumes) == 0 {
		return time.Time{}
	}
	if w.busy[taskVolumes] != nil {
		return time.Time{}
	}
	if r, failed := w.retries[taskVolumes]; failed && at.Before(r.at) {
		return r.at
	}
	w.mu.Lock()
	due := w.stale || !w.refreshAt.IsZero() && !at.Before(w.refreshAt) || w.retries[taskVolumes].delay > 0
	// A version that came while this step was under way has yet to be shown: its step follows.
	w.stale = w.stale && w.pod != known
	w.mu.Unlock()
	if !due {
		return w.refreshAt
	}
	w.beginNext(ctx, taskVolumes, time.Time{}, func(ctx context.Context) (time.Time, error) {
		return w.m.Volumes.Prepare(ctx, pod, w.facts(pod, sandbox.IPs))
	})
	return time.Time{}
}

func (w *worker) facts(pod *corev1.Pod, ips []string) podspec.Facts {
	f := w.m.Node.Facts()
	f.PodIPs = ips
	if pod.Spec.HostNetwork {
		f.PodIPs = f.HostIPs
	}
	return f
}

// The bounds of a termination message, in bytes and lines (of the log, where that is the fallback).
const (
	maxMessage      = 4096
	maxMessageLog   = 2048
	maxMessageLines = 80
)

// readMessages adds what containers that ended have left as their last words.
func (w *worker) readMessages(ctx context.Context, observed *cri.Pod) {
	keep := map[string]string{}
	for i := range observed.Containers {
		c := &observed.Containers[i]
		if c.State != cri.StateExited {
			continue
		}
		message, known := w.messages[c.ID]
		if !known {
			message = lastWords(ctx, *c)
		}
		keep[c.ID] = message
		if message != "" {
			if c.Message != "" && c.Reason != "Completed" && c.Reason != "Error" {
				message = c.Message + ": " + message
			}
			c.Message = message
		}
	}
	w.messages = keep
}

func lastWords(ctx context.Context, c cri.Container) string {
	if c.MessageFile != "" {
		if message, err := end(c.MessageFile, maxMessage); err == nil && message != "" {
			return message
		}
	}
	if c.MessagePolicy == string(corev1.TerminationMessageFallbackToLogsOnError) && c.ExitCode != 0 && c.LogPath != "" {
		return logs.Tail(ctx, c.LogPath, maxMessageLines, maxMessageLog)
	}
	return ""
}

// end returns at most the last bytes of a file. The container writes it and may make it as large as it likes.
func end(path string, bytes int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(io.NewSectionReader(f, max(info.Size()-bytes, 0), bytes))
	return string(data), err
}
