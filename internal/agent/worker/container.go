package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/image"
	"barque.dev/internal/agent/plan"
	"barque.dev/internal/agent/podspec"
	"barque.dev/internal/agent/volume"
)

// startError is why a container did not start, in the words of its API status.
type startError struct {
	reason, message string
	retry           time.Time
	cause           error
}

func (e *startError) Error() string { return e.reason + ": " + e.message }
func (e *startError) Unwrap() error { return e.cause }

// retryAt is when an error itself says that it may be tried again; zero if it does not.
func retryAt(err error) time.Time {
	var e *startError
	if errors.As(err, &e) {
		return e.retry
	}
	return time.Time{}
}

// startContainer brings the container's image, makes the container and starts it. It returns when
// the container's post-start hook is over.
func (w *worker) startContainer(ctx context.Context, pod *corev1.Pod, observed cri.Pod, s plan.Start) error {
	spec := podspec.Container(pod, s.Name)
	if spec == nil {
		return fmt.Errorf("pod %s has no container %s", podspec.FullName(pod), s.Name)
	}
	sandbox, ok := observed.Sandbox()
	if !ok || sandbox.ID != s.Sandbox {
		return fmt.Errorf("pod %s: sandbox %s is gone", podspec.FullName(pod), s.Sandbox)
	}
	sandboxConfig, err := w.m.Spec.SandboxConfig(pod, sandbox.Attempt, w.m.Cgroups.PodPath(pod))
	if err != nil {
		return err
	}
	fail := func(reason string, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w.eventf(pod, s.Name, corev1.EventTypeWarning, "Failed", "Error: %v", err)
		return &startError{reason: reason, message: err.Error(), cause: err}
	}
	fetched, err := w.fetch(ctx, pod, spec, sandboxConfig)
	if err != nil {
		return err
	}
	config, err := w.containerConfig(ctx, pod, spec, sandbox, observed, s, fetched)
	if err != nil {
		return fail("CreateContainerConfigError", err)
	}
	request := &runtimeapi.CreateContainerRequest{PodSandboxId: s.Sandbox, Config: config, SandboxConfig: sandboxConfig}
	id, err := w.launch(ctx, pod, s.Name, request, fail)
	if err != nil {
		return err
	}
	return w.postStart(ctx, pod, spec, id, sandbox.IPs)
}

// launch creates a container and starts it, and returns its id. What it fails with is what fail makes
// of a reason.
func (w *worker) launch(ctx context.Context, pod *corev1.Pod, name string, in *runtimeapi.CreateContainerRequest, fail func(string, error) error) (string, error) {
	release, err := w.m.starts.take(ctx)
	if err != nil {
		return "", err
	}
	defer release()
	whole, cancel := w.whole(ctx)
	defer cancel()
	created, err := w.create(whole, in)
	if err != nil {
		return "", fail("CreateContainerError", err)
	}
	id := created.GetContainerId()
	w.eventf(pod, name, corev1.EventTypeNormal, "Created", "Container created")
	if ctx.Err() != nil {
		return "", ctx.Err() // the pod ends: its sandbox's end takes the container along
	}
	if _, err := w.m.Runtime.StartContainer(whole, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		return "", fail("RunContainerError", err)
	}
	w.eventf(pod, name, corev1.EventTypeNormal, "Started", "Container started")
	return id, nil
}

// create makes a container. Those of a pod that mount images are made one after the other, since
// containerd mounts an image once for the pod and does not expect to be asked twice at a time.
func (w *worker) create(ctx context.Context, in *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if slices.ContainsFunc(in.GetConfig().GetMounts(), func(m *runtimeapi.Mount) bool { return m.GetImage() != nil }) {
		w.mounting.Lock()
		defer w.mounting.Unlock()
	}
	return w.m.Runtime.CreateContainer(ctx, in)
}

// fetched is what had to be there before a container is made.
type fetched struct {
	image image.Image
	// volumes holds what the runtime calls the images that the container mounts, by volume.
	volumes map[string]string
}

// fetch brings the images of a container: those it mounts, then its own.
func (w *worker) fetch(ctx context.Context, pod *corev1.Pod, spec *corev1.Container, sandbox *runtimeapi.PodSandboxConfig) (fetched, error) {
	out := fetched{volumes: map[string]string{}}
	for i := range spec.VolumeMounts {
		name := spec.VolumeMounts[i].Name
		v := volume.Of(pod, name)
		if v == nil || v.Image == nil || out.volumes[name] != "" {
			continue
		}
		// The events are the pod's, whichever container mounts the volume.
		img, err := w.ensure(ctx, pod, "", image.Wanted{Name: v.Image.Reference, Policy: v.Image.PullPolicy}, sandbox, spec.Name)
		if err != nil {
			return fetched{}, err
		}
		out.volumes[name] = img.Ref
	}
	var err error
	out.image, err = w.ensure(ctx, pod, spec.Name, image.Wanted{Name: spec.Image, Policy: spec.ImagePullPolicy}, sandbox, spec.Name)
	return out, err
}

// ensure brings an image that a container waits for; events are about the container named, or about
// the pod.
func (w *worker) ensure(ctx context.Context, pod *corev1.Pod, about string, want image.Wanted, sandbox *runtimeapi.PodSandboxConfig, container string) (image.Image, error) {
	img, err := w.m.Puller.Ensure(ctx, pod, want, sandbox, func(eventType, reason, format string, args ...any) {
		w.eventf(pod, about, eventType, reason, format, args...)
	})
	var why *image.Error
	if !errors.As(err, &why) || ctx.Err() != nil {
		return img, err
	}
	w.eventf(pod, container, corev1.EventTypeWarning, "Failed", "Error: %s", why.Reason)
	return img, &startError{reason: why.Reason, message: why.Message, retry: why.Retry, cause: err}
}

// postStart runs the container's post-start hook. A container whose hook failed is killed.
func (w *worker) postStart(ctx context.Context, pod *corev1.Pod, spec *corev1.Container, id string, ips []string) error {
	if spec.Lifecycle == nil || spec.Lifecycle.PostStart == nil {
		return nil
	}
	w.poke() // the container runs: its status says so while the hook goes on
	err := w.hook(ctx, pod, spec, spec.Lifecycle.PostStart, id, ips)
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	w.eventf(pod, spec.Name, corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
	w.eventf(pod, spec.Name, corev1.EventTypeNormal, "Killing", "FailedPostStartHook")
	if _, stop := w.m.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: int64(graceSeconds(pod))}); stop != nil && !cri.NotFound(stop) {
		err = errors.Join(err, stop)
	}
	return &startError{reason: "PostStartHookError", message: err.Error(), cause: err}
}

func graceSeconds(pod *corev1.Pod) int64 {
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		return max(*s, int64(plan.MinimumGrace/time.Second))
	}
	return corev1.DefaultTerminationGracePeriodSeconds
}

// containerConfig collects everything the container's definition refers to.
func (w *worker) containerConfig(ctx context.Context, pod *corev1.Pod, spec *corev1.Container, sandbox cri.Sandbox, observed cri.Pod, s plan.Start, f fetched) (*runtimeapi.ContainerConfig, error) {
	services, known := w.m.Node.Services()
	if !known {
		return nil, errServices
	}
	facts := w.facts(pod, sandbox.IPs)
	if _, err := w.m.Volumes.Prepare(ctx, pod, facts); err != nil {
		return nil, err
	}
	env, err := podspec.Environment(pod, spec, facts, services, w.m.Objects)
	if err != nil {
		return nil, err
	}
	mounts, err := w.m.Volumes.Mounts(ctx, pod, spec, env, f.volumes)
	if err != nil {
		return nil, err
	}
	launch := podspec.Launch{Attempt: s.Attempt, Backoff: s.Backoff, Env: env, ImageRef: f.image.Ref, ImageUser: f.image.User, Mounts: mounts}
	if err := w.addFiles(pod, spec, facts.PodIPs, &launch); err != nil {
		return nil, err
	}
	launch.Target, err = target(pod, spec, sandbox, observed)
	if err != nil {
		return nil, err
	}
	return w.m.Spec.ContainerConfig(pod, spec, launch)
}

// addFiles adds the agent's own files to a container: /etc/hosts and the termination message.
func (w *worker) addFiles(pod *corev1.Pod, spec *corev1.Container, ips []string, l *podspec.Launch) error {
	dir := w.m.Volumes.PodDir(pod.UID)
	hosts := true
	for _, m := range spec.VolumeMounts {
		if filepath.Clean(m.MountPath) == "/etc/hosts" {
			hosts = false
		}
	}
	if hosts {
		var node []byte
		if pod.Spec.HostNetwork {
			node, _ = os.ReadFile("/etc/hosts") // a node without one has nothing to add
		}
		path := filepath.Join(dir, "etc-hosts")
		if err := os.WriteFile(path, podspec.Hosts(pod, ips, w.m.Spec.DNS.Domain, node), 0o644); err != nil {
			return fmt.Errorf("write hosts file: %w", err)
		}
		if err := os.Chmod(path, 0o644); err != nil {
			return fmt.Errorf("write hosts file: %w", err)
		}
		l.Mounts = append(l.Mounts, &runtimeapi.Mount{ContainerPath: "/etc/hosts", HostPath: path})
	}
	if spec.TerminationMessagePath == "" {
		return nil
	}
	messages := filepath.Join(dir, "containers", spec.Name)
	if err := os.MkdirAll(messages, 0o750); err != nil {
		return fmt.Errorf("make folder of termination messages: %w", err)
	}
	l.MessageFile = filepath.Join(messages, fmt.Sprintf("message-%d-%d", l.Attempt, time.Now().UnixNano()))
	if err := os.WriteFile(l.MessageFile, nil, 0o666); err != nil {
		return fmt.Errorf("make termination message: %w", err)
	}
	if err := os.Chmod(l.MessageFile, 0o666); err != nil { // any user of the container may write it
		return fmt.Errorf("make termination message: %w", err)
	}
	l.Mounts = append(l.Mounts, &runtimeapi.Mount{ContainerPath: spec.TerminationMessagePath, HostPath: l.MessageFile})
	return nil
}

// target returns the id of the container whose processes an ephemeral container wants to see.
func target(pod *corev1.Pod, spec *corev1.Container, sandbox cri.Sandbox, observed cri.Pod) (string, error) {
	for i := range pod.Spec.EphemeralContainers {
		e := &pod.Spec.EphemeralContainers[i]
		if e.Name != spec.Name || e.TargetContainerName == "" {
			continue
		}
		c, ok := observed.Active(e.TargetContainerName, sandbox.ID)
		if !ok || c.State != cri.StateRunning {
			return "", fmt.Errorf("unable to find target container %s", e.TargetContainerName)
		}
		return c.ID, nil
	}
	return "", nil
}

// killContainer ends a container: its pre-stop hook first, then the runtime's stop signal, then,
// when the grace period is over, SIGKILL.
func (w *worker) killContainer(ctx context.Context, pod *corev1.Pod, observed cri.Pod, k plan.Kill) error {
	deadline := time.Now().Add(k.Grace)
	w.eventf(pod, k.Name, corev1.EventTypeNormal, "Killing", "%s", k.Message)
	spec := podspec.Container(pod, k.Name)
	if !k.Now && spec != nil && spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil {
		sandbox, _ := observed.Sandbox()
		hookCtx, cancel := context.WithDeadline(ctx, deadline)
		err := w.hook(hookCtx, pod, spec, spec.Lifecycle.PreStop, k.ID, sandbox.IPs)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			w.eventf(pod, k.Name, corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
			w.m.Log.Info("pre-stop hook failed", "pod", podspec.FullName(pod), "container", k.Name, "err", err)
		}
	}
	timeout := int64(0)
	if !k.Now {
		rest := max(time.Until(deadline), plan.MinimumGrace)
		timeout = int64((rest + time.Second/2) / time.Second)
	}
	_, err := w.m.Runtime.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: k.ID, Timeout: timeout})
	if err != nil && !cri.NotFound(err) {
		if ctx.Err() == nil {
			w.eventf(pod, k.Name, corev1.EventTypeWarning, "FailedKillPod", "error killing pod: %s", strings.TrimSpace(err.Error()))
		}
		return fmt.Errorf("stop container %s of pod %s: %w", k.Name, podspec.FullName(pod), err)
	}
	return nil
}
