package plan_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/plan"
)

// world is a runtime in which decisions come true, in any order and with any delay.
type world struct {
	pod   *corev1.Pod
	state cri.Pod
	busy  map[plan.Task]time.Time
	todo  map[plan.Task]func()
	now   time.Time
	next  int
}

func (w *world) decide(stop *plan.Stop) plan.Decision {
	return plan.Next(plan.Input{Pod: w.pod, Observed: w.state, Busy: w.busy, Stop: stop, Now: w.now})
}

func (w *world) find(id string) *cri.Container {
	for i := range w.state.Containers {
		if w.state.Containers[i].ID == id {
			return &w.state.Containers[i]
		}
	}
	return nil
}

func (w *world) exit(c *cri.Container, code int32) {
	c.State, c.ExitCode, c.FinishedAt = cri.StateExited, code, w.now
}

// begin takes a decision on: its effects will come true when they are finished.
func (w *world) begin(d plan.Decision) {
	put := func(t plan.Task, by time.Time, f func()) { w.busy[t], w.todo[t] = by, f }
	if d.CreateSandbox != nil {
		attempt := *d.CreateSandbox
		put(plan.TaskSandbox, time.Time{}, func() {
			w.next++
			s := cri.Sandbox{ID: fmt.Sprintf("s%d", w.next), Attempt: attempt, Ready: true, CreatedAt: w.now, IPs: []string{"10.0.0.1"}}
			w.state.Sandboxes = append([]cri.Sandbox{s}, w.state.Sandboxes...)
		})
	}
	for _, id := range d.StopSandboxes {
		put(plan.TaskStopSandbox(id), time.Time{}, func() {
			for i := range w.state.Sandboxes {
				if w.state.Sandboxes[i].ID == id {
					w.state.Sandboxes[i].Ready = false
				}
			}
		})
	}
	for _, s := range d.Start {
		put(plan.TaskStart(s.Name), time.Time{}, func() {
			sandbox, ok := w.state.Sandbox()
			if !ok || sandbox.ID != s.Sandbox || !sandbox.Ready {
				return // too late: it failed
			}
			w.next++
			c := cri.Container{ID: fmt.Sprintf("c%d", w.next), Name: s.Name, SandboxID: s.Sandbox, Attempt: s.Attempt, State: cri.StateRunning, CreatedAt: w.now, StartedAt: w.now, Backoff: s.Backoff}
			w.state.Containers = append([]cri.Container{c}, w.state.Containers...)
		})
	}
	for _, k := range d.Kill {
		put(plan.TaskKill(k.ID), w.now.Add(k.Grace), func() {
			if c := w.find(k.ID); c != nil && c.State != cri.StateExited {
				w.exit(c, 137)
			}
		})
	}
}

func (w *world) finish(t plan.Task) {
	w.todo[t]()
	delete(w.todo, t)
	delete(w.busy, t)
}

func (w *world) tasks() []plan.Task {
	var out []plan.Task
	for t := range w.todo {
		out = append(out, t)
	}
	// A fixed order, so that a failing run can be repeated.
	for i := range out {
		for j := i + 1; j < len(out); j++ {
			if out[j] < out[i] {
				out[i], out[j] = out[j], out[i]
			}
		}
	}
	return out
}

func (w *world) running() map[string]int {
	out := map[string]int{}
	for _, c := range w.state.Containers {
		if c.State == cri.StateRunning {
			out[c.Name]++
		}
	}
	return out
}

func drawPod(t *rapid.T) *corev1.Pod {
	p := pod(rapid.SampledFrom([]corev1.RestartPolicy{"Always", "OnFailure", "Never"}).Draw(t, "policy"))
	for i := range rapid.IntRange(1, 3).Draw(t, "mains") {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: fmt.Sprintf("m%d", i), Image: "i"})
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "inits") {
		withInit(p, fmt.Sprintf("%s%d", rapid.SampledFrom([]string{"i", "s"}).Draw(t, "kind"), i))
	}
	return p
}

// check holds of every decision in every world.
func check(t *rapid.T, w *world, d plan.Decision, stopping bool) {
	running := w.running()
	for name, n := range running {
		if n > 1 {
			t.Fatalf("%d containers %s run at once", n, name)
		}
	}
	if len(d.Start) > 1 {
		t.Fatalf("two starts at once: %+v", d.Start)
	}
	if stopping && (len(d.Start) > 0 || d.CreateSandbox != nil) {
		t.Fatalf("a pod that is to end begins something: %s", summary(d))
	}
	for _, s := range d.Start {
		if running[s.Name] > 0 {
			t.Fatalf("%s is started while it runs", s.Name)
		}
		if s.Name[0] == 'm' {
			mustBeInitialized(t, w, s)
		}
	}
	if d.Ended && len(running) > 0 {
		t.Fatalf("ended while %v run", running)
	}
	if d.Stopped && !d.Ended {
		t.Fatal("stopped, but not ended")
	}
	for _, k := range d.Kill {
		c := w.find(k.ID)
		if c == nil || c.State != cri.StateRunning {
			t.Fatalf("kill of %s, which does not run", k.ID)
		}
		if k.Name[0] == 's' && stopping {
			for name := range running {
				if name[0] == 'm' {
					t.Fatalf("sidecar %s is stopped before %s", k.Name, name)
				}
			}
		}
	}
}

func mustBeInitialized(t *rapid.T, w *world, s plan.Start) {
	sandbox, _ := w.state.Sandbox()
	for i := range w.pod.Spec.Containers {
		if _, ok := w.state.Active(w.pod.Spec.Containers[i].Name, sandbox.ID); ok {
			return
		}
	}
	for i := range w.pod.Spec.InitContainers {
		name := w.pod.Spec.InitContainers[i].Name
		c, ok := w.state.Active(name, sandbox.ID)
		// A sidecar may have ended since it had its turn.
		if !ok || name[0] == 'i' && (c.State != cri.StateExited || c.ExitCode != 0) {
			t.Fatalf("%s is started before init container %s is done", s.Name, name)
		}
	}
}

func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{pod: drawPod(t), busy: map[plan.Task]time.Time{}, todo: map[plan.Task]func(){}, now: epoch}
		var stop *plan.Stop
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			d := w.decide(stop)
			check(t, w, d, stop != nil)
			w.begin(d)
			w.now = w.now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "seconds")) * time.Second)
			switch rapid.SampledFrom([]string{"finish", "finish", "finish", "exit", "lose", "wait"}).Draw(t, "what") {
			case "finish":
				if tasks := w.tasks(); len(tasks) > 0 {
					w.finish(rapid.SampledFrom(tasks).Draw(t, "task"))
				}
			case "exit":
				for i := range w.state.Containers {
					if c := &w.state.Containers[i]; c.State == cri.StateRunning && rapid.Bool().Draw(t, "this") {
						w.exit(c, rapid.SampledFrom([]int32{0, 1}).Draw(t, "code"))
						break
					}
				}
			case "lose": // the sandbox dies, and all in it
				if rapid.IntRange(0, 9).Draw(t, "rarely") == 0 && len(w.state.Sandboxes) > 0 {
					w.state.Sandboxes[0].Ready = false
					for i := range w.state.Containers {
						if c := &w.state.Containers[i]; c.State == cri.StateRunning {
							w.exit(c, 137)
						}
					}
				}
			}
			if stop == nil && rapid.IntRange(0, 19).Draw(t, "stop") == 0 {
				stop = &plan.Stop{Deadline: w.now.Add(30 * time.Second)}
			}
		}
		endsInTime(t, w)
	})
}

// endsInTime: whatever has happened, a pod that is to end does end, in few steps, and stays so.
func endsInTime(t *rapid.T, w *world) {
	stop := &plan.Stop{Deadline: w.now.Add(30 * time.Second)}
	for range 40 {
		d := w.decide(stop)
		check(t, w, d, true)
		if d.Stopped {
			if again := w.decide(stop); summary(again) != summary(d) {
				t.Fatalf("a second look says %s", summary(again))
			}
			return
		}
		w.begin(d)
		for _, task := range w.tasks() {
			w.finish(task)
		}
	}
	t.Fatalf("does not end: %+v, busy %v", w.state, strings.Join(names(w.busy), " "))
}

func names(m map[plan.Task]time.Time) []string {
	var out []string
	for t := range m {
		out = append(out, string(t))
	}
	return out
}
