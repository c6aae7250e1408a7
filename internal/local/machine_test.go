package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"barque.dev/internal/testkit"
)

// stat makes a process' stat file (proc_pid_stat(5)).
func stat(name, state string, threads int, start string) []byte {
	return fmt.Appendf(nil, "77 (%s) %s 1 77 75 0 -1 4194560 1 0 0 0 1 1 0 0 20 0 %d 0 %s 1 1 1\n", name, state, threads, start)
}

func TestParseStat(t *testing.T) {
	for name, tt := range map[string]struct {
		stat  []byte
		start string
		ended bool
	}{
		"it runs":               {stat("barque", "S", 9, "4711"), "4711", false},
		"its name misleads":     {stat("a) Z 1 (b", "R", 9, "4711"), "4711", false},
		"it ended":              {stat("barque", "Z", 1, "4711"), "", true},
		"it is being removed":   {stat("barque", "X", 1, "4711"), "", true},
		"its last thread ended": {stat("barque", "Z", 0, "4711"), "", true},
		// A thread other than the first executes a program.
		"it executes a program": {stat("barque", "Z", 2, "4711"), "4711", false},
		"it has many threads":   {stat("barque", "Z", 12, "4711"), "4711", false},
		"it is cut short":       {[]byte("77 (barque) S 1 77"), "", true},
		"it is empty":           {nil, "", true},
	} {
		found, err := parseStat(tt.stat)
		if found.start != tt.start || (err != nil) != tt.ended || !tt.ended && found.session != "75" {
			t.Errorf("%s: %+v, %v", name, found, err)
		}
	}
}

// alone is a cluster of one machine that runs a shell script in place of barque.
func alone(t *testing.T, script string) (*Cluster, Options) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "c")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := plan(dir, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.removeKernelObjects(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := c.connect(); err != nil {
		t.Fatal(err)
	}
	return c, scripted(t, dir, script)
}

// scripted runs a shell script in place of barque.
func scripted(t *testing.T, dir, script string) Options {
	t.Helper()
	program := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return Options{Dir: dir, Servers: 1, Program: program, Progress: func(string, ...any) {}, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

// A machine that was killed has ended when Kill returns: it can be started again at once, although
// what its process started lives on in its group, and had the process' command line until a moment ago.
func TestKillAndStart(t *testing.T) {
	c, o := alone(t, "sleep 1000")
	m, last := c.Machines[0], 0
	for range 10 {
		if err := c.start(t.Context(), o, m, ""); err != nil {
			t.Fatal(err)
		}
		if m.PID() == 0 || m.PID() == last {
			t.Fatalf("the process is %d, and was %d", m.PID(), last)
		}
		last = m.PID()
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		if m.Running() && m.PID() == last {
			t.Fatal("it was killed and runs")
		}
	}
}

// A machine whose whole group was killed can be started again: the kernel kills what is started into
// a group that was.
func TestStartAfterGroupKill(t *testing.T) {
	c, o := alone(t, "sleep 1000")
	m := c.Machines[0]
	for range 2 {
		if err := c.start(t.Context(), o, m, ""); err != nil {
			t.Fatal(err)
		}
		if err := testkit.Poll(10*time.Second, func() error {
			if len(processesIn(m.processGroup())) < 2 { // the shell and what it waits for
				return errors.New("the script does not run")
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := killCgroup(t.Context(), m.cgroup()); err != nil {
			t.Fatal(err)
		}
	}
}

// Processes that execute programs and start others all the time do not escape the kill of their group.
func TestGroupKillMissesNobody(t *testing.T) {
	c, o := alone(t, `sleep 0.01 & exec "$0" "$@"`)
	m := c.Machines[0]
	for range 10 {
		if err := c.start(t.Context(), o, m, ""); err != nil {
			t.Fatal(err)
		}
		if err := killCgroup(t.Context(), m.cgroup()); err != nil {
			t.Fatal(err)
		}
		if left := processesIn(m.processGroup()); len(left) > 0 {
			t.Fatalf("processes %v are left", left)
		}
	}
}

func TestLastWords(t *testing.T) {
	c := &Cluster{Dir: t.TempDir()}
	c.add(&Machine{Name: "m", Role: RoleServer})
	m := c.Machines[0]
	for name, tt := range map[string]struct{ log, want string }{
		"an error, then its end":  {"level=INFO msg=a\ntime=1 level=ERROR msg=b\ntime=2 level=INFO msg=c\n", "time=1 level=ERROR msg=b"},
		"the program's own":       {"time=1 level=ERROR msg=b\nbarque: no room\ntime=2 level=INFO msg=c\n", "no room"},
		"nothing but information": {"level=INFO msg=a\nlevel=INFO msg=b\n\n", "level=INFO msg=b"},
		"nothing":                 {"", ""},
	} {
		if err := os.WriteFile(m.LogFile(), []byte(tt.log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := m.lastWords(); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// A cluster whose first server does not start leaves nothing, and says what the server complained of.
func TestUpUndoesWhatFailed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	o := scripted(t, dir, "echo 'barque: the disk is full' >&2; echo bye; exit 1")
	c, err := Up(t.Context(), o)
	if err == nil || c != nil {
		t.Fatalf("it came up: %+v", c)
	}
	if !strings.Contains(err.Error(), ": the disk is full;") || !strings.Contains(err.Error(), "removed again") {
		t.Errorf("it says: %v", err)
	}
	gone(t, dir)
}

// So does one that is told to stop before its first server is ready.
func TestUpUndoesWhatTookTooLong(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "c")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if c, err := Up(ctx, scripted(t, dir, "sleep 1000")); err == nil || c != nil {
		t.Fatalf("it came up: %+v", c)
	}
	gone(t, dir)
}

// gone checks that nothing of a cluster is left.
func gone(t *testing.T, dir string) {
	t.Helper()
	c := &Cluster{Dir: dir, ID: clusterID(dir)}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory: %v", err)
	}
	if _, err := netlink.LinkByName(c.bridge()); err == nil {
		t.Error("the bridge is left")
	}
	if left, _ := filepath.Glob(filepath.Join(namespaceDir, "barque-"+c.ID+"-*")); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
	unified, _, err := cgroupMounts()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(unified, "barque", c.ID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the control group: %v", err)
	}
}
