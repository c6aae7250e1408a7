// Package mirror is a registry to pull from, where there is no other: it serves the images of an
// archive under their own names, as a mirror of the registry that the names begin with. Of the OCI
// distribution specification (v1.1) it has what a pull needs: manifests by tag or digest, blobs,
// both with HEAD and with ranges.
package mirror

import (
	"archive/tar"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Mirror serves one archive. It is safe for concurrent use.
type Mirror struct {
	file  *os.File
	blobs map[digest.Digest]blob
	// named are the manifests by the full names of images.
	named map[string]ocispec.Descriptor
	// manifests are the media types of those blobs that are manifests.
	manifests map[digest.Digest]string
}

// blob is where a blob stands in the archive, in bytes.
type blob struct{ offset, size int64 }

// Open reads what an OCI image archive has; the file stays open until Close.
func Open(file string) (*Mirror, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	m := &Mirror{file: f, blobs: map[digest.Digest]blob{}, named: map[string]ocispec.Descriptor{}, manifests: map[digest.Digest]string{}}
	if err := m.read(); err != nil {
		return nil, errors.Join(fmt.Errorf("read image archive %s: %w", file, err), f.Close())
	}
	return m, nil
}

// Close closes the archive. What is being served fails.
func (m *Mirror) Close() error { return m.file.Close() }

func (m *Mirror) read() error {
	files := tar.NewReader(m.file)
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch dir, name := path.Split(header.Name); {
		case header.Name == ocispec.ImageIndexFile:
			if err := m.index(files); err != nil {
				return err
			}
		case dir == ocispec.ImageBlobsDir+"/sha256/" && name != "":
			// The reader asks the file for just as much as it gives away.
			offset, err := m.file.Seek(0, io.SeekCurrent)
			if err != nil {
				return err
			}
			m.blobs[digest.NewDigestFromEncoded(digest.SHA256, name)] = blob{offset, header.Size}
		}
	}
}

func (m *Mirror) index(r io.Reader) error {
	var index ocispec.Index
	if err := json.NewDecoder(r).Decode(&index); err != nil {
		return fmt.Errorf("decode the index: %w", err)
	}
	for _, d := range index.Manifests {
		m.named[d.Annotations[ocispec.AnnotationRefName]] = d
		m.manifests[d.Digest] = d.MediaType
	}
	return nil
}

// ServeHTTP answers a pull. The query names the registry that is mirrored, as containerd has it (ns).
func (m *Mirror) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "this registry is for pulls", http.StatusMethodNotAllowed)
		return
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	if rest == "" {
		w.WriteHeader(http.StatusOK)
		return
	}
	if repository, reference, ok := strings.Cut(rest, "/manifests/"); ok {
		d, ok := m.named[r.URL.Query().Get("ns")+"/"+repository+":"+reference]
		if !ok {
			d.Digest = digest.Digest(reference)
			d.MediaType = m.manifests[d.Digest]
		}
		if d.MediaType == "" {
			http.NotFound(w, r)
			return
		}
		m.serve(w, r, d.Digest, d.MediaType)
		return
	}
	_, reference, _ := strings.Cut(rest, "/blobs/")
	m.serve(w, r, digest.Digest(reference), "application/octet-stream")
}

func (m *Mirror) serve(w http.ResponseWriter, r *http.Request, d digest.Digest, mediaType string) {
	b, ok := m.blobs[d]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Docker-Content-Digest", d.String())
	http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(m.file, b.offset, b.size))
}

// Use tells a node's containerd, by the folder of its registries, that a mirror of a registry is at a URL.
// It is looked at anew with each pull.
func Use(registries, registry, url string) error {
	dir := filepath.Join(registries, registry)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make a folder for the mirror of %s: %w", registry, err)
	}
	hosts := fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", url)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o644); err != nil {
		return fmt.Errorf("name the mirror of %s: %w", registry, err)
	}
	return nil
}
