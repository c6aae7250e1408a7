package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
)

// group makes the name of a group of this test alone and has it removed in the end.
func group(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("/barque-test-%d-%s", os.Getpid(), strings.ToLower(t.Name()))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := errors.Join(Kill(ctx, name), Remove(ctx, name)); err != nil {
			t.Error(err)
		}
	})
	return name
}

// sleeper starts a process that lives as long as the test, at most.
func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sleep", "300")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd
}

// read reads one of a group's files, in the v1 hierarchy given or in v2.
func read(t *testing.T, hierarchy, name, file string) string {
	t.Helper()
	dir := filepath.Join("/sys/fs/cgroup", hierarchy, name)
	if V2() {
		dir = filepath.Join("/sys/fs/cgroup", name)
	}
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func TestLimits(t *testing.T) {
	name := group(t)
	r := Resources{CPUShares: 512, CPUQuota: 50_000, Memory: 64 << 20, Pids: 100}
	if err := Create(name, r); err != nil {
		t.Fatal(err)
	}
	want := map[[2]string]string{
		{"cpu", "cpu.shares"}:               "512",
		{"cpu", "cpu.cfs_quota_us"}:         "50000",
		{"cpu", "cpu.cfs_period_us"}:        "100000",
		{"memory", "memory.limit_in_bytes"}: "67108864",
		{"pids", "pids.max"}:                "100",
	}
	if V2() {
		want = map[[2]string]string{
			{"", "cpu.weight"}: "59", {"", "cpu.max"}: "50000 100000",
			{"", "memory.max"}: "67108864", {"", "pids.max"}: "100",
		}
	}
	for at, value := range want {
		if got := read(t, at[0], name, at[1]); got != value {
			t.Errorf("%s is %q, want %q", at[1], got, value)
		}
	}

	if err := Update(name, Resources{Memory: Unlimited, Pids: Unlimited}); err != nil {
		t.Fatal(err)
	}
	if got := read(t, "pids", name, "pids.max"); got != "max" {
		t.Errorf("pids.max is %q after taking the limit away", got)
	}
	usage, err := Usage(name)
	if err != nil {
		t.Fatal(err)
	}
	if usage.MemoryLimit != math.MaxUint64 {
		t.Errorf("memory limit is %d after taking it away", usage.MemoryLimit)
	}
}

func TestKillAndRemove(t *testing.T) {
	name := group(t)
	inner := Pod(name, Burstable, "1234")
	if err := Create(inner, Resources{}); err != nil {
		t.Fatal(err)
	}
	cmd := sleeper(t)
	if err := Add(inner, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	pids, err := Pids(name)
	if err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Fatalf("processes %v, %v; want %d alone", pids, err, cmd.Process.Pid)
	}
	usage, err := Usage(inner)
	if err != nil {
		t.Fatal(err)
	}
	if usage.Pids != 1 || usage.MemoryLimit != math.MaxUint64 {
		t.Errorf("usage %+v, want one process and no limit", usage)
	}

	// A group with a process in it cannot be removed.
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := Remove(short, name); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("removing a group in use: %v", err)
	}

	reaped := make(chan error, 1)
	go func() { reaped <- cmd.Wait() }()
	if err := Kill(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if err := <-reaped; err == nil {
		t.Error("the process ended by itself")
	}
	if err := Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	dirs, err := directories(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v; want it gone", dir, err)
		}
	}
}

func TestMissing(t *testing.T) {
	name := group(t)
	if ok, err := Exists(name); ok || err != nil {
		t.Errorf("Exists: %v, %v", ok, err)
	}
	if err := Update(name, Resources{Memory: 1 << 30}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Update: %v", err)
	}
	if _, err := Usage(name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Usage: %v", err)
	}
	if err := Remove(t.Context(), name); err != nil {
		t.Errorf("Remove: %v", err)
	}
}

func TestPaths(t *testing.T) {
	for _, bad := range []string{"", "/", "a", "/a/../b", "/a/", "//a"} {
		if err := Create(bad, Resources{}); err == nil {
			t.Errorf("Create(%q) succeeded", bad)
		}
	}
	for _, c := range []struct{ got, want string }{
		{Pod("/", Guaranteed, "u"), "/kubepods/podu"},
		{Pod("", BestEffort, "u"), "/kubepods/besteffort/podu"},
		{Pod("/barque/m1", Burstable, "u"), "/barque/m1/kubepods/burstable/podu"},
		{Class("/barque/m1", Guaranteed), PodsRoot("/barque/m1")},
	} {
		if c.got != c.want {
			t.Errorf("got %s, want %s", c.got, c.want)
		}
	}
}

func TestSummarize(t *testing.T) {
	s := cgroups.NewStats()
	s.MemoryStats.Usage.Usage = 100
	s.MemoryStats.Stats = map[string]uint64{
		"total_inactive_file": 30, "inactive_file": 40, "total_rss": 5, "anon": 6,
	}
	if got := summarize(s, false); got.WorkingSet != 70 || got.RSS != 5 {
		t.Errorf("v1: %+v", got)
	}
	if got := summarize(s, true); got.WorkingSet != 60 || got.RSS != 6 {
		t.Errorf("v2: %+v", got)
	}
	s.MemoryStats.Stats["inactive_file"] = 200
	if got := summarize(s, true); got.WorkingSet != 0 {
		t.Errorf("more inactive than used: %+v", got)
	}
}
