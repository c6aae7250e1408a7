package plan_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/plan"
)

var epoch = time.Unix(1_700_000_000, 0)

func pod(policy corev1.RestartPolicy, mains ...string) *corev1.Pod {
	p := &corev1.Pod{}
	p.Spec.RestartPolicy = policy
	for _, m := range mains {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: m, Image: "i"})
	}
	return p
}

func withInit(p *corev1.Pod, names ...string) *corev1.Pod {
	for _, n := range names {
		c := corev1.Container{Name: n, Image: "i"}
		if n[0] == 's' { // sidecars begin with s
			always := corev1.ContainerRestartPolicyAlways
			c.RestartPolicy = &always
		}
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	return p
}

// observed builds a pod's picture from words such as "a:running", "b:exited:1", oldest first.
func observed(words ...string) cri.Pod {
	out := cri.Pod{Sandboxes: []cri.Sandbox{{ID: "s", Ready: true, IPs: []string{"10.0.0.1"}}}}
	attempts := map[string]int{}
	for i, w := range words {
		var name, state string
		var code int32
		parts := slices.Collect(split(w))
		name, state = parts[0], parts[1]
		if len(parts) > 2 {
			if _, err := fmt.Sscan(parts[2], &code); err != nil {
				panic(err)
			}
		}
		at := epoch.Add(time.Duration(i-len(words)) * time.Second)
		c := cri.Container{
			ID: fmt.Sprintf("%s-%d", name, i), Name: name, SandboxID: "s", Attempt: attempts[name], State: cri.State(state),
			CreatedAt: at, StartedAt: at, ExitCode: code, Hash: cri.Hash(&corev1.Container{Name: name, Image: "i"}),
		}
		if c.State == cri.StateExited {
			c.FinishedAt = at
		}
		attempts[name]++
		out.Containers = append([]cri.Container{c}, out.Containers...)
	}
	return out
}

func split(s string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		start := 0
		for i := 0; i <= len(s); i++ {
			if i == len(s) || s[i] == ':' {
				if !yield(s[start:i]) {
					return
				}
				start = i + 1
			}
		}
	}
}

// summary is a decision in one line.
func summary(d plan.Decision) string {
	out := ""
	if d.CreateSandbox != nil {
		out += fmt.Sprintf("sandbox(%d) ", *d.CreateSandbox)
	}
	for _, s := range d.StopSandboxes {
		out += "stop-sandbox(" + s + ") "
	}
	for _, s := range d.Start {
		out += fmt.Sprintf("start(%s %d) ", s.Name, s.Attempt)
	}
	for _, k := range d.Kill {
		out += "kill(" + k.Name + ") "
	}
	if len(d.Backoff) > 0 {
		out += "backoff "
	}
	if d.Ended {
		out += "ended "
	}
	if d.Stopped {
		out += "stopped "
	}
	if out == "" {
		return "-"
	}
	return out[:len(out)-1]
}

func TestNext(t *testing.T) {
	deadline := &plan.Stop{Deadline: epoch.Add(30 * time.Second)}
	notReady := observed("a:exited:0")
	notReady.Sandboxes[0].Ready = false
	lostRunning := observed("a:unknown")
	lostRunning.Sandboxes[0].Ready = false
	tests := []struct {
		name string
		in   plan.Input
		want string
	}{
		{"new pod gets a sandbox", plan.Input{Pod: pod("Always", "a")}, "sandbox(0)"},
		{"sandbox is being made", plan.Input{Pod: pod("Always", "a"), Busy: map[plan.Task]time.Time{plan.TaskSandbox: {}}}, "-"},
		{"sandbox failed a moment ago", plan.Input{Pod: pod("Always", "a"), NotBefore: map[plan.Task]time.Time{plan.TaskSandbox: epoch.Add(time.Second)}}, "-"},
		{"first container", plan.Input{Pod: pod("Always", "a", "b"), Observed: observed()}, "start(a 0)"},
		{"second container", plan.Input{Pod: pod("Always", "a", "b"), Observed: observed("a:running")}, "start(b 0)"},
		{"second waits for the first's start", plan.Input{Pod: pod("Always", "a", "b"), Observed: observed("a:running"), Busy: map[plan.Task]time.Time{plan.TaskStart("a"): {}}}, "-"},
		{"second goes on while the first is held back", plan.Input{Pod: pod("Always", "a", "b"), Observed: observed(), NotBefore: map[plan.Task]time.Time{plan.TaskStart("a"): epoch.Add(time.Second)}}, "start(b 0)"},
		{"all run", plan.Input{Pod: pod("Always", "a", "b"), Observed: observed("a:running", "b:running")}, "-"},
		{"restart", plan.Input{Pod: pod("Always", "a"), Observed: observed("a:exited:1")}, "start(a 1)"},
		{"Always restarts after success", plan.Input{Pod: pod("Always", "a"), Observed: observed("a:exited:0")}, "start(a 1)"},
		{"OnFailure restarts after failure", plan.Input{Pod: pod("OnFailure", "a"), Observed: observed("a:exited:1")}, "start(a 1)"},
		{"OnFailure is done after success", plan.Input{Pod: pod("OnFailure", "a"), Observed: observed("a:exited:0")}, "stop-sandbox(s) ended"},
		{"Never is done after failure", plan.Input{Pod: pod("Never", "a"), Observed: observed("a:exited:1")}, "stop-sandbox(s) ended"},
		{"Never waits for the other", plan.Input{Pod: pod("Never", "a", "b"), Observed: observed("a:exited:1", "b:running")}, "-"},
		{"a created container is started anew", plan.Input{Pod: pod("Never", "a"), Observed: observed("a:created")}, "start(a 1)"},
		{"first init container", plan.Input{Pod: withInit(pod("Always", "a"), "i1", "i2"), Observed: observed()}, "start(i1 0)"},
		{"init container runs", plan.Input{Pod: withInit(pod("Always", "a"), "i1", "i2"), Observed: observed("i1:running")}, "-"},
		{"second init container", plan.Input{Pod: withInit(pod("Always", "a"), "i1", "i2"), Observed: observed("i1:exited:0")}, "start(i2 0)"},
		{"init done", plan.Input{Pod: withInit(pod("Always", "a"), "i1", "i2"), Observed: observed("i1:exited:0", "i2:exited:0")}, "start(a 0)"},
		{"removed init containers do not come back", plan.Input{Pod: withInit(pod("Always", "a"), "i1", "i2"), Observed: observed("a:exited:1")}, "start(a 1)"},
		{"init failed for good", plan.Input{Pod: withInit(pod("Never", "a"), "i1"), Observed: observed("i1:exited:1")}, "stop-sandbox(s) ended"},
		{"init failed, again", plan.Input{Pod: withInit(pod("Always", "a"), "i1"), Observed: observed("i1:exited:1")}, "start(i1 1)"},
		{"sidecar started, next", plan.Input{Pod: withInit(pod("Always", "a"), "s1", "i2"), Observed: observed("s1:running")}, "start(i2 0)"},
		{"sidecar restarts during init", plan.Input{Pod: withInit(pod("Never", "a"), "s1", "i2"), Observed: observed("s1:exited:1", "i2:running")}, "start(s1 1)"},
		{"sidecar restarts beside main", plan.Input{Pod: withInit(pod("Never", "a"), "s1"), Observed: observed("a:running", "s1:exited:0")}, "start(s1 1)"},
		{"sidecar ends with main", plan.Input{Pod: withInit(pod("Never", "a"), "s1"), Observed: observed("s1:running", "a:exited:0")}, "kill(s1)"},
		{"sidecars end last to first", plan.Input{Pod: withInit(pod("Never", "a"), "s1", "s2"), Observed: observed("s1:running", "s2:running", "a:exited:0")}, "kill(s2)"},
		{"stop: main first", plan.Input{Pod: withInit(pod("Always", "a", "b"), "s1"), Observed: observed("s1:running", "a:running", "b:running"), Stop: deadline}, "kill(b) kill(a)"},
		{"stop: then sidecars", plan.Input{Pod: withInit(pod("Always", "a"), "s1"), Observed: observed("s1:running", "a:exited:143"), Stop: deadline}, "kill(s1)"},
		{"stop now: all at once", plan.Input{Pod: withInit(pod("Always", "a"), "s1"), Observed: observed("s1:running", "a:running"), Stop: &plan.Stop{Now: true, Deadline: epoch}}, "kill(a) kill(s1)"},
		{"stop: nothing starts", plan.Input{Pod: pod("Always", "a", "b"), Observed: observed("a:exited:1"), Stop: deadline}, "stop-sandbox(s) ended"},
		{"stop: a start under way is waited for", plan.Input{Pod: pod("Always", "a"), Observed: observed(), Stop: deadline, Busy: map[plan.Task]time.Time{plan.TaskStart("a"): {}}}, "-"},
		{"stop: kill under way", plan.Input{Pod: pod("Always", "a"), Observed: observed("a:running"), Stop: deadline, Busy: map[plan.Task]time.Time{plan.TaskKill("a-0"): epoch.Add(30 * time.Second)}}, "-"},
		{"stop: less grace than before", plan.Input{Pod: pod("Always", "a"), Observed: observed("a:running"), Stop: deadline, Busy: map[plan.Task]time.Time{plan.TaskKill("a-0"): epoch.Add(90 * time.Second)}}, "kill(a)"},
		{"stop: never started", plan.Input{Pod: pod("Always", "a"), Stop: deadline}, "ended stopped"},
		{"sandbox lost, done", plan.Input{Pod: pod("OnFailure", "a"), Observed: notReady}, "ended stopped"},
		{"sandbox lost, again", plan.Input{Pod: pod("Always", "a"), Observed: notReady}, "sandbox(1)"},
		{"sandbox lost, container in doubt", plan.Input{Pod: pod("Always", "a"), Observed: lostRunning}, "kill(a)"},
		{"sandbox lost, never again", plan.Input{Pod: pod("Never", "a"), Observed: lostRunning}, "kill(a)"},
		{"unknown container is killed first", plan.Input{Pod: pod("Always", "a"), Observed: observed("a:unknown")}, "kill(a)"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.in.Now = epoch
			if got := summary(plan.Next(tt.in)); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestChangedImageRestartsWhateverPolicy(t *testing.T) {
	p := pod("Never", "a")
	p.Spec.Containers[0].Image = "other"
	d := plan.Next(plan.Input{Pod: p, Observed: observed("a:running"), Now: epoch})
	if len(d.Kill) != 1 || d.Kill[0].Message != "Container a definition changed, will be restarted" {
		t.Errorf("kill %+v", d.Kill)
	}
}

func TestProbesDecide(t *testing.T) {
	p := pod("Always", "a")
	seconds := int64(5)
	p.Spec.Containers[0].LivenessProbe = &corev1.Probe{TerminationGracePeriodSeconds: &seconds}
	in := plan.Input{Pod: p, Observed: observed("a:running"), Probes: map[string]plan.Probes{"a-0": {Liveness: plan.Failure}}, Now: epoch}
	d := plan.Next(in)
	if len(d.Kill) != 1 || d.Kill[0].Grace != 5*time.Second || d.Kill[0].Message != "Container a failed liveness probe, will be restarted" {
		t.Errorf("liveness: %+v", d.Kill)
	}

	side := withInit(pod("Always", "a"), "s1")
	side.Spec.InitContainers[0].StartupProbe = &corev1.Probe{}
	in = plan.Input{Pod: side, Observed: observed("s1:running"), Now: epoch}
	if got := summary(plan.Next(in)); got != "-" {
		t.Errorf("main must wait for the sidecar's startup probe, got %q", got)
	}
	in.Probes = map[string]plan.Probes{"s1-0": {Startup: plan.Success}}
	if got := summary(plan.Next(in)); got != "start(a 0)" {
		t.Errorf("after the startup probe: %q", got)
	}
	in.Probes = map[string]plan.Probes{"s1-0": {Startup: plan.Failure}}
	if got := summary(plan.Next(in)); got != "kill(s1)" {
		t.Errorf("after the startup probe's failure: %q", got)
	}
}

func TestRestartRules(t *testing.T) {
	p := pod("Never", "a")
	p.Spec.Containers[0].RestartPolicyRules = []corev1.ContainerRestartRule{{
		Action:    corev1.ContainerRestartRuleActionRestart,
		ExitCodes: &corev1.ContainerRestartRuleOnExitCodes{Operator: corev1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42}},
	}}
	for code, want := range map[int32]bool{42: true, 1: false, 0: false} {
		if got := plan.Restarts(p, &p.Spec.Containers[0], code); got != want {
			t.Errorf("exit code %d: restarts %v, want %v", code, got, want)
		}
	}
	p.Spec.Containers[0].RestartPolicyRules[0].ExitCodes.Operator = corev1.ContainerRestartRuleOnExitCodesOpNotIn
	if plan.Restarts(p, &p.Spec.Containers[0], 42) || !plan.Restarts(p, &p.Spec.Containers[0], 1) {
		t.Error("NotIn matches the other codes")
	}
}

// TestBackoffShape follows a container that crashes at once, always.
func TestBackoffShape(t *testing.T) {
	p := pod("Always", "a")
	now := epoch
	o := observed()
	var waits []time.Duration
	var backoff time.Duration
	for attempt := range 9 {
		o.Containers = []cri.Container{{ID: fmt.Sprint(attempt), Name: "a", SandboxID: "s", Attempt: attempt, State: cri.StateExited, ExitCode: 1,
			CreatedAt: now, StartedAt: now, FinishedAt: now, Backoff: backoff, Hash: cri.Hash(&p.Spec.Containers[0])}}
		d := plan.Next(plan.Input{Pod: p, Observed: o, Now: now})
		wait := time.Duration(0)
		if len(d.Start) == 0 {
			wait = d.Wake.Sub(now)
			if b := d.Backoff["a"]; b.Delay != wait || !b.Until.Equal(d.Wake) {
				t.Fatalf("back-off %+v, wake %s", b, d.Wake)
			}
			now = d.Wake
			d = plan.Next(plan.Input{Pod: p, Observed: o, Now: now})
		}
		waits = append(waits, wait)
		if len(d.Start) != 1 || d.Start[0].Attempt != attempt+1 {
			t.Fatalf("attempt %d: %s", attempt, summary(d))
		}
		backoff = d.Start[0].Backoff
	}
	want := []time.Duration{0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 300 * time.Second, 300 * time.Second, 300 * time.Second}
	if !slices.Equal(waits, want) {
		t.Errorf("waits %v, want %v", waits, want)
	}
	// After ten minutes of good work it begins anew.
	o.Containers[0].CreatedAt = now
	o.Containers[0].FinishedAt = now.Add(plan.BackoffReset + time.Second)
	o.Containers[0].Backoff = plan.BackoffMax
	d := plan.Next(plan.Input{Pod: p, Observed: o, Now: o.Containers[0].FinishedAt})
	if len(d.Start) != 1 || d.Start[0].Backoff != plan.BackoffInitial {
		t.Errorf("after a long run: %s %+v", summary(d), d.Start)
	}
}
