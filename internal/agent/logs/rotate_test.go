package logs_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/cri/critest"
	"barque.dev/internal/agent/logs"
	"barque.dev/internal/agent/podspec"
)

// content returns what a log file holds, compressed or not.
func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(path, ".gz") {
		z, err := gzip.NewReader(bytes.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		if data, err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
	}
	return string(data)
}

// files lists the files of a log, the oldest first.
func files(t *testing.T, path string) []string {
	t.Helper()
	all, err := filepath.Glob(path + "*")
	if err != nil || len(all) == 0 {
		t.Fatalf("files of %s: %v, %v", path, all, err)
	}
	slices.Sort(all)
	return append(all[1:], all[0]) // the present one has the shortest name
}

// pods is a pod whose containers' logs a runtime in memory writes.
type pods struct {
	*testing.T
	*critest.Runtime
	node podspec.Node
	ids  map[string]string
}

func newPods(t *testing.T, containers ...string) *pods {
	t.Helper()
	p := &pods{T: t, Runtime: critest.New(), node: podspec.Node{LogRoot: t.TempDir()}, ids: map[string]string{}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", UID: "u"}}
	sandbox, err := p.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{
		Config: &runtimeapi.PodSandboxConfig{LogDirectory: p.node.LogDir(pod), Labels: cri.PodLabels(pod)},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range containers {
		c, err := p.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox.GetPodSandboxId(), Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: name, Attempt: 2}, LogPath: podspec.LogPath(name, 2), Labels: cri.ContainerLabels(pod, name),
		}})
		if err == nil {
			_, err = p.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.GetContainerId()})
		}
		if err != nil {
			t.Fatal(err)
		}
		p.ids[name] = c.GetContainerId()
	}
	return p
}

// log is where the runtime writes the container's log.
func (p *pods) log(name string) string {
	p.Helper()
	s, err := p.ContainerStatus(p.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: p.ids[name]})
	if err != nil {
		p.Fatal(err)
	}
	return s.GetStatus().GetLogPath()
}

// write replaces what is in the container's present log.
func (p *pods) write(name, text string) {
	p.Helper()
	if err := os.WriteFile(p.log(name), []byte(text), 0o640); err != nil {
		p.Fatal(err)
	}
}

// checkRotated checks that a log has at most that many files: an empty one, and the newest of what
// was put aside, at least so many, all but the last one compressed.
func checkRotated(t *testing.T, all, aside []string, least, most int) {
	t.Helper()
	kept := all[:len(all)-1]
	if len(kept) < least || len(all) > most {
		t.Fatalf("not %d to %d files: %v", least+1, most, all)
	}
	if got := content(t, all[len(all)-1]); got != "" {
		t.Errorf("the present file holds %q", got)
	}
	for i, f := range kept {
		if got, want := content(t, f), aside[len(aside)-len(kept)+i]; got != want {
			t.Errorf("%s holds %q, want %q", f, got, want)
		}
		if strings.HasSuffix(f, ".gz") != (i < len(kept)-1) {
			t.Errorf("file %d of %d is %s", i, len(kept), f)
		}
	}
}

// Logs of running containers are put aside once they have the size, the oldest ones go, all but the
// newest of those put aside are compressed, and the runtime goes on in a new file.
func TestRunningRotatesBySizeAndCount(t *testing.T) {
	p := newPods(t, "big", "small", "ended")
	const size = 20
	generation := func(i int) string { return fmt.Sprintf("%0*d", size, i) }
	p.write("small", generation(0)[1:])
	p.write("ended", generation(0))
	p.Exit("ended", 0)
	var aside []string // all that was ever put aside
	now := time.Unix(1_700_000_000, 0)
	for _, most := range []int{5, 2, 3} { // a limit that was lowered holds too
		r := logs.Rotation{MaxSize: size, MaxFiles: most}
		for round := range 7 {
			aside = append(aside, generation(len(aside)))
			p.write("big", aside[len(aside)-1])
			now = now.Add(10 * time.Second)
			before := len(p.Calls())
			if err := r.Running(t.Context(), p, p.node.ContainerLog, now); err != nil {
				t.Fatal(err)
			}
			if got := p.Calls()[before:]; !slices.Equal(got, []string{"ReopenContainerLog big"}) {
				t.Fatalf("calls %v", got)
			}
			checkRotated(t, files(t, p.log("big")), aside, min(round+1, most-1), most)
		}
	}
	for _, name := range []string{"small", "ended"} {
		if all := files(t, p.log(name)); len(all) != 1 {
			t.Errorf("%s was rotated: %v", name, all)
		}
	}
}

// A runtime that does not reopen a log still writes to the old file, which stays where it is.
func TestRunningKeepsLogsThatAreNotReopened(t *testing.T) {
	p := newPods(t, "a", "b")
	p.write("a", "from a")
	p.write("b", "from b")
	p.Fail("ReopenContainerLog", errors.New("down"))
	r := logs.Rotation{MaxSize: 1, MaxFiles: 2}
	err := r.Running(t.Context(), p, p.node.ContainerLog, time.Unix(1, 0))
	for _, name := range []string{"a", "b"} {
		if err == nil || !strings.Contains(err.Error(), p.ids[name]) {
			t.Errorf("the error does not name container %s: %v", name, err)
		}
		if all := files(t, p.log(name)); len(all) != 1 || content(t, all[0]) != "from "+name {
			t.Errorf("files of %s: %v", name, all)
		}
	}
	p.Fail("ReopenContainerLog", nil)
	if err := r.Running(t.Context(), p, p.node.ContainerLog, time.Unix(2, 0)); err != nil {
		t.Fatal(err)
	}
	if all := files(t, p.log("a")); len(all) != 2 || content(t, all[0]) != "from a" {
		t.Errorf("files %v", all)
	}
}

// What a compression that was cut short has left is cleared away, and its log compressed anew.
func TestRotateClearsAwayHalfACompression(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	for name, text := range map[string]string{"": "new", ".20200101-000000": "old", ".20200101-000000.tmp": "half"} {
		if err := os.WriteFile(path+name, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	r := logs.Rotation{MaxSize: 1, MaxFiles: 5}
	if err := r.Rotate(path, time.Unix(1_700_000_000, 0), func() error { return os.WriteFile(path, nil, 0o640) }); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range files(t, path) {
		got = append(got, filepath.Base(f)+"="+content(t, f))
	}
	want := []string{"0.log.20200101-000000.gz=old", "0.log.20231114-221320=new", "0.log="}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestRotateALogThatIsNotThere(t *testing.T) {
	r := logs.DefaultRotation()
	if err := r.Rotate(filepath.Join(t.TempDir(), "none"), time.Unix(1, 0), nil); err != nil {
		t.Error(err)
	}
}
