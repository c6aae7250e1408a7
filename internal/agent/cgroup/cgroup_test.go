package cgroup_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"barque.dev/internal/agent/cgroup"
	"barque.dev/internal/agent/podspec"
	runtimecgroup "barque.dev/internal/runtime/cgroup"
)

func pod(uid, cpuRequest, cpuLimit, memory string) *corev1.Pod {
	p := &corev1.Pod{}
	p.UID = types.UID(uid)
	r := corev1.ResourceRequirements{Requests: corev1.ResourceList{}, Limits: corev1.ResourceList{}}
	if cpuRequest != "" {
		r.Requests[corev1.ResourceCPU] = resource.MustParse(cpuRequest)
	}
	if cpuLimit != "" {
		r.Limits[corev1.ResourceCPU] = resource.MustParse(cpuLimit)
	}
	if memory != "" {
		r.Limits[corev1.ResourceMemory], r.Requests[corev1.ResourceMemory] = resource.MustParse(memory), resource.MustParse(memory)
	}
	p.Spec.Containers = []corev1.Container{{Name: "c", Resources: r}}
	return p
}

func TestTree(t *testing.T) {
	root := fmt.Sprintf("/barque-test-tree-%d", os.Getpid())
	t.Cleanup(func() {
		if err := runtimecgroup.Remove(context.Background(), root); err != nil {
			t.Error(err)
		}
	})
	tree := cgroup.New(root)
	if err := tree.Init(); err != nil {
		t.Fatal(err)
	}
	pods := map[string]*corev1.Pod{
		"/kubepods/podg":            pod("g", "100m", "100m", "64Mi"),
		"/kubepods/burstable/podb":  pod("b", "250m", "", ""),
		"/kubepods/besteffort/pode": pod("e", "", "", ""),
	}
	for path, p := range pods {
		if got := tree.PodPath(p); got != root+path {
			t.Errorf("path %s, want %s", got, root+path)
		}
		if err := tree.Ensure(p); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.Share([]*corev1.Pod{pods["/kubepods/burstable/podb"]}); err != nil {
		t.Fatal(err)
	}
	if s, err := runtimecgroup.Usage(root + "/kubepods/podg"); err != nil || s.MemoryLimit != 64<<20 {
		t.Errorf("memory limit %d, %v", s.MemoryLimit, err)
	}
	for _, want := range []podspec.Limits{{Shares: 2, Quota: 5000, Memory: 32 << 20}, {Shares: 204, Quota: 20_000, Memory: 128 << 20}, {Shares: 2}} {
		if err := tree.Resize(pods["/kubepods/podg"], want); err != nil {
			t.Fatal(err)
		}
		memory := uint64(want.Memory)
		if memory == 0 {
			memory = math.MaxUint64
		}
		if s, err := runtimecgroup.Usage(root + "/kubepods/podg"); err != nil || s.MemoryLimit != memory {
			t.Errorf("memory limit %d, want %d; %v", s.MemoryLimit, memory, err)
		}
	}
	uids, err := tree.Pods()
	slices.Sort(uids)
	if err != nil || !slices.Equal(uids, []types.UID{"b", "e", "g"}) {
		t.Errorf("pods %v, %v", uids, err)
	}
	// A process that the runtime lost track of does not keep the group from being removed.
	lost := exec.Command("sleep", "1000")
	lost.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := lost.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = lost.Wait() }() // it ends by the signal
	if err := runtimecgroup.Add(root+"/kubepods/burstable/podb", lost.Process.Pid); err != nil {
		t.Fatal(err)
	}
	for _, uid := range uids {
		if err := tree.Remove(uid); err != nil {
			t.Error(err)
		}
	}
	if uids, err := tree.Pods(); err != nil || len(uids) != 0 {
		t.Errorf("pods after removal %v, %v", uids, err)
	}
}

func TestLimits(t *testing.T) {
	for _, tt := range []struct {
		pod           *corev1.Pod
		shares        uint64
		quota, memory int64
	}{
		{pod("x", "", "", ""), 2, 0, 0},
		{pod("x", "500m", "", "1Mi"), 512, 0, 1 << 20},
		{pod("x", "1", "2", ""), 1024, 200_000, 0},
	} {
		got := cgroup.Limits(tt.pod)
		if got.CPUShares != tt.shares || got.CPUQuota != tt.quota || got.Memory != tt.memory {
			t.Errorf("%+v, want %+v", got, tt)
		}
	}
	two := pod("x", "1", "2", "1Mi")
	two.Spec.Containers = append(two.Spec.Containers, corev1.Container{Name: "unlimited"})
	if got := cgroup.Limits(two); got.CPUQuota != 0 || got.Memory != 0 {
		t.Errorf("one container has no limit, yet the pod has: %+v", got)
	}
}
