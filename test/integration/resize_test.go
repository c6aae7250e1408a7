package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// A running container gets more CPU and memory, and then less than it had, and notices nothing of it
// but its limits.
func TestResizeInPlace(t *testing.T) {
	s := newScene(t)
	s.pod("web", `
containers:
- name: c
  command: [sh, -c, "sleep 100000"]
  resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 100m, memory: 32Mi}}
`)
	before := statusOf(s.until("web", "runs", podReady), "c")
	for _, want := range []struct {
		cpu, memory    string
		quota, maximum int
	}{
		{"200m", "64Mi", 20_000, 64 << 20},
		{"50m", "16Mi", 5_000, 16 << 20},
	} {
		amounts := fmt.Sprintf(`{"cpu": %q, "memory": %q}`, want.cpu, want.memory)
		patch := fmt.Sprintf(`{"spec": {"containers": [{"name": "c", "resources": {"requests": %s, "limits": %[1]s}}]}}`, amounts)
		resized, err := s.client.CoreV1().Pods(s.ns).Patch(t.Context(), "web", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "resize")
		if err != nil {
			t.Fatal(err)
		}
		pod := s.until("web", "is resized", func(p *corev1.Pod) error {
			if p.Status.ObservedGeneration < resized.Generation || podCondition(p, corev1.PodResizePending) != nil || podCondition(p, corev1.PodResizeInProgress) != nil {
				return errors.New("the resize is under way")
			}
			return podReady(p)
		})
		got := statusOf(pod, "c")
		same(t, "CPU by the status", got.Resources.Limits.Cpu().String(), want.cpu)
		same(t, "memory by the status", got.Resources.Limits.Memory().String(), want.memory)
		same(t, "memory allocated", got.AllocatedResources.Memory().String(), want.memory)
		same(t, "container", got.ContainerID, before.ContainerID)
		same(t, "class", pod.Status.QOSClass, corev1.PodQOSGuaranteed)
		quota := s.run("web", "c", "sh", "-c", "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || true")
		same(t, "quota in the container", strings.Fields(quota)[0], fmt.Sprint(want.quota))
		maximum := s.run("web", "c", "sh", "-c", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || true")
		same(t, "memory in the container", strings.TrimSpace(maximum), fmt.Sprint(want.maximum))
	}
	s.event("web", "ResizeCompleted", `"generation":3`)
}
