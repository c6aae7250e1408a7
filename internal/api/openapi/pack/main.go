// Command pack collects the OpenAPI documents that the module k8s.io/kubernetes publishes in
// api/openapi-spec into the archive that package openapi embeds: every document as JSON and as
// protobuf, deflated, and an index of their hashes.
package main

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"crypto/sha512"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"

	openapiv2 "github.com/google/gnostic-models/openapiv2"
	openapiv3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
)

// The entry names are package openapi's, which this command cannot import: it embeds what is made here.
const (
	v2Name    = "swagger"
	indexName = "index.json"
	v3Suffix  = "_openapi.json"
)

func main() {
	out := flag.String("o", "specs.zip", "file to write")
	flag.Parse()
	if err := run(*out); err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func run(out string) error {
	dir, err := module("k8s.io/kubernetes", "{{.Dir}}")
	if err != nil {
		return err
	}
	release, err := module("k8s.io/kubernetes", "{{.Version}}")
	if err != nil {
		return err
	}
	version := strings.TrimPrefix(release[:strings.LastIndexByte(release, '.')], "v")
	known, err := definitions(filepath.Join(dir, "pkg", "generated", "openapi", "zz_generated.openapi.go"))
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	if err := pack(&buf, filepath.Join(dir, "api", "openapi-spec"), version, known); err != nil {
		return err
	}
	if old, err := os.ReadFile(out); err == nil && bytes.Equal(old, buf.Bytes()) {
		return nil // keep the file's time, so that nothing is rebuilt for it
	}
	return os.WriteFile(out, buf.Bytes(), 0o644)
}

// module asks the go command for a fact about a module, as `go list` formats it.
func module(module, fact string) (string, error) {
	var stderr bytes.Buffer
	cmd := exec.Command("go", "list", "-m", "-f", fact, module)
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find module %s: %w: %s", module, err, strings.TrimSpace(stderr.String()))
	}
	found := strings.TrimSpace(string(b))
	if found == "" {
		return "", fmt.Errorf("module %s is not downloaded: run `go mod download %s`", module, module)
	}
	return found, nil
}

// pack writes the archive of the documents below dir, of a version such as 1.37. The same documents give the same bytes.
func pack(w io.Writer, dir, version string, known map[string]*described) error {
	z := zip.NewWriter(w)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) {
		return flate.NewWriter(w, flate.BestCompression)
	})
	a := &archive{zip: z, hashes: map[string]string{}, known: known}
	if err := a.add(v2Name, filepath.Join(dir, "swagger.json"), version, v2Protobuf); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(dir, "v3", "*"+v3Suffix))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("no documents in %s", dir)
	}
	sort.Strings(files)
	for _, file := range files {
		name := strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), v3Suffix), "__", "/")
		if err := a.add(name, file, version, v3Protobuf); err != nil {
			return err
		}
	}
	index, err := json.Marshal(a.hashes)
	if err != nil {
		return err
	}
	if err := entry(z, indexName, index); err != nil {
		return err
	}
	return z.Close()
}

// archive is what is being written.
type archive struct {
	zip    *zip.Writer
	hashes map[string]string
	known  map[string]*described
}

func (a *archive) add(name, file, version string, protobuf func([]byte) ([]byte, error)) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if data, err = correct(data, version, a.known); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	pb, err := protobuf(data)
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	a.hashes[name] = fmt.Sprintf("%X", sha512.Sum512(data))
	if err := entry(a.zip, name+".json", data); err != nil {
		return err
	}
	return entry(a.zip, name+".pb", pb)
}

func entry(z *zip.Writer, name string, data []byte) error {
	w, err := z.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate})
	if err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

func v2Protobuf(data []byte) ([]byte, error) {
	doc, err := openapiv2.ParseDocument(data)
	if err != nil {
		return nil, err
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(doc)
}

func v3Protobuf(data []byte) ([]byte, error) {
	doc, err := openapiv3.ParseDocument(data)
	if err != nil {
		return nil, err
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(doc)
}
