// Package imagetest has what tests of containers run: an image of this machine's static busybox,
// given to a containerd directly or served by a registry on the loopback interface.
package imagetest

import (
	"bytes"
	"io/fs"
	"os"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"barque.dev/internal/runtime/images"
)

// Busybox is the name of the image that pods of tests run.
const Busybox = "busybox:test"

// applets are the names by which the image's programs can be called; the others are called as
// arguments of busybox.
var applets = []string{"sh", "echo", "sleep", "cat", "hostname", "id", "test"}

// archive packs the image under a name.
func archive(t testing.TB, name string) []byte {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("this test needs the package busybox-static: %v", err)
	}
	files := images.Layer{
		{Path: "bin/busybox", Mode: 0o755, Data: program},
		{Path: "tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/:/bin/sh\n")},
	}
	for _, name := range applets {
		files = append(files, images.File{Path: "bin/" + name, Mode: fs.ModeSymlink | 0o777, Target: "busybox"})
	}
	var packed bytes.Buffer
	err = images.WriteArchive(&packed, images.Image{
		Names:  []string{name},
		Layers: []images.Layer{files},
		Config: ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// ImportBusybox gives the image to the containerd whose socket has that path.
func ImportBusybox(t testing.TB, socket string) {
	t.Helper()
	store, err := images.Open(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	if _, err := store.Import(t.Context(), bytes.NewReader(archive(t, Busybox))); err != nil {
		t.Fatal(err)
	}
}
