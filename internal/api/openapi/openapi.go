// Package openapi holds the OpenAPI documents of the built-in kinds, version 2 and 3, in JSON
// and in protobuf.
//
// Building them when the server runs costs time and tens of megabytes, and the answer is always
// the same; so a build step ([barque.dev/internal/api/openapi/pack]) takes the documents that
// Kubernetes publishes with its module and packs them into one archive inside the binary. Each
// document stays compressed there, is unpacked for the one request that wants it, and is handed
// out as it stands, without unpacking, to a client that takes gzip. Nothing is kept in memory.
package openapi

import (
	"archive/zip"
	"embed"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sort"
)

//go:generate go run ./pack -o packed/specs.zip

//go:embed packed
var packed embed.FS

// ErrMissing says that the binary was built without the packed documents.
var ErrMissing = errors.New("this binary was built without the OpenAPI documents: run `go generate ./internal/api/openapi` and build again")

// Format is an encoding of a document.
type Format string

// The two encodings of each document.
const (
	JSON     Format = "json"
	Protobuf Format = "pb"
)

// V2 is the name of the one document of version 2. The names of version 3 documents are the
// paths they describe, such as "api/v1" and "apis/apps/v1".
const V2 = "swagger"

// Specs are the packed documents. It is safe for concurrent use.
type Specs struct {
	files  map[string]*zip.File
	hashes map[string]string
	v3     []string
}

// A Document is one packed document in one format.
type Document struct {
	file *zip.File
	hash string
}

// Open reads the directory of the documents that are inside the binary; ErrMissing when there are none.
func Open() (*Specs, error) {
	file, err := packed.Open("packed/specs.zip")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("open OpenAPI documents: %w", err)
	}
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("open OpenAPI documents: %w", err)
	}
	// Read where they are, in the binary: a copy would be megabytes that last for good.
	data, ok := file.(io.ReaderAt)
	if !ok {
		return nil, fmt.Errorf("open OpenAPI documents: %T can't be read at an offset", file)
	}
	return read(data, info.Size())
}

func read(data io.ReaderAt, size int64) (*Specs, error) {
	archive, err := zip.NewReader(data, size)
	if err != nil {
		return nil, fmt.Errorf("open OpenAPI documents: %w", err)
	}
	s := &Specs{files: make(map[string]*zip.File, len(archive.File))}
	for _, f := range archive.File {
		s.files[f.Name] = f
	}
	index, err := archive.Open(IndexName)
	if err != nil {
		return nil, fmt.Errorf("open OpenAPI documents: index: %w", err)
	}
	defer index.Close()
	if err := json.NewDecoder(index).Decode(&s.hashes); err != nil {
		return nil, fmt.Errorf("open OpenAPI documents: index: %w", err)
	}
	for name := range s.hashes {
		if name != V2 {
			s.v3 = append(s.v3, name)
		}
	}
	sort.Strings(s.v3)
	return s, nil
}

// IndexName is the archive's entry that maps each document's name to its hash.
const IndexName = "index.json"

// Names lists the version 3 documents, sorted. The caller must not change the slice.
func (s *Specs) Names() []string { return s.v3 }

// Hash is the hexadecimal SHA-512 of a document's JSON, by which clients cache it; "" when
// there is no such document.
func (s *Specs) Hash(name string) string { return s.hashes[name] }

// Document finds a document; false when there is none.
func (s *Specs) Document(name string, format Format) (Document, bool) {
	f, ok := s.files[name+"."+string(format)]
	return Document{file: f, hash: s.hashes[name]}, ok
}

// Hash is the document's hash, the same for both formats.
func (d Document) Hash() string { return d.hash }

// Size is the length of the unpacked document in bytes.
func (d Document) Size() int64 { return int64(d.file.UncompressedSize64) }

// WriteTo unpacks the document into w.
func (d Document) WriteTo(w io.Writer) (int64, error) {
	r, err := d.file.Open()
	if err != nil {
		return 0, fmt.Errorf("unpack %s: %w", d.file.Name, err)
	}
	defer r.Close()
	n, err := io.Copy(w, r)
	if err != nil {
		return n, fmt.Errorf("unpack %s: %w", d.file.Name, err)
	}
	return n, nil
}

// gzipHeader starts a gzip member (RFC 1952): deflate, no flags, no time, unknown system.
var gzipHeader = [10]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255}

// GzipSize is the length in bytes of what WriteGzip writes.
func (d Document) GzipSize() int64 {
	return int64(len(gzipHeader)) + int64(d.file.CompressedSize64) + 8
}

// WriteGzip writes the document as one gzip member, without unpacking it: a zip entry and a gzip member
// hold the same deflate stream and the same checksum.
func (d Document) WriteGzip(w io.Writer) error {
	raw, err := d.file.OpenRaw()
	if err != nil {
		return fmt.Errorf("read packed %s: %w", d.file.Name, err)
	}
	if _, err := w.Write(gzipHeader[:]); err != nil {
		return err
	}
	if _, err := io.Copy(w, raw); err != nil {
		return fmt.Errorf("read packed %s: %w", d.file.Name, err)
	}
	var trailer [8]byte
	binary.LittleEndian.PutUint32(trailer[0:], d.file.CRC32)
	binary.LittleEndian.PutUint32(trailer[4:], uint32(d.file.UncompressedSize64))
	_, err = w.Write(trailer[:])
	return err
}
