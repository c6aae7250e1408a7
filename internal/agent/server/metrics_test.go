package server_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/metrics"
	"barque.dev/internal/agent/podspec"
)

// expect checks that each text begins a line of the answer; a text that begins with ! must not.
func (f *fixture) expect(path string, lines ...string) {
	f.Helper()
	code, body := f.get("metrics", "GET", path)
	if code != 200 {
		f.Fatalf("%s: %d %s", path, code, body)
	}
	for _, line := range lines {
		line, absent := strings.CutPrefix(line, "!")
		if strings.Contains("\n"+body, "\n"+line) == absent {
			f.Errorf("%s: %q, absent %t, in\n%s", path, line, absent, body)
		}
	}
}

func TestAgentMetrics(t *testing.T) {
	f := newFixture(t)
	f.pod.Spec.Volumes = []corev1.Volume{
		{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "disk"}}},
		{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}},
		{Name: "other", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	}
	f.metrics.PodStarted(2 * time.Second)
	f.metrics.PodStep(metrics.OperationCreate, time.Second)
	f.metrics.RuntimeCall("run pod sandbox", time.Second, nil)
	f.metrics.RuntimeCall("start container", time.Second, errors.New("no"))
	want := []string{
		`kubelet_node_name{node="node-1"} 1`, "kubelet_running_pods 1", `kubelet_running_containers{container_state="running"} 1`,
		"kubelet_pod_start_duration_seconds_sum 2", `kubelet_pod_worker_duration_seconds_count{operation_type="create"} 1`,
		`kubelet_runtime_operations_total{operation_type="run_podsandbox"} 1`, `kubelet_runtime_operations_errors_total{operation_type="start_container"} 1`,
		`!kubelet_runtime_operations_errors_total{operation_type="run_podsandbox"}`,
		`kubelet_volume_stats_capacity_bytes{namespace="default",persistentvolumeclaim="disk"} `,
		`kubelet_volume_stats_inodes_free{namespace="default",persistentvolumeclaim="web-scratch"} `,
		"go_goroutines ", "process_resident_memory_bytes ",
	}
	f.expect("/metrics", want...)
	f.expect("/metrics", want...)
	if f.lookups != 2 {
		t.Errorf("two volumes were looked for %d times", f.lookups)
	}
	f.runtime.Exit("a", 0)
	f.expect("/metrics", `kubelet_running_containers{container_state="exited"} 1`, `kubelet_running_containers{container_state="running"} 0`)
}

func TestContainerMetrics(t *testing.T) {
	f := newFixture(t)
	f.pod.Status.ContainerStatuses = append(f.pod.Status.ContainerStatuses, corev1.ContainerStatus{
		Name: "a", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Unix(1000, 0)}},
	})
	f.expect("/metrics/resource", "node_cpu_usage_seconds_total ", "node_memory_working_set_bytes 60 ", `container_cpu_usage_seconds_total{container="a",namespace="default",pod="web"} 2 `,
		`container_memory_working_set_bytes{container="a",namespace="default",pod="web"} 4096 `, `container_start_time_seconds{container="a",namespace="default",pod="web"} 1000`,
		`pod_cpu_usage_seconds_total{namespace="default",pod="web"} 2 `, `pod_memory_working_set_bytes{namespace="default",pod="web"} 4096 `, "resource_scrape_error 0")
	f.expect("/metrics/cadvisor", "machine_cpu_cores ", "machine_memory_bytes 100", "container_scrape_error 0", `container_cpu_usage_seconds_total{container="a",cpu="total",id="`, `container_memory_working_set_bytes{container="a",id="`,
		`container_network_receive_bytes_total{container="",id="`, `container_network_transmit_bytes_total{container="",id="`, "!container_network_receive_errors_total")
	f.runtime.Fail("ListPodSandboxStats", status.Error(codes.Unimplemented, "no"))
	f.expect("/metrics/cadvisor", "container_scrape_error 0", "!container_network")
	f.runtime.Fail("ListContainerStats", errors.New("down"))
	f.expect("/metrics/resource", "node_cpu_usage_seconds_total ", "!container_cpu_usage", "resource_scrape_error 1")
	f.expect("/metrics/cadvisor", "machine_cpu_cores ", "!container_cpu_usage", "container_scrape_error 1")
}

func TestProbeMetrics(t *testing.T) {
	f := newFixture(t)
	p := metrics.Probed{Kind: "Liveness", Container: "a", Pod: "web", Namespace: "default", UID: "u"}
	f.metrics.Probe(p, "successful", time.Second)
	f.metrics.Probe(p, "failed", time.Second)
	f.metrics.Probe(p, "failed", time.Second)
	f.expect("/metrics/probes", `prober_probe_total{container="a",namespace="default",pod="web",pod_uid="u",probe_type="Liveness",result="failed"} 2`,
		`prober_probe_duration_seconds_count{container="a",namespace="default",pod="web",probe_type="Liveness"} 3`)
	f.metrics.Forget("default", "web", "u")
	f.expect("/metrics/probes", "!prober_probe_total", "!prober_probe_duration")
}

// A container that was restarted counts once, with the numbers of the one that runs.
func TestRestartedContainerMetrics(t *testing.T) {
	f := newFixture(t)
	f.runtime.Exit("a", 1)
	sandboxes, err := f.runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		t.Fatal(err)
	}
	node := podspec.Node{LogRoot: t.TempDir()}
	sandbox, err := node.SandboxConfig(f.pod, 0, "/x")
	if err != nil {
		t.Fatal(err)
	}
	config, err := node.ContainerConfig(f.pod, &f.pod.Spec.Containers[0], podspec.Launch{ImageRef: "i", Attempt: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandboxes.GetItems()[0].GetId(), Config: config, SandboxConfig: sandbox}); err != nil {
		t.Fatal(err)
	}
	f.expect("/metrics/resource", "resource_scrape_error 0", `pod_cpu_usage_seconds_total{namespace="default",pod="web"} 2 `)
	if _, body := f.get("metrics", "GET", "/metrics/resource"); strings.Count(body, "\ncontainer_cpu_usage_seconds_total{") != 1 {
		t.Error(body)
	}
}
