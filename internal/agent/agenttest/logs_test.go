package agenttest

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"barque.dev/internal/agent/logs"
	"barque.dev/internal/agent/podspec"
	"barque.dev/internal/runtime/images/imagetest"
)

// TestLogRotation: while a container writes, its log is put aside again and again. No line is lost
// or torn, and what the node's API shows goes on.
func TestLogRotation(t *testing.T) {
	m := newMachine(t)
	m.start()
	m.run("chatty", imagetest.Busybox, "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.01; done")
	m.eventually("running", func() bool { return m.ready("chatty") })

	node := podspec.Node{LogRoot: filepath.Join(m.config.RootDir, "logs", "pods")}
	path := filepath.Join(node.LogDir(m.pod("chatty")), podspec.LogPath("main", 0))
	rotation := logs.Rotation{MaxSize: 400, MaxFiles: 100}
	now := time.Now()
	m.eventually("rotated five times", func() bool {
		now = now.Add(time.Second)
		if err := rotation.Running(t.Context(), m.config.Runtime, node.ContainerLog, now); err != nil {
			t.Fatal(err)
		}
		aside, err := filepath.Glob(path + ".*")
		return err == nil && len(aside) >= 5
	})
	m.eventually("the node's API shows what was written last", func() bool { // nothing yet in a file just begun
		return strings.HasPrefix(m.get("/containerLogs/default/chatty/main?tailLines=1"), "line ")
	})
	files, err := filepath.Glob(path + "*")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	count := 0
	for _, f := range append(files[1:], files[0]) {
		written := readLog(t, f)
		written = written[:strings.LastIndexByte(written, '\n')+1] // the last line may be under way
		for line := range strings.Lines(written) {
			if want := fmt.Sprintf(" stdout F line %d\n", count); !strings.HasSuffix(line, want) {
				t.Fatalf("%s: %q, want it to end in %q", f, line, want)
			}
			count++
		}
	}
	if count < 5*6 {
		t.Errorf("only %d lines", count)
	}
}

// readLog reads a log file, compressed or not.
func readLog(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(path, ".gz") {
		return string(data)
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if data, err = io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	return string(data)
}
