package bundle

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/klauspost/compress/zstd"
)

// packed makes a bundle whose programs hold the text given after their names.
func packed(t *testing.T, text string) fstest.MapFS {
	t.Helper()
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = encoder.Close() }()
	files := fstest.MapFS{}
	var index Index
	for _, name := range Names() {
		data := []byte(name + text)
		sum := sha256.Sum256(data)
		index.Programs = append(index.Programs, Program{Name: name, Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])})
		files[name+".zst"] = &fstest.MapFile{Data: encoder.EncodeAll(data, nil)}
	}
	data, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	files[IndexFile] = &fstest.MapFile{Data: data}
	return files
}

func open(t *testing.T, files fstest.MapFS) *Bundle {
	t.Helper()
	b, err := OpenFS(files)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestUnpack(t *testing.T) {
	dir := t.TempDir()
	b := open(t, packed(t, " one"))
	// Several servers of one machine may start at once.
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			p, err := b.Unpack(dir)
			if err != nil {
				t.Error(err)
				return
			}
			if data, err := os.ReadFile(p.Path(Runc)); err != nil || string(data) != "runc one" {
				t.Errorf("read %q, %v", data, err)
			}
		})
	}
	group.Wait()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != b.Version() {
		t.Errorf("the directory holds %v, %v; want %s alone", entries, err, b.Version())
	}
	info, err := os.Stat(filepath.Join(dir, b.Version(), Shim))
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the shim is %v, %v; want it executable", info.Mode(), err)
	}
}

func TestUnpackMends(t *testing.T) {
	dir := t.TempDir()
	b := open(t, packed(t, " one"))
	p, err := b.Unpack(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(p.Path(CNI), 3); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Unpack(dir); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(p.Path(CNI)); err != nil || string(data) != "barque-cni one" {
		t.Errorf("after mending: %q, %v", data, err)
	}
}

func TestUnpackRefusesDamage(t *testing.T) {
	files := packed(t, " one")
	files[Runc+".zst"] = packed(t, " two")[Runc+".zst"]
	dir := t.TempDir()
	if _, err := open(t, files).Unpack(dir); err == nil {
		t.Error("a program that is not what the index says was unpacked")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("remains of the attempt: %v, %v", entries, err)
	}
}

// TestPrune checks that versions that nothing uses go, and that those stay which are new or
// which a process still runs from.
func TestPrune(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	for _, name := range []string{"current", "new", "old", "used"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sleep, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("this test needs the package busybox-static: %v", err)
	}
	program := filepath.Join(dir, "used", "busybox")
	if err := os.WriteFile(program, sleep, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "sleep", "300")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	for _, name := range []string{"current", "old", "used"} {
		long := now.Add(-2 * keepFor)
		if err := os.Chtimes(filepath.Join(dir, name), long, long); err != nil {
			t.Fatal(err)
		}
	}
	if err := prune(dir, "current", now); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{filepath.Join(dir, "current"), filepath.Join(dir, "new"), filepath.Join(dir, "used")}
	if len(left) != 3 || left[0] != want[0] || left[1] != want[1] || left[2] != want[2] {
		t.Errorf("left are %v, want %v", left, want)
	}
}

func TestOpen(t *testing.T) {
	if _, err := OpenFS(fstest.MapFS{"README.md": {}}); !errors.Is(err, ErrMissing) {
		t.Errorf("without programs: %v", err)
	}
	one := packed(t, " one")
	if a, b := open(t, one).Version(), open(t, packed(t, " two")).Version(); a == b || len(a) != 16 {
		t.Errorf("versions %s and %s", a, b)
	}
	for name, index := range map[string]string{
		"no JSON":     "hello",
		"missing":     `{"programs": []}`,
		"path":        `{"programs": [{"name": "../runc", "size": 1, "sha256": "` + hex.EncodeToString(bytes.Repeat([]byte{1}, 32)) + `"}]}`,
		"no checksum": `{"programs": [{"name": "runc", "size": 1}]}`,
	} {
		if _, err := OpenFS(fstest.MapFS{IndexFile: {Data: []byte(index)}}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
