package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"barque.dev/internal/testkit"
)

func TestNormalize(t *testing.T) {
	for name, want := range map[string]string{
		"busybox":             "docker.io/library/busybox:latest",
		"team/app:v2":         "docker.io/team/app:v2",
		"localhost/app":       "localhost/app:latest",
		"reg.test:5000/a/b:c": "reg.test:5000/a/b:c",
		"barque.dev/pause:1":  "barque.dev/pause:1",
	} {
		if got, err := Normalize(name); err != nil || got != want {
			t.Errorf("%s: got %s, %v; want %s", name, got, err, want)
		}
	}
	for _, bad := range []string{"", "UPPER", "a b", "a:b:c"} {
		if got, err := Normalize(bad); err == nil {
			t.Errorf("%q: got %s", bad, got)
		}
	}
}

// unpack reads a tar file.
func unpack(t *testing.T, data []byte) (names []string, files map[string][]byte, headers map[string]*tar.Header) {
	t.Helper()
	files, headers = map[string][]byte{}, map[string]*tar.Header{}
	reader := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return names, files, headers
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		files[h.Name], headers[h.Name] = content, h
	}
}

func decode[T any](t *testing.T, data []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestWriteArchive(t *testing.T) {
	image := Image{
		Names: []string{"app:v1", "other.test/app"},
		Layers: []Layer{
			{{Path: "/usr/bin/app", Mode: fs.ModeSetuid | 0o755, Data: []byte("program"), UID: 7}, {Path: "bin", Mode: fs.ModeSymlink | 0o777, Target: "usr/bin"}},
			{{Path: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777}},
		},
		Config: ocispec.ImageConfig{Cmd: []string{"app"}},
	}
	write := func() []byte {
		var buf bytes.Buffer
		if err := WriteArchive(&buf, image); err != nil {
			t.Fatal(err)
		}
		return buf.Bytes()
	}
	data := write()
	if !bytes.Equal(data, write()) {
		t.Error("the same image gives different archives")
	}
	_, files, _ := unpack(t, data)
	blob := func(d digest.Digest) []byte {
		content, ok := files["blobs/sha256/"+d.Encoded()]
		if !ok || digest.FromBytes(content) != d {
			t.Fatalf("blob %s is missing or not what its name says", d)
		}
		return content
	}
	index := decode[ocispec.Index](t, files["index.json"])
	if len(index.Manifests) != 2 || index.Manifests[0].Annotations[nameAnnotation] != "docker.io/library/app:v1" || index.Manifests[1].Annotations[nameAnnotation] != "other.test/app:latest" {
		t.Fatalf("index %+v", index)
	}
	manifest := decode[ocispec.Manifest](t, blob(index.Manifests[0].Digest))
	config := decode[ocispec.Image](t, blob(manifest.Config.Digest))
	if config.OS != "linux" || config.Architecture == "" || len(config.RootFS.DiffIDs) != 2 || config.Config.Cmd[0] != "app" {
		t.Errorf("config %+v", config)
	}
	names, content, headers := unpack(t, blob(manifest.Layers[0].Digest))
	if len(names) != 4 || names[0] != "usr/" || names[1] != "usr/bin/" || string(content["usr/bin/app"]) != "program" {
		t.Errorf("the first layer holds %v", names)
	}
	if h := headers["usr/bin/app"]; h.Mode != 0o4755 || h.Uid != 7 || !h.ModTime.Equal(time.Unix(0, 0)) {
		t.Errorf("app is %+v", h)
	}
	if h := headers["bin"]; h.Typeflag != tar.TypeSymlink || h.Linkname != "usr/bin" {
		t.Errorf("bin is %+v", h)
	}
	if _, _, headers := unpack(t, blob(manifest.Layers[1].Digest)); headers["tmp/"].Mode != 0o1777 {
		t.Errorf("tmp is %+v", headers["tmp/"])
	}
}

func TestWriteArchiveRefuses(t *testing.T) {
	for name, image := range map[string]Image{
		"no name":     {},
		"bad name":    {Names: []string{"A B"}},
		"no path":     {Names: []string{"a"}, Layers: []Layer{{{Path: "/"}}}},
		"device":      {Names: []string{"a"}, Layers: []Layer{{{Path: "x", Mode: fs.ModeDevice}}}},
		"full folder": {Names: []string{"a"}, Layers: []Layer{{{Path: "x", Mode: fs.ModeDir, Data: []byte("y")}}}},
	} {
		if err := WriteArchive(io.Discard, image); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestLayerStaysInside checks that no path leads out of the image.
func TestLayerStaysInside(t *testing.T) {
	data, err := Layer{{Path: "../../etc/passwd", Data: []byte("x")}}.pack(time.Unix(0, 0))
	if err != nil {
		t.Fatal(err)
	}
	if names, _, _ := unpack(t, data); len(names) != 2 || names[1] != "etc/passwd" {
		t.Errorf("the layer holds %v", names)
	}
}

func TestFiles(t *testing.T) {
	layer, err := Files(fstest.MapFS{"a/b": {Data: []byte("c"), Mode: 0o640}})
	if err != nil {
		t.Fatal(err)
	}
	if len(layer) != 2 || layer[0].Path != "a" || !layer[0].Mode.IsDir() || layer[1].Path != "a/b" || string(layer[1].Data) != "c" || layer[1].Mode != 0o640 {
		t.Errorf("layer %+v", layer)
	}
}

func TestDecompress(t *testing.T) {
	plain := []byte("this is an archive, more or less")
	var zipped, zstandard bytes.Buffer
	g := gzip.NewWriter(&zipped)
	z, err := zstd.NewWriter(&zstandard)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []io.WriteCloser{g, z} {
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for name, data := range map[string][]byte{"plain": plain, "gzip": zipped.Bytes(), "zstd": zstandard.Bytes()} {
		r, done, err := decompress(bytes.NewReader(data))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
		done()
	}
	if _, _, err := decompress(bytes.NewReader(nil)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("nothing: %v", err)
	}
}

// TestPauseProgram checks that the kernel runs the program, that it reaps, and that it ends
// when told.
func TestPauseProgram(t *testing.T) {
	image, err := PauseImage()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "pause")
	if err := os.WriteFile(program, image.Layers[0][0].Data, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	status := filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "status")
	testkit.Eventually(t, 10*time.Second, "it sleeps with SIGCHLD ignored", func() error {
		data, err := os.ReadFile(status)
		// Bit 16 is SIGCHLD, the 17th signal, beside those that this process ignores; S is sleeping.
		if err == nil && !(ignored(data)&(1<<16) != 0 && bytes.Contains(data, []byte("State:\tS"))) {
			err = errors.New(string(data))
		}
		return err
	})
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("it ended with %v", err)
	}
}

func TestPauseArchitectures(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		program, err := pauseProgram(arch)
		if err != nil {
			t.Fatal(err)
		}
		f, err := elf.NewFile(bytes.NewReader(program))
		if err != nil {
			t.Fatalf("%s: %v", arch, err)
		}
		if f.Machine != machine || f.Type != elf.ET_EXEC || len(f.Progs) != 1 || f.Progs[0].Filesz != uint64(len(program)) || len(program) > 256 {
			t.Errorf("%s: %+v, %d bytes", arch, f.FileHeader, len(program))
		}
	}
	if _, err := pauseProgram("mips"); err == nil {
		t.Error("a program for an unknown architecture")
	}
}

// ignored is the set of signals that a process ignores (proc_pid_status(5)).
func ignored(status []byte) uint64 {
	_, rest, _ := bytes.Cut(status, []byte("SigIgn:\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	mask, err := strconv.ParseUint(string(line), 16, 64)
	if err != nil {
		return 0
	}
	return mask
}
