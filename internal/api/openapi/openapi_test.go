package openapi

import (
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	openapiv2 "github.com/google/gnostic-models/openapiv2"
	openapiv3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
)

func TestDocumentsRoundTrip(t *testing.T) {
	specs, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	names := append([]string{V2}, specs.Names()...)
	if len(names) < 50 {
		t.Fatalf("only %d documents", len(names))
	}
	for _, name := range names {
		var contents [2][]byte
		for i, format := range []Format{JSON, Protobuf} {
			doc, ok := specs.Document(name, format)
			if !ok {
				t.Fatalf("%s.%s is missing", name, format)
			}
			var plain, zipped bytes.Buffer
			if _, err := doc.WriteTo(&plain); err != nil {
				t.Fatal(err)
			}
			if err := doc.WriteGzip(&zipped); err != nil {
				t.Fatal(err)
			}
			if int64(plain.Len()) != doc.Size() || int64(zipped.Len()) != doc.GzipSize() {
				t.Errorf("%s.%s: sizes %d and %d, announced %d and %d", name, format, plain.Len(), zipped.Len(), doc.Size(), doc.GzipSize())
			}
			r, err := gzip.NewReader(&zipped)
			if err != nil {
				t.Fatal(err)
			}
			unzipped, err := io.ReadAll(r) // checks the checksum and length in the trailer
			if err != nil {
				t.Fatalf("%s.%s: %v", name, format, err)
			}
			if !bytes.Equal(unzipped, plain.Bytes()) {
				t.Errorf("%s.%s: gzip and plain differ", name, format)
			}
			contents[i] = unzipped
		}
		if !json.Valid(contents[0]) {
			t.Errorf("%s: not JSON", name)
		}
		if got := fmt.Sprintf("%X", sha512.Sum512(contents[0])); got != specs.Hash(name) {
			t.Errorf("%s: hash %s, want %s", name, specs.Hash(name), got)
		}
		var message proto.Message = new(openapiv3.Document)
		if name == V2 {
			message = new(openapiv2.Document)
		}
		if err := proto.Unmarshal(contents[1], message); err != nil {
			t.Errorf("%s: protobuf: %v", name, err)
		}
	}
}

func TestDocumentNames(t *testing.T) {
	specs, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"api", "apis", "api/v1", "apis/apps/v1", "apis/rbac.authorization.k8s.io/v1", "version"} {
		if specs.Hash(name) == "" {
			t.Errorf("no document %q among %v", name, specs.Names())
		}
	}
	if _, ok := specs.Document("apis/nothing/v1", JSON); ok {
		t.Error("found a document that does not exist")
	}
}

func TestReadRejectsGarbage(t *testing.T) {
	if _, err := read(strings.NewReader("not an archive"), 14); err == nil {
		t.Error("no error")
	}
}
