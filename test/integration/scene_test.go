package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"sigs.k8s.io/yaml"

	"barque.dev/internal/runtime/images"
)

// toolImage has busybox's place taken by a program of ours: see the folder tool.
const toolImage = "barque.dev/test/tool:1"

// patience is how long tests wait for what takes a healthy cluster a few seconds.
const patience = 2 * time.Minute

// scene is one test's namespace in the shared cluster, and what tests do there.
type scene struct {
	*testing.T
	ns     string
	client kubernetes.Interface
}

// newScene makes the test's namespace and lets the test run beside others.
func newScene(t *testing.T) *scene {
	t.Helper()
	t.Parallel()
	return &scene{T: t, ns: shared.namespace(t), client: shared.client(t)}
}

// decode reads YAML strictly into obj.
func (s *scene) decode(manifest string, obj any) {
	s.Helper()
	if err := yaml.UnmarshalStrict([]byte(manifest), obj); err != nil {
		s.Fatalf("manifest: %v\n%s", err, manifest)
	}
}

// pod creates a pod from its spec in YAML. Unless the spec says otherwise it ends within a second
// of its deletion, so that tests end soon.
func (s *scene) pod(name, spec string, change ...func(*corev1.Pod)) *corev1.Pod {
	s.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}}
	s.decode(spec, &pod.Spec)
	s.complete(&pod.Spec)
	for _, f := range change {
		f(pod)
	}
	out, err := s.client.CoreV1().Pods(s.ns).Create(s.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		s.Fatalf("create pod %s: %v", name, err)
	}
	return out
}

// complete fills in what most pods of the tests have in common.
func (s *scene) complete(spec *corev1.PodSpec) {
	if spec.TerminationGracePeriodSeconds == nil {
		spec.TerminationGracePeriodSeconds = new(int64)
		*spec.TerminationGracePeriodSeconds = 1
	}
	for _, list := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			if list[i].Image == "" {
				list[i].Image = busyboxImage
			}
		}
	}
}

// until waits until a pod is as check wants it, and returns it.
func (s *scene) until(name, what string, check func(*corev1.Pod) error) *corev1.Pod {
	s.Helper()
	var pod *corev1.Pod
	eventually(s, patience, "pod "+name+": "+what, func() (err error) {
		if pod, err = s.client.CoreV1().Pods(s.ns).Get(s.Context(), name, metav1.GetOptions{}); err != nil {
			return err
		}
		if err := check(pod); err != nil {
			return fmt.Errorf("%w; %s", err, describe(pod))
		}
		return nil
	})
	return pod
}

// describe is a pod's status in a line, for a failure's message.
func describe(pod *corev1.Pod) string {
	var b strings.Builder
	fmt.Fprintf(&b, "phase %s %s %s on %q", pod.Status.Phase, pod.Status.Reason, pod.Status.Message, pod.Spec.NodeName)
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, c := range list {
			fmt.Fprintf(&b, "; %s: ready %v restarts %d", c.Name, c.Ready, c.RestartCount)
			for _, st := range []corev1.ContainerState{c.State, c.LastTerminationState} {
				switch {
				case st.Waiting != nil:
					fmt.Fprintf(&b, " waiting %s %s", st.Waiting.Reason, st.Waiting.Message)
				case st.Terminated != nil:
					fmt.Fprintf(&b, " terminated %s %d %s", st.Terminated.Reason, st.Terminated.ExitCode, st.Terminated.Message)
				}
			}
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			fmt.Fprintf(&b, "; %s=%s %s %s", c.Type, c.Status, c.Reason, c.Message)
		}
	}
	return b.String()
}

func podReady(pod *corev1.Pod) error {
	if c := podCondition(pod, corev1.PodReady); c == nil || c.Status != corev1.ConditionTrue {
		return fmt.Errorf("not ready")
	}
	return nil
}

func podEnded(pod *corev1.Pod) error {
	if pod.Status.Phase != corev1.PodSucceeded && pod.Status.Phase != corev1.PodFailed {
		return fmt.Errorf("not ended")
	}
	return nil
}

func podCondition(pod *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == kind {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// waiting wants a container to wait for a reason.
func waiting(container, reason string) func(*corev1.Pod) error {
	return func(pod *corev1.Pod) error {
		if st := statusOf(pod, container); st.State.Waiting == nil || st.State.Waiting.Reason != reason {
			return fmt.Errorf("container %s does not wait for %s", container, reason)
		}
		return nil
	}
}

// statusOf is the status of a container of any kind; empty while there is none.
func statusOf(pod *corev1.Pod, container string) corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{
		pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses, pod.Status.EphemeralContainerStatuses} {
		for _, c := range list {
			if c.Name == container {
				return c
			}
		}
	}
	return corev1.ContainerStatus{}
}

// script runs a shell script in a new pod to its end and returns what it printed.
func (s *scene) script(name, spec string, change ...func(*corev1.Pod)) string {
	s.Helper()
	s.pod(name, spec, append(change, func(p *corev1.Pod) { p.Spec.RestartPolicy = corev1.RestartPolicyNever })...)
	pod := s.until(name, "ends", podEnded)
	out := s.logs(name, pod.Spec.Containers[0].Name)
	if pod.Status.Phase != corev1.PodSucceeded {
		s.Fatalf("pod %s failed: %s\n%s", name, describe(pod), out)
	}
	return out
}

func (s *scene) logs(pod, container string) string {
	s.Helper()
	out, err := s.client.CoreV1().Pods(s.ns).GetLogs(pod, &corev1.PodLogOptions{Container: container}).DoRaw(s.Context())
	if err != nil {
		s.Fatalf("logs of %s %s: %v", pod, container, err)
	}
	return string(out)
}

// exec runs a command in a container and returns what it prints.
func (s *scene) exec(pod, container string, command ...string) (string, error) {
	s.Helper()
	config, err := shared.Config()
	if err != nil {
		s.Fatal(err)
	}
	req := s.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(s.ns).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: container, Command: command, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(config, "GET", req.URL().String())
	if err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(s.Context(), 20*time.Second)
	defer cancel()
	var stdout, stderr bytes.Buffer // each is filled by a goroutine of its own
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &stdout, Stderr: &stderr})
	return stdout.String() + stderr.String(), err
}

// run is exec that must succeed; what it returns has no space around it.
func (s *scene) run(pod, container string, command ...string) string {
	s.Helper()
	out, err := s.exec(pod, container, command...)
	if err != nil {
		s.Fatalf("exec in %s %s: %v: %v\n%s", pod, container, command, err, out)
	}
	return strings.TrimSpace(out)
}

// event waits for an event of an object with a reason and a part of its message.
func (s *scene) event(object, reason, part string) {
	s.Helper()
	eventually(s, patience, fmt.Sprintf("event %s of %s with %q", reason, object, part), func() error {
		list, err := s.client.CoreV1().Events(s.ns).List(s.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + object})
		if err != nil {
			return err
		}
		var seen []string
		for _, e := range list.Items {
			if e.Reason == reason && strings.Contains(e.Message, part) {
				return nil
			}
			seen = append(seen, e.Reason+": "+e.Message)
		}
		return fmt.Errorf("there are %q", seen)
	})
}

// same reports a difference.
func same[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// buildTool builds the tests' program once and puts its image on every machine.
var buildTool = sync.OnceValue(func() error {
	dir, err := os.MkdirTemp("", "tool-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "tool")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", file, "./tool")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	var archive bytes.Buffer
	err = images.WriteArchive(&archive, images.Image{
		Names:  []string{toolImage},
		Layers: []images.Layer{{{Path: "bin/busybox", Mode: 0o755, Data: busybox}}, {{Path: "tool", Mode: 0o755, Data: data}}},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/tool"}, Env: []string{"PATH=/bin"}},
	})
	if err != nil {
		return err
	}
	return shared.importArchive(archive.Bytes())
})

// importArchive puts an archive's images on every machine.
func (c *cluster) importArchive(archive []byte) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, m := range c.Machines {
		if m.Left() {
			continue
		}
		socket, err := m.ContainerdSocket()
		if err != nil {
			return err
		}
		store, err := images.Open(socket)
		if err != nil {
			return err
		}
		_, err = store.Import(ctx, bytes.NewReader(archive))
		_ = store.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
	}
	return nil
}

// tool makes sure that the tool's image is there.
func (s *scene) tool() {
	s.Helper()
	if err := buildTool(); err != nil {
		s.Fatalf("build the tests' program: %v", err)
	}
}

// ignoreNotFound is nil when err says that there is no such object.
func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// apply applies a manifest in which NS stands for the namespace and BUSYBOX for the image.
func (s *scene) apply(manifest string) {
	s.Helper()
	shared.apply(s, strings.NewReplacer("NS", s.ns, "BUSYBOX", busyboxImage).Replace(manifest))
}
