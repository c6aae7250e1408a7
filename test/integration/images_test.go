package integration

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"barque.dev/examples"
	"barque.dev/internal/runtime/images"
)

// busyboxImage is what most test pods run: Debian's static busybox with its usual links.
const busyboxImage = "barque.dev/test/busybox:1"

// applets are the links to busybox that the tests use.
var applets = []string{
	"sh", "sleep", "cat", "echo", "ls", "nc", "wget", "httpd", "nslookup", "hostname", "id", "env", "true", "false", "test",
	"ip", "ping", "touch", "rm", "mkdir", "tar", "grep", "stat", "readlink", "date", "kill", "head", "tail", "seq", "dd", "mount", "df", "wc", "printf", "tee", "sync", "usleep", "awk", "sed", "sort", "ps", "chmod", "cp", "mv",
}

// importImages puts busybox and the sample application on every machine.
func (c *cluster) importImages() error {
	binary, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("%w: install busybox-static", err)
	}
	layer := images.Layer{
		{Path: "bin/busybox", Mode: 0o755, Data: binary},
		{Path: "tmp", Mode: fs.ModeDir | 0o777},
		{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")},
		{Path: "etc/group", Mode: 0o644, Data: []byte("root:x:0:\nnogroup:x:65534:\n")},
	}
	for _, name := range applets {
		layer = append(layer, images.File{Path: "bin/" + name, Mode: fs.ModeSymlink | 0o777, Target: "busybox"})
	}
	var archive bytes.Buffer
	err = images.WriteArchive(&archive, images.Image{
		Names: []string{busyboxImage}, Layers: []images.Layer{layer},
		Config: ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}},
	})
	if err != nil {
		return err
	}
	hello, err := examples.HelloImages()
	if err != nil {
		return err
	}
	defer func() { _ = hello.Close() }()
	samples, err := io.ReadAll(hello)
	if err != nil {
		return fmt.Errorf("read the sample's images: %w", err)
	}
	if err := c.importArchive(archive.Bytes()); err != nil {
		return err
	}
	return c.importArchive(samples)
}
