package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/metrics"
	"barque.dev/internal/agent/plan"
	"barque.dev/internal/agent/probe"
)

// hook runs a lifecycle hook in, or against, a container.
func (w *worker) hook(ctx context.Context, pod *corev1.Pod, spec *corev1.Container, h *corev1.LifecycleHandler, id string, ips []string) error {
	switch {
	case h.Exec != nil:
		code, output, err := w.exec(id)(ctx, h.Exec.Command, 0)
		if err != nil {
			return err
		}
		if code != 0 {
			return fmt.Errorf("command %q exited with %d: %s", strings.Join(h.Exec.Command, " "), code, output[:min(len(output), 1024)])
		}
		return nil
	case h.HTTPGet != nil:
		request, err := probe.Request(ctx, h.HTTPGet, w.target(pod, spec, id, ips), "kube-lifecycle/1.37")
		if err != nil {
			return err
		}
		reply, err := probe.Client().Do(request)
		if err != nil {
			return err
		}
		defer reply.Body.Close()
		_, err = io.Copy(io.Discard, io.LimitReader(reply.Body, 10<<10))
		if reply.StatusCode >= http.StatusBadRequest {
			return fmt.Errorf("hook was answered with %s", reply.Status)
		}
		return err
	case h.Sleep != nil:
		timer := time.NewTimer(time.Duration(h.Sleep.Seconds) * time.Second)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	default:
		return errors.New("invalid handler: the hook does nothing this node knows")
	}
}

// exec returns a way to run commands in the container.
func (w *worker) exec(id string) probe.Exec {
	return func(ctx context.Context, command []string, timeout time.Duration) (int32, []byte, error) {
		reply, err := w.m.Runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: int64(timeout / time.Second)})
		if err != nil {
			return 0, nil, err
		}
		return reply.GetExitCode(), append(reply.GetStdout(), reply.GetStderr()...), nil
	}
}

func (w *worker) target(pod *corev1.Pod, spec *corev1.Container, id string, ips []string) probe.Target {
	t := probe.Target{Ports: spec.Ports, Exec: w.exec(id)}
	if facts := w.facts(pod, ips); len(facts.PodIPs) > 0 {
		t.IP = facts.PodIPs[0]
	}
	return t
}

// probing is the probing of one running container.
type probing struct {
	cancel  context.CancelFunc
	running context.CancelFunc // ends startup and liveness probes only
}

// syncProbes probes the containers that run, and no others. A pod that is ending is only asked
// whether it is still ready to serve.
func (w *worker) syncProbes(ctx context.Context, pod *corev1.Pod, observed cri.Pod, stop *plan.Stop) {
	live := map[string]bool{}
	sandbox, ok := observed.Sandbox()
	for _, c := range observed.Containers {
		if !ok || c.State != cri.StateRunning || c.SandboxID != sandbox.ID {
			continue
		}
		live[c.ID] = true
		if w.probing[c.ID] != nil || stop != nil || w.busy[plan.TaskStart(c.Name)] != nil {
			continue
		}
		if spec := podspecContainer(pod, c.Name); spec != nil {
			w.beginProbes(ctx, pod, spec, c, sandbox.IPs)
		}
	}
	for id, p := range w.probing {
		if stop != nil {
			p.running()
		}
		if live[id] {
			continue
		}
		p.cancel()
		delete(w.probing, id)
		w.mu.Lock()
		delete(w.probes, id)
		w.mu.Unlock()
	}
}

// podspecContainer returns the container if it is of a kind that is probed: main, or a sidecar.
func podspecContainer(pod *corev1.Pod, name string) *corev1.Container {
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return &pod.Spec.Containers[i]
		}
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.Name == name && plan.Sidecar(c) {
			return c
		}
	}
	return nil
}

func (w *worker) beginProbes(ctx context.Context, pod *corev1.Pod, spec *corev1.Container, c cri.Container, ips []string) {
	if spec.StartupProbe == nil && spec.LivenessProbe == nil && spec.ReadinessProbe == nil {
		w.probing[c.ID] = &probing{cancel: func() {}, running: func() {}}
		return
	}
	all, cancel := context.WithCancel(ctx)
	running, stopRunning := context.WithCancel(all)
	w.probing[c.ID] = &probing{cancel: cancel, running: stopRunning}

	initial := w.remembered(pod, c)
	w.mu.Lock()
	w.probes[c.ID] = initial
	w.mu.Unlock()

	target := w.target(pod, spec, c.ID, ips)
	var begin chan struct{}
	if spec.StartupProbe != nil && initial.Startup != plan.Success {
		begin = make(chan struct{})
		w.probe(running, pod, c, probe.Runner{Kind: probe.Startup, Probe: spec.StartupProbe, Target: target}, func(r plan.Result) {
			if r == plan.Success {
				close(begin)
			}
		})
	}
	if spec.LivenessProbe != nil {
		w.probe(running, pod, c, probe.Runner{Kind: probe.Liveness, Probe: spec.LivenessProbe, Target: target, Begin: begin, Initial: plan.Success}, nil)
	}
	if spec.ReadinessProbe != nil {
		w.probe(all, pod, c, probe.Runner{Kind: probe.Readiness, Probe: spec.ReadinessProbe, Target: target, Begin: begin, Initial: initial.Readiness}, nil)
	}
}

// remembered returns what the pod's status says of a container that ran before the agent did: its
// readiness does not flap because the agent was restarted.
func (w *worker) remembered(pod *corev1.Pod, c cri.Container) plan.Probes {
	p := plan.Probes{Liveness: plan.Success}
	for _, list := range [][]corev1.ContainerStatus{pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses} {
		for i := range list {
			if st := &list[i]; strings.HasSuffix(st.ContainerID, "://"+c.ID) {
				if st.Started != nil && *st.Started {
					p.Startup = plan.Success
				}
				if st.Ready {
					p.Readiness = plan.Success
				}
			}
		}
	}
	return p
}

// probe runs one probe beside the worker.
func (w *worker) probe(ctx context.Context, pod *corev1.Pod, c cri.Container, r probe.Runner, also func(plan.Result)) {
	r.StartedAt = c.StartedAt
	probed := metrics.Probed{Kind: string(r.Kind), Container: c.Name, Pod: pod.Name, Namespace: pod.Namespace, UID: pod.UID}
	r.Answered = func(o probe.Outcome, took time.Duration) { w.m.Metrics.Probe(probed, o.String(), took) }
	r.Failed = func(text string) {
		w.eventf(pod, c.Name, corev1.EventTypeWarning, "Unhealthy", "%s probe failed: %s", r.Kind, text)
	}
	r.Verdict = func(v plan.Result) {
		w.mu.Lock()
		if p, ok := w.probes[c.ID]; ok {
			switch r.Kind {
			case probe.Startup:
				p.Startup = v
			case probe.Liveness:
				p.Liveness = v
			case probe.Readiness:
				p.Readiness = v
			}
			w.probes[c.ID] = p
		}
		w.mu.Unlock()
		if also != nil {
			also(v)
		}
		w.poke()
	}
	w.tasks.Add(1)
	go func() {
		defer w.tasks.Done()
		defer func() {
			if p := recover(); p != nil {
				w.m.Log.Error("panic in a probe", "uid", pod.UID, "container", c.Name, "panic", p)
			}
		}()
		r.Run(ctx)
	}()
}
