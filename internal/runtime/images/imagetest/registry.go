package imagetest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync/atomic"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	repository = "private/busybox"
	tag        = "1"
)

// Registry serves busybox to those who have its password (OCI distribution-spec v1.1, reading
// only), without TLS, as runtimes expect of a registry on the loopback interface.
type Registry struct {
	// Host is the registry's address and port, Image the name of its image.
	Host, Image string

	user, password string
	blobs          map[string][]byte // by digest
	manifest       string            // its digest
	refused        atomic.Int32
}

// NewRegistry serves until the test ends.
func NewRegistry(t testing.TB, user, password string) *Registry {
	t.Helper()
	r := &Registry{user: user, password: password, blobs: map[string][]byte{}}
	r.load(t)
	s := httptest.NewServer(r)
	t.Cleanup(s.Close)
	r.Host = s.Listener.Addr().String()
	r.Image = r.Host + "/" + repository + ":" + tag
	return r
}

// Refused is how many requests had a user, but not the right one or not its password.
func (r *Registry) Refused() int { return int(r.refused.Load()) }

// load takes the image out of its archive.
func (r *Registry) load(t testing.TB) {
	t.Helper()
	files := tar.NewReader(bytes.NewReader(archive(t, repository+":"+tag)))
	for {
		header, err := files.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(files)
		if err != nil {
			t.Fatal(err)
		}
		if header.Name == ocispec.ImageIndexFile {
			var index ocispec.Index
			if err := json.Unmarshal(data, &index); err != nil {
				t.Fatal(err)
			}
			r.manifest = index.Manifests[0].Digest.String()
		}
		r.blobs["sha256:"+path.Base(header.Name)] = data
	}
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	if user, password, given := q.BasicAuth(); user != r.user || password != r.password {
		if given {
			r.refused.Add(1)
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	name := strings.TrimPrefix(q.URL.Path, "/v2/"+repository+"/")
	switch kind, ref, _ := strings.Cut(name, "/"); {
	case kind == "manifests" && (ref == tag || ref == r.manifest):
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", r.manifest)
		_, _ = w.Write(r.blobs[r.manifest])
	case kind == "blobs" && r.blobs[ref] != nil:
		w.Header().Set("Content-Type", "application/octet-stream")
		_, _ = w.Write(r.blobs[ref])
	default:
		http.NotFound(w, q)
	}
}
