package agenttest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/runtime/images/imagetest"
)

func newPod(name string) *corev1.Pod {
	grace := int64(5)
	container := func(name, script string) corev1.Container {
		return corev1.Container{
			Name: name, Image: imagetest.Busybox, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sh", "-c", script},
			TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("50m")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("32Mi"), corev1.ResourceCPU: resource.MustParse("500m")},
			},
			VolumeMounts: []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}},
		}
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: "0b6b0b4e-2f0e-4d4e-9f55-4f7f5f9d5f01"}}
	p.Spec = corev1.PodSpec{
		NodeName: nodeName, HostNetwork: true, RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace, DNSPolicy: corev1.DNSDefault,
		Containers: []corev1.Container{
			container("writer", "trap 'exit 0' TERM; echo hello from $NAME; echo shared > /shared/file; while true; do sleep 0.2; done"),
			container("reader", "trap 'exit 0' TERM; while true; do sleep 0.2; done"),
		},
		Volumes: []corev1.Volume{
			{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
			{Name: "settings", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}},
		},
	}
	p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}
	p.Spec.Containers[1].VolumeMounts = append(p.Spec.Containers[1].VolumeMounts, corev1.VolumeMount{Name: "settings", MountPath: "/settings"})
	p.Spec.Containers[1].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-f", "/shared/file"}}}, PeriodSeconds: 1, TimeoutSeconds: 5, FailureThreshold: 1, SuccessThreshold: 1}
	return p
}

func TestPodLife(t *testing.T) {
	m := newMachine(t)
	settings := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings", Namespace: "default", ResourceVersion: "1"}, Data: map[string]string{"color": "blue"}}
	if _, err := m.client.CoreV1().ConfigMaps("default").Create(t.Context(), settings, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	stop := m.start()
	began := time.Now()
	if _, err := m.client.CoreV1().Pods("default").Create(t.Context(), newPod("web"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	m.eventually("ready", func() bool { return m.ready("web") })
	t.Logf("pod with two containers ready after %s", time.Since(began))

	if got := m.get("/containerLogs/default/web/writer"); got != "hello from web\n" {
		t.Errorf("log: %q", got)
	}
	if got := m.exec("web", "reader", "", "cat", "/shared/file", "/settings/color"); got != "shared\nblue" {
		t.Errorf("exec: %q", got)
	}
	if got := m.exec("web", "reader", "through stdin", "cat"); got != "through stdin" {
		t.Errorf("exec with stdin: %q", got)
	}
	if got := m.get("/stats/summary"); !strings.Contains(got, `"name":"writer"`) {
		t.Errorf("summary: %s", got)
	}
	if got := m.get("/metrics/resource"); !strings.Contains(got, `container_memory_working_set_bytes{container="writer",namespace="default",pod="web"}`) {
		t.Errorf("resource metrics: %s", got)
	}
	if got := m.get("/metrics/cadvisor"); !strings.Contains(got, `container_memory_usage_bytes{container="writer",id="`) || !strings.Contains(got, "container_scrape_error 0") {
		t.Errorf("container metrics: %s", got)
	}
	if got := m.get("/metrics"); !strings.Contains(got, "kubelet_running_pods 1\n") || !strings.Contains(got, `kubelet_running_containers{container_state="running"} 2`) {
		t.Errorf("metrics: %s", got)
	}

	// The agent's restart touches nothing.
	id := m.pod("web").Status.ContainerStatuses[0].ContainerID
	stop()
	m.start()
	changed := settings.DeepCopy()
	changed.ResourceVersion, changed.Data["color"] = "2", "green"
	if _, err := m.client.CoreV1().ConfigMaps("default").Update(t.Context(), changed, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	m.eventually("new contents in the container", func() bool { return m.exec("web", "reader", "", "cat", "/settings/color") == "green" })
	if got := m.pod("web").Status.ContainerStatuses[0]; got.ContainerID != id || got.RestartCount != 0 {
		t.Errorf("after the agent's restart: %+v", got)
	}

	// A container that ends is started again, and its last words are kept.
	m.exec("web", "reader", "", "sh", "-c", "echo -n goodbye > /dev/termination-log; kill -TERM 1")
	m.eventually("restarted", func() bool {
		s := m.pod("web").Status.ContainerStatuses[0]
		return s.Name == "reader" && s.RestartCount == 1 && s.State.Running != nil && s.LastTerminationState.Terminated != nil
	})
	if last := m.pod("web").Status.ContainerStatuses[0].LastTerminationState.Terminated; last.Message != "goodbye" || last.ExitCode != 0 || last.Reason != "Completed" {
		t.Errorf("last termination: %+v", last)
	}

	p := m.pod("web")
	now, grace := metav1.Now(), int64(5)
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, &grace
	if _, err := m.client.CoreV1().Pods("default").Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	m.eventually("gone", func() bool { return m.pod("web") == nil })
	for _, left := range []string{filepath.Join(m.config.RootDir, "pods", string(p.UID)), filepath.Join(m.config.RootDir, "logs", "pods", "default_web_"+string(p.UID))} {
		if _, err := os.Stat(left); err == nil {
			t.Errorf("left behind: %s", left)
		}
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*" + m.config.CgroupRoot + "/kubepods/*/pod*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
