package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Init containers run one after the other, sidecars stay beside what follows and end last.
func TestInitAndSidecarContainers(t *testing.T) {
	s := newScene(t)
	s.pod("order", `
restartPolicy: Never
volumes: [{name: v, emptyDir: {}}]
initContainers:
- name: first
  command: [sh, -c, "echo first >> /v/log"]
  volumeMounts: [{name: v, mountPath: /v}]
- name: sidecar
  restartPolicy: Always
  command: [sh, -c, "sleep 1; echo sidecar >> /v/log; touch /v/up; trap 'echo term; exit 0' TERM; while :; do sleep 0.1; done"]
  startupProbe: {exec: {command: [test, -f, /v/up]}, periodSeconds: 1, failureThreshold: 30}
  volumeMounts: [{name: v, mountPath: /v}]
- name: second
  command: [sh, -c, "echo second >> /v/log"]
  volumeMounts: [{name: v, mountPath: /v}]
containers:
- name: main
  command: [sh, -c, "echo main >> /v/log; cat /v/log"]
  volumeMounts: [{name: v, mountPath: /v}]
`)
	s.pod("broken", `
restartPolicy: Never
initContainers: [{name: init, command: [sh, -c, "exit 7"]}]
containers: [{name: main, command: ["true"]}]
`)
	pod := s.until("order", "ends", podEnded)
	same(t, "phase", pod.Status.Phase, corev1.PodSucceeded)
	same(t, "order", s.logs("order", "main"), "first\nsidecar\nsecond\nmain\n")
	side, main := statusOf(pod, "sidecar").State.Terminated, statusOf(pod, "main").State.Terminated
	if side == nil || main == nil || side.FinishedAt.Before(&main.FinishedAt) {
		t.Errorf("the sidecar ended %v, the main container %v", side, main)
	}
	same(t, "the sidecar's log", s.logs("order", "sidecar"), "term\n")

	pod = s.until("broken", "ends", podEnded)
	same(t, "phase of the broken one", pod.Status.Phase, corev1.PodFailed)
	if st := statusOf(pod, "init").State.Terminated; st == nil || st.ExitCode != 7 {
		t.Errorf("init container: %+v", st)
	}
	if st := statusOf(pod, "main").State.Waiting; st == nil || st.Reason != "PodInitializing" {
		t.Errorf("main container: %+v", statusOf(pod, "main").State)
	}
}

// Every source of a container's environment, and what commands and arguments make of it.
func TestContainerEnvironment(t *testing.T) {
	s := newScene(t)
	s.pod("late", `
restartPolicy: Never
containers:
- name: c
  command: [sh, -c, "echo $KEY"]
  env: [{name: KEY, valueFrom: {configMapKeyRef: {name: late, key: k}}}]
`)
	shared.apply(t, strings.ReplaceAll(`
{apiVersion: v1, kind: ConfigMap, metadata: {name: conf, namespace: NS}, data: {key: from-conf, other: more}}
---
{apiVersion: v1, kind: Secret, metadata: {name: sec, namespace: NS}, stringData: {key: from-secret}}
`, "NS", s.ns))
	out := s.script("env", `
restartPolicy: Never
containers:
- name: c
  command: [sh, -c, 'env; for a in "$@"; do echo "arg=$a"; done', sh]
  args: ["$(PLAIN)", "$$(PLAIN)", "$(NOBODY)"]
  resources: {requests: {cpu: 100m, memory: 8Mi}, limits: {cpu: 1500m, memory: 32Mi}}
  envFrom:
  - {prefix: P_, configMapRef: {name: conf}}
  - {secretRef: {name: sec}}
  - {configMapRef: {name: nothing, optional: true}}
  env:
  - {name: PLAIN, value: plain}
  - {name: EXPANDED, value: "$(PLAIN)-$(KUBERNETES_SERVICE_PORT)-$$(PLAIN)"}
  - {name: CONF, valueFrom: {configMapKeyRef: {name: conf, key: key}}}
  - {name: SEC, valueFrom: {secretKeyRef: {name: sec, key: key}}}
  - {name: MISSING, valueFrom: {configMapKeyRef: {name: conf, key: nothing, optional: true}}}
  - {name: F_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
  - {name: F_NS, valueFrom: {fieldRef: {fieldPath: metadata.namespace}}}
  - {name: F_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
  - {name: F_LABEL, valueFrom: {fieldRef: {fieldPath: "metadata.labels['colour']"}}}
  - {name: F_NOTE, valueFrom: {fieldRef: {fieldPath: "metadata.annotations['note']"}}}
  - {name: F_NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
  - {name: F_SA, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
  - {name: F_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
  - {name: F_IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
  - {name: F_HOST, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
  - {name: R_CPU, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
  - {name: R_MILLI, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
  - {name: R_MEM, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
`, func(p *corev1.Pod) {
		p.Labels, p.Annotations = map[string]string{"colour": "blue"}, map[string]string{"note": "well"}
	})
	pod, err := s.client.CoreV1().Pods(s.ns).Get(t.Context(), "env", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]bool{}
	for _, l := range strings.Split(out, "\n") {
		lines[l] = true
	}
	for _, want := range []string{
		"PLAIN=plain", "EXPANDED=plain-443-$(PLAIN)", "CONF=from-conf", "SEC=from-secret", "P_key=from-conf", "P_other=more", "key=from-secret",
		"F_NAME=env", "F_NS=" + s.ns, "F_UID=" + string(pod.UID), "F_LABEL=blue", "F_NOTE=well", "F_NODE=" + pod.Spec.NodeName, "F_SA=default",
		"F_IP=" + pod.Status.PodIP, "F_IPS=" + pod.Status.PodIP, "F_HOST=" + pod.Status.HostIP, "R_CPU=2", "R_MILLI=100", "R_MEM=32",
		"KUBERNETES_SERVICE_HOST=10.43.0.1", "HOSTNAME=env", "arg=plain", "arg=$(PLAIN)", "arg=$(NOBODY)",
	} {
		if !lines[want] {
			t.Errorf("%q is missing", want)
		}
	}
	if strings.Contains(out, "MISSING") {
		t.Error("an optional key that does not exist is set")
	}
	if t.Failed() {
		t.Log(out)
	}

	// What is needed and not there yet keeps the container waiting, no longer than it is missing.
	s.until("late", "waits for its config map", waiting("c", "CreateContainerConfigError"))
	shared.apply(t, strings.ReplaceAll(`{apiVersion: v1, kind: ConfigMap, metadata: {name: late, namespace: NS}, data: {k: here}}`, "NS", s.ns))
	s.until("late", "ends", podEnded)
	same(t, "log", s.logs("late", "c"), "here\n")
}

// The three purposes of probes, each asked in all four ways.
func TestProbes(t *testing.T) {
	s := newScene(t)
	s.tool()
	probe := func(handler string) string {
		return "{" + handler + ", periodSeconds: PERIOD, timeoutSeconds: 5, failureThreshold: THRESHOLD}"
	}
	kinds := map[string]func(i int, purpose string) string{
		"exec": func(_ int, purpose string) string {
			return "exec: {command: [busybox, test, -f, /state/" + purpose + "]}"
		},
		"http": func(int, string) string { return "httpGet: {path: /PURPOSE, port: 8080}" },
		"tcp":  func(i int, _ string) string { return fmt.Sprintf("tcpSocket: {port: %d}", 8081+i) },
		"grpc": func(int, string) string { return "grpc: {port: 8084, service: PURPOSE}" },
	}
	for kind, handler := range kinds {
		spec := "volumes: [{name: state, emptyDir: {}}]\ncontainers:\n- name: c\n  image: " + toolImage +
			"\n  args: [serve, '8080', /state]\n  volumeMounts: [{name: state, mountPath: /state}]\n"
		for i, purpose := range []string{"startup", "readiness", "liveness"} {
			threshold := map[string]string{"startup": "60", "readiness": "1", "liveness": "1"}[purpose]
			// Of an object's events client-go drops all but 25 within minutes: what fails for long must not fail often.
			period := map[string]string{"startup": "3", "readiness": "3", "liveness": "1"}[purpose]
			spec += "  " + purpose + "Probe: " + strings.NewReplacer("PURPOSE", purpose, "PERIOD", period, "THRESHOLD", threshold).Replace(probe(handler(i, purpose))) + "\n"
		}
		s.pod(kind, spec)
	}
	file := func(do, purpose string) {
		for kind := range kinds {
			s.run(kind, "c", "busybox", do, "/state/"+purpose)
		}
	}
	all := func(what string, check func(corev1.ContainerStatus) bool) {
		t.Helper()
		for kind := range kinds {
			s.until(kind, what, func(pod *corev1.Pod) error {
				if !check(statusOf(pod, "c")) {
					return fmt.Errorf("not so")
				}
				return nil
			})
		}
	}
	started := func(c corev1.ContainerStatus) bool { return c.Started != nil && *c.Started }
	all("runs, not started", func(c corev1.ContainerStatus) bool { return c.State.Running != nil && !started(c) && !c.Ready })
	for kind := range kinds {
		s.event(kind, "Unhealthy", "Startup probe failed")
	}
	file("touch", "liveness")
	file("touch", "startup")
	all("started, not ready", func(c corev1.ContainerStatus) bool { return started(c) && !c.Ready && c.RestartCount == 0 })
	file("touch", "readiness")
	all("ready", func(c corev1.ContainerStatus) bool { return started(c) && c.Ready && c.RestartCount == 0 })
	file("rm", "readiness")
	all("not ready any more", func(c corev1.ContainerStatus) bool { return !c.Ready && c.RestartCount == 0 })
	file("rm", "liveness")
	all("restarted", func(c corev1.ContainerStatus) bool { return c.RestartCount > 0 })
	for kind := range kinds {
		s.event(kind, "Unhealthy", "Liveness probe failed")
		s.event(kind, "Killing", "failed liveness probe, will be restarted")
	}
}

// hostDir makes a folder on the machines (which share this one's files) for pods to write into.
func hostDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// Hooks run after a container's start and before its end.
func TestLifecycleHooks(t *testing.T) {
	s := newScene(t)
	dir := hostDir(t)
	withDir := func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "out", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}}}}
		p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "out", MountPath: "/out"}}
	}
	const loop = `trap "echo term >> /out/$HOSTNAME; exit 0" TERM; while :; do sleep 0.1; done`
	s.pod("exec", `
terminationGracePeriodSeconds: 20
containers:
- name: c
  command: [sh, -c, '`+loop+`']
  lifecycle:
    postStart: {exec: {command: [sh, -c, "echo start >> /out/$HOSTNAME"]}}
    preStop: {exec: {command: [sh, -c, "echo stop >> /out/$HOSTNAME"]}}
`, withDir)
	s.pod("http", `
terminationGracePeriodSeconds: 20
containers:
- name: c
  command: [sh, -c, 'mkdir -p /tmp/cgi-bin; printf "#!/bin/sh\necho stop >> /out/http\necho; echo\n" > /tmp/cgi-bin/stop; chmod +x /tmp/cgi-bin/stop; httpd -p 8080 -h /tmp; `+loop+`']
  ports: [{name: web, containerPort: 8080}]
  readinessProbe: {tcpSocket: {port: web}, periodSeconds: 1}
  lifecycle: {preStop: {httpGet: {path: /cgi-bin/stop, port: web}}}
`, withDir)
	s.pod("nap", `
terminationGracePeriodSeconds: 20
containers:
- name: c
  command: [sh, -c, '`+loop+`']
  lifecycle: {preStop: {sleep: {seconds: 3}}}
`, withDir)
	s.pod("fails", `
restartPolicy: Never
containers: [{name: c, command: [sleep, "1000"], lifecycle: {postStart: {exec: {command: ["false"]}}}}]
`)
	for _, name := range []string{"exec", "http", "nap"} {
		s.until(name, "ready", podReady)
		begin := time.Now()
		if err := s.client.CoreV1().Pods(s.ns).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		s.gone(name)
		if took := time.Since(begin); name == "nap" && took < 3*time.Second {
			t.Errorf("a hook's sleep of 3 s took %v", took)
		}
	}
	same(t, "exec hooks", readFile(t, filepath.Join(dir, "exec")), "start\nstop\nterm\n")
	same(t, "HTTP hook", readFile(t, filepath.Join(dir, "http")), "stop\nterm\n")
	same(t, "sleep hook", readFile(t, filepath.Join(dir, "nap")), "term\n")
	s.until("fails", "ends", podEnded)
	s.event("fails", "FailedPostStartHook", "")
}

// gone waits until a pod's object is gone.
func (s *scene) gone(name string) {
	s.Helper()
	eventually(s, patience, "pod "+name+" is gone", func() error {
		pod, err := s.client.CoreV1().Pods(s.ns).Get(s.Context(), name, metav1.GetOptions{})
		if err == nil {
			return fmt.Errorf("it is there: %s", describe(pod))
		}
		return ignoreNotFound(err)
	})
}

// A pod that is deleted gets SIGTERM, has its grace, and then SIGKILL. A finalizer keeps the object
// so that the end can be read.
func TestGracefulTermination(t *testing.T) {
	s := newScene(t)
	keep := func(p *corev1.Pod) { p.Finalizers = []string{"barque.dev/test"} }
	s.pod("polite", `
terminationGracePeriodSeconds: 30
containers: [{name: c, command: [sh, -c, 'trap "echo bye; exit 3" TERM; echo up; while :; do sleep 0.1; done']}]
`, keep)
	s.pod("stubborn", `
terminationGracePeriodSeconds: 2
containers: [{name: c, command: [sh, -c, 'trap "" TERM; echo up; while :; do sleep 0.1; done']}]
`, keep)
	for name, exit := range map[string]int32{"polite": 3, "stubborn": 137} {
		s.until(name, "runs", podReady)
		eventually(t, patience, "its trap is set", func() error {
			if s.logs(name, "c") != "up\n" {
				return fmt.Errorf("no output yet")
			}
			return nil
		})
		begin := time.Now()
		if err := s.client.CoreV1().Pods(s.ns).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		pod := s.until(name, "ends", podEnded)
		took := time.Since(begin)
		if st := statusOf(pod, "c").State.Terminated; st == nil || st.ExitCode != exit {
			t.Errorf("%s: %s", name, describe(pod))
		}
		same(t, "phase of "+name, pod.Status.Phase, corev1.PodFailed)
		if name == "stubborn" && took < 2*time.Second || took > 15*time.Second {
			t.Errorf("%s took %v", name, took)
		}
		_, err := s.client.CoreV1().Pods(s.ns).Patch(t.Context(), name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
		if err != nil {
			t.Fatal(err)
		}
		s.gone(name)
	}
}

// What containers leave behind: exit codes, messages, restarts and back-off.
func TestRestartPolicies(t *testing.T) {
	s := newScene(t)
	s.pod("always", `containers: [{name: c, command: [sh, -c, "exit 3"]}]`)
	s.pod("onfailure", `
restartPolicy: OnFailure
volumes: [{name: v, emptyDir: {}}]
containers:
- {name: c, command: [sh, -c, "test -f /v/f && exit 0; touch /v/f; exit 1"], volumeMounts: [{name: v, mountPath: /v}]}
`)
	s.pod("never", `
restartPolicy: Never
containers:
- {name: a, command: [sh, -c, "printf reason > /dev/termination-log; exit 5"]}
- {name: b, command: [sh, -c, "echo one; echo two; exit 1"], terminationMessagePolicy: FallbackToLogsOnError}
- {name: c, command: [sh, -c, "printf other > /tmp/msg"], terminationMessagePath: /tmp/msg}
`)
	s.pod("deadline", `
activeDeadlineSeconds: 2
containers: [{name: c, command: [sleep, "1000"]}]
`)
	pod := s.until("always", "backs off", waiting("c", "CrashLoopBackOff"))
	c := statusOf(pod, "c")
	if c.RestartCount == 0 || c.LastTerminationState.Terminated == nil || c.LastTerminationState.Terminated.ExitCode != 3 {
		t.Errorf("after its end: %s", describe(pod))
	}
	if w := c.State.Waiting; !strings.Contains(w.Message, "back-off 10s restarting failed container=c pod=always_"+s.ns) {
		t.Errorf("message: %q", w.Message)
	}
	same(t, "phase of the crashing pod", pod.Status.Phase, corev1.PodRunning)
	s.event("always", "BackOff", "Back-off restarting failed container c in pod always_"+s.ns)

	pod = s.until("onfailure", "ends", podEnded)
	same(t, "phase of OnFailure", pod.Status.Phase, corev1.PodSucceeded)
	same(t, "restarts of OnFailure", statusOf(pod, "c").RestartCount, 1)

	pod = s.until("never", "ends", podEnded)
	same(t, "phase of Never", pod.Status.Phase, corev1.PodFailed)
	for name, want := range map[string]string{"a": "5 reason", "b": "1 one\ntwo\n", "c": "0 other"} {
		if st := statusOf(pod, name).State.Terminated; st == nil || fmt.Sprint(st.ExitCode, " ", st.Message) != want {
			t.Errorf("container %s: %+v, want %q", name, st, want)
		}
	}
	pod = s.until("deadline", "ends", podEnded)
	same(t, "deadline", string(pod.Status.Phase)+" "+pod.Status.Reason, "Failed DeadlineExceeded")
}

// Where an image comes from, and what is said when it does not.
func TestImagePullPolicy(t *testing.T) {
	s := newScene(t)
	s.pod("never", `containers: [{name: c, image: "barque.dev/test/none:1", imagePullPolicy: Never}]`)
	// Nothing listens there, and that is known at once.
	s.pod("missing", `containers: [{name: c, image: "127.0.0.1:1/none:1"}]`)
	s.pod("invalid", `containers: [{name: c, image: "No/Such:Name:1"}]`)
	s.pod("present", `containers: [{name: c, command: [sleep, "1000"], imagePullPolicy: IfNotPresent}]`)
	pod := s.until("never", "says so", waiting("c", "ErrImageNeverPull"))
	if m := statusOf(pod, "c").State.Waiting.Message; !strings.Contains(m, `Container image "barque.dev/test/none:1" is not present with pull policy of Never`) {
		t.Errorf("Never: %q", m)
	}
	pod = s.until("missing", "backs off", waiting("c", "ImagePullBackOff"))
	if m := statusOf(pod, "c").State.Waiting.Message; !strings.Contains(m, `Back-off pulling image "127.0.0.1:1/none:1"`) {
		t.Errorf("back-off: %q", m)
	}
	s.event("missing", "Pulling", `Pulling image "127.0.0.1:1/none:1"`)
	s.event("missing", "Failed", `Failed to pull image "127.0.0.1:1/none:1"`)
	s.event("missing", "Failed", "Error: ErrImagePull")
	s.event("missing", "BackOff", `Back-off pulling image "127.0.0.1:1/none:1"`)
	s.until("invalid", "says so", waiting("c", "InvalidImageName"))
	s.until("present", "runs", podReady)
	s.event("present", "Pulled", fmt.Sprintf("Container image %q already present on machine", busyboxImage))
	s.event("present", "Created", "")
	s.event("present", "Started", "")
}

// A container that is added to a running pod sees the processes of the one it targets.
func TestEphemeralContainer(t *testing.T) {
	s := newScene(t)
	s.pod("p", `containers: [{name: c, command: [sleep, "54321"]}]`)
	pod := s.until("p", "runs", podReady)
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{TargetContainerName: "c", EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		Name: "look", Image: busyboxImage, Command: []string{"sh", "-c", "ps; echo done"}, TerminationMessagePolicy: corev1.TerminationMessageReadFile}}}
	if _, err := s.client.CoreV1().Pods(s.ns).UpdateEphemeralContainers(t.Context(), "p", pod, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.until("p", "the ephemeral container ends", func(p *corev1.Pod) error {
		if statusOf(p, "look").State.Terminated == nil {
			return fmt.Errorf("it has not: %+v", statusOf(p, "look").State)
		}
		return podReady(p)
	})
	if out := s.logs("p", "look"); !strings.Contains(out, "sleep 54321") {
		t.Errorf("it sees %s", out)
	}
}
