// Package examples holds the sample application that `barque up` deploys: its manifest and its
// images, in two versions. Its source is in the folder hello. Only `barque up` and tests use
// this package.
package examples

import (
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

// The images of the two versions, and where the application can be reached on every node.
const (
	HelloV1 = "barque.dev/examples/hello:v1"
	HelloV2 = "barque.dev/examples/hello:v2"

	HelloNodePort = 30080
)

// ErrMissing says that this binary was built without the sample application's images.
var ErrMissing = errors.New("this binary was built without the sample application's images: build it with `make`")

//go:embed manifests
var manifests embed.FS

//go:embed images
var archives embed.FS

// ArchiveFile is the name, below examples/images, of the archive that mkimages makes.
const ArchiveFile = "hello.tar.zst"

// HelloManifest returns the YAML documents that deploy the sample application's first version
// into the namespace that is applied to: a ConfigMap, a Secret, a Service and a Deployment, all
// called hello.
func HelloManifest() ([]byte, error) {
	data, err := manifests.ReadFile("manifests/hello.yaml")
	if err != nil {
		return nil, fmt.Errorf("read manifest of the sample application: %w", err)
	}
	return data, nil
}

// HelloImages opens the archive of the images [HelloV1] and [HelloV2], compressed by zstd, as
// the importer of images takes it. It returns [ErrMissing] if there is none in this binary.
func HelloImages() (io.ReadCloser, error) {
	f, err := archives.Open("images/" + ArchiveFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("open images of the sample application: %w", err)
	}
	return f, nil
}
