package integration

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Three servers and an agent are upgraded while somebody writes. Nothing is lost, and no container starts again. A program that
// does not run as a server is taken back on the first machine, and the others never see it.
func TestUpgrade(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", fmt.Sprintf("bqt-%d-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	// The machines' program is a copy, since it is replaced.
	programs := t.TempDir()
	c := &cluster{dir: dir, servers: 3, agents: 1, own: writeProgram(t, programs, "barque", data)}
	c.begin(t)
	c.kubectl(t, "create", "deployment", "web", "--image="+busyboxImage, "--replicas=4", "--", "sleep", "1000000")
	c.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
	before := c.containers(t)
	w := c.write(t, "default", "by-writer")
	w.goesOn(t)

	was, next := versions(t)
	upgraded := writeProgram(t, programs, "barque-next", bytes.ReplaceAll(data, []byte(was), []byte(next)))
	c.refuses(t, 1, "does not tell its version", "upgrade", "--program", writeProgram(t, programs, "other", []byte("#!/bin/sh\n")), "--kubeconfig", c.Kubeconfig())
	if code, out := c.tryBarque(t, "upgrade", "--program", upgraded, "--kubeconfig", c.Kubeconfig()); code != 0 || !strings.Contains(out, "the cluster is upgraded") {
		t.Fatalf("exit code %d", code)
	}
	_, status := c.tryBarque(t, "upgrade", "status", "--kubeconfig", c.Kubeconfig())
	if n := strings.Count(status, " done, to "+next); n != len(c.Machines) {
		t.Errorf("%d of %d machines were upgraded to %s", n, len(c.Machines), next)
	}
	w.goesOn(t)

	broken := fmt.Sprintf("#!/bin/sh\nif [ \"$1\" = version ]; then exec %s \"$@\"; fi\nexit 1\n", upgraded)
	c.refuses(t, 1, "it runs the program before again", "upgrade", "--program", writeProgram(t, programs, "broken", []byte(broken)), "--kubeconfig", c.Kubeconfig())
	c.members(t, c.Machines[:3]...)
	eventually(t, bound, "the machine that tried is there again", func() error {
		code, status := c.tryBarque(t, "upgrade", "status", "--kubeconfig", c.Kubeconfig())
		if code != 0 || strings.Count(status, "reverted from") != 1 {
			return errors.New(status)
		}
		return nil
	})
	if sum, err := os.ReadFile(c.own); err != nil || !bytes.Contains(sum[:4], []byte("ELF")) {
		t.Errorf("the program is not back in its place: %v", err)
	}
	w.goesOn(t)
	w.well(t, "upgrade of every machine", longestGap)
	if after := c.containers(t); after != before {
		t.Errorf("containers were\n%s\nand are\n%s", before, after)
	}
}

func writeProgram(t *testing.T, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// versions are the version of the program under test, and another one of the same length.
func versions(t *testing.T) (was, next string) {
	t.Helper()
	c := &cluster{}
	_, out := c.tryBarque(t, "version")
	was, _, _ = strings.Cut(strings.TrimPrefix(out, "barque "), "\n")
	last := byte('0')
	if was[len(was)-1] == last {
		last++
	}
	return was, was[:len(was)-1] + string(last)
}

// containers are those of the deployment, and when each was started.
func (c *cluster) containers(t *testing.T) string {
	t.Helper()
	pods, err := c.client(t).CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for i := range pods.Items {
		for _, s := range pods.Items[i].Status.ContainerStatuses {
			if s.State.Running == nil {
				t.Errorf("%s does not run: %+v", pods.Items[i].Name, s.State)
				continue
			}
			lines = append(lines, fmt.Sprintf("%s on %s %s restarts %d since %s", pods.Items[i].Name, pods.Items[i].Spec.NodeName, s.ContainerID, s.RestartCount, s.State.Running.StartedAt))
		}
	}
	return strings.Join(lines, "\n")
}
