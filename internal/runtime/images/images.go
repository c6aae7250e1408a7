// Package images makes container images by code, and looks after those that a containerd has:
// it imports archives, lists and removes. It needs no Docker and no registry.
//
// An [Image] is what goes into an image: files, and how to start. [WriteArchive] packs images
// into one OCI image archive (a tar file with the OCI image layout, image-spec
// v1.1), which [Store.Import] reads, as it reads archives of `docker save`, podman and others.
// Imported images are in containerd's namespace k8s.io, unpacked, and seen by CRI, so that pods
// can run from them without pulling.
package images

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
)

// Namespace is the containerd namespace that CRI's images are in.
const Namespace = "k8s.io"

// Normalize completes the name of an image as Docker and CRI do: the registry docker.io and
// its folder library are added if no registry is named, and the tag latest if neither a tag
// nor a digest is.
func Normalize(name string) (string, error) {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fmt.Errorf("image name %q: %w", name, err)
	}
	return ref.String(), nil
}

// isName reports whether an annotation of an archive names an image, rather than only a tag.
func isName(ref string) bool { return strings.ContainsAny(ref, "/:@") }
