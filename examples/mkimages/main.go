// Command mkimages builds the sample application in its versions and packs it into image
// archives, without Docker. It is run by make, in the root of the repository:
//
//	go run ./examples/mkimages
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"barque.dev/examples"
	"barque.dev/internal/runtime/images"
)

func main() {
	out := flag.String("out", "examples/images", "directory to pack into")
	flag.Parse()
	if err := run(*out); err != nil {
		fmt.Fprintln(os.Stderr, "mkimages:", err)
		os.Exit(1)
	}
}

func run(out string) error {
	work, err := os.MkdirTemp("", "mkimages-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	var all []images.Image
	for _, v := range [][2]string{{"v1", examples.HelloV1}, {"v2", examples.HelloV2}} {
		image, err := hello(work, v[0], v[1])
		if err != nil {
			return fmt.Errorf("build hello %s: %w", v[0], err)
		}
		all = append(all, image)
	}
	var packed bytes.Buffer
	// The versions differ in a few bytes; a window that spans one program finds the other.
	writer, err := zstd.NewWriter(&packed, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(16<<20))
	if err != nil {
		return err
	}
	if err := images.WriteArchive(writer, all...); err != nil {
		return err
	}
	if err := writer.Close(); err != nil {
		return err
	}
	file := filepath.Join(out, examples.ArchiveFile)
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, packed.Bytes()) {
		return nil // so that what embeds it is not built again
	}
	if err := os.WriteFile(file+".new", packed.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// hello builds one version and describes its image: the program and nothing else.
func hello(work, version, name string) (images.Image, error) {
	program := filepath.Join(work, version)
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false",
		"-ldflags", "-s -w -X main.version="+version, "-o", program, "./examples/hello")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return images.Image{}, err
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return images.Image{}, err
	}
	return images.Image{
		Names:  []string{name},
		Layers: []images.Layer{{{Path: "/hello", Mode: 0o755, Data: data}}},
		Config: ocispec.ImageConfig{
			Entrypoint:   []string{"/hello"},
			User:         "65532:65532",
			ExposedPorts: map[string]struct{}{"8080/tcp": {}},
			Labels:       map[string]string{"org.opencontainers.image.version": version},
		},
	}, nil
}
