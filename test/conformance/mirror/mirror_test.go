package mirror

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"barque.dev/internal/runtime/images"
)

func TestPull(t *testing.T) {
	file := filepath.Join(t.TempDir(), "images.tar")
	out, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	image := images.Image{Names: []string{"registry.example/team/one:2"}, Layers: []images.Layer{{{Path: "hello", Mode: 0o644, Data: []byte("hello")}}}}
	if err := images.WriteArchive(out, image); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	server := httptest.NewServer(m)
	t.Cleanup(server.Close)
	get := func(method, path string) (int, []byte, http.Header) {
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, data, resp.Header
	}

	code, data, header := get("GET", "/v2/team/one/manifests/2?ns=registry.example")
	var manifest ocispec.Manifest
	if err := json.Unmarshal(data, &manifest); code != 200 || err != nil || header.Get("Content-Type") != ocispec.MediaTypeImageManifest {
		t.Fatalf("%d %v %v: %s", code, err, header, data)
	}
	if named := header.Get("Docker-Content-Digest"); named != digest.FromBytes(data).String() {
		t.Errorf("digest %s of %s", named, data)
	}
	if code, again, _ := get("GET", "/v2/team/one/manifests/"+digest.FromBytes(data).String()+"?ns=registry.example"); code != 200 || string(again) != string(data) {
		t.Errorf("by digest: %d %s", code, again)
	}
	for _, d := range append(manifest.Layers, manifest.Config) {
		if code, blob, _ := get("GET", "/v2/team/one/blobs/"+d.Digest.String()); code != 200 || digest.FromBytes(blob) != d.Digest || int64(len(blob)) != d.Size {
			t.Errorf("blob %v: %d, %d bytes", d, code, len(blob))
		}
		if code, _, header := get("HEAD", "/v2/team/one/blobs/"+d.Digest.String()); code != 200 || header.Get("Content-Length") == "" {
			t.Errorf("head of %v: %d %v", d, code, header)
		}
	}
	for path, want := range map[string]int{
		"/v2/": 200, "/v2/team/one/manifests/3?ns=registry.example": 404, "/v2/team/one/manifests/2?ns=elsewhere": 404,
		"/v2/team/one/manifests/" + manifest.Config.Digest.String(): 404, "/v2/team/one/blobs/sha256:00": 404, "/v2/x": 404, "/": 404,
	} {
		if code, _, _ := get("GET", path); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
	if code, _, _ := get("POST", "/v2/team/one/blobs/uploads/"); code != http.StatusMethodNotAllowed {
		t.Errorf("a push: %d", code)
	}
}
