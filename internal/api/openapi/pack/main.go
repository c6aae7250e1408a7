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
	dir, err := moduleDir("k8s.io/kubernetes")
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	if err := pack(&buf, filepath.Join(dir, "api", "openapi-spec")); err != nil {
		return err
	}
	if old, err := os.ReadFile(out); err == nil && bytes.Equal(old, buf.Bytes()) {
		return nil // keep the file's time, so that nothing is rebuilt for it
	}
	return os.WriteFile(out, buf.Bytes(), 0o644)
}

// moduleDir asks the go command where the module's source is.
func moduleDir(module string) (string, error) {
	var stderr bytes.Buffer
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find module %s: %w: %s", module, err, strings.TrimSpace(stderr.String()))
	}
	dir := strings.TrimSpace(string(b))
	if dir == "" {
		return "", fmt.Errorf("module %s is not downloaded: run `go mod download %s`", module, module)
	}
	return dir, nil
}

// pack writes the archive of the documents below dir. The same documents give the same bytes.
func pack(w io.Writer, dir string) error {
	z := zip.NewWriter(w)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) {
		return flate.NewWriter(w, flate.BestCompression)
	})
	hashes := map[string]string{}
	if err := add(z, hashes, v2Name, filepath.Join(dir, "swagger.json"), v2Protobuf); err != nil {
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
		if err := add(z, hashes, name, file, v3Protobuf); err != nil {
			return err
		}
	}
	index, err := json.Marshal(hashes)
	if err != nil {
		return err
	}
	if err := entry(z, indexName, index); err != nil {
		return err
	}
	return z.Close()
}

func add(z *zip.Writer, hashes map[string]string, name, file string, protobuf func([]byte) ([]byte, error)) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	pb, err := protobuf(compact.Bytes())
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	hashes[name] = fmt.Sprintf("%X", sha512.Sum512(compact.Bytes()))
	if err := entry(z, name+".json", compact.Bytes()); err != nil {
		return err
	}
	return entry(z, name+".pb", pb)
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
