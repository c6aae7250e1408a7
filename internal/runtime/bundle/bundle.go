// Package bundle carries the programs that Barque starts beside itself: containerd, its shim,
// runc, and the CNI plugin. They are small programs of their own because they start often, or
// live as long as a pod does, and must go on while the server restarts. They are built by
// mkbundle, compressed, embedded in the one binary that is shipped, and unpacked on the machine
// at start.
package bundle

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
)

// The names of the programs.
const (
	Containerd = "barque-containerd"
	// Shim is cmd/barque-shim. It has the name by which containerd looks for the shim of
	// containers that an earlier containerd started.
	Shim = "containerd-shim-runc-v2"
	Runc = "runc"
	CNI  = "barque-cni"
)

// Names lists the programs that a bundle must hold.
func Names() []string { return []string{Containerd, Shim, Runc, CNI} }

// ErrMissing says that this binary was built without the programs.
var ErrMissing = errors.New("this binary was built without the programs that run containers: build it with `make`, or use a container runtime of the machine's with --container-runtime-endpoint")

//go:embed programs
var embedded embed.FS

// IndexFile is the name of the file that lists a bundle's programs, as an [Index] in JSON.
const IndexFile = "index.json"

// Index lists what a bundle holds.
type Index struct {
	Programs []Program `json:"programs"`
}

// Program is one program of a bundle, which holds it in the file NAME.zst.
type Program struct {
	Name string `json:"name"`
	// Size is in bytes, unpacked.
	Size int64 `json:"size"`
	// SHA256 is of the unpacked program, in hexadecimal.
	SHA256 string `json:"sha256"`
}

// Version names the content of a bundle: 16 hexadecimal digits that differ when a program does.
func (x Index) Version() string {
	h := sha256.New()
	for _, p := range x.Programs {
		fmt.Fprintf(h, "%s %s\n", p.Name, p.SHA256)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// check says what is wrong with an index.
func (x Index) check() error {
	for i, p := range x.Programs {
		if p.Name == "" || p.Name != filepath.Base(p.Name) || p.Size <= 0 || len(p.SHA256) != 2*sha256.Size {
			return fmt.Errorf("entry %d, %q, is damaged", i, p.Name)
		}
	}
	for _, name := range Names() {
		if !slices.ContainsFunc(x.Programs, func(p Program) bool { return p.Name == name }) {
			return fmt.Errorf("%s is not in it", name)
		}
	}
	return nil
}

// Bundle is a set of programs, packed. It is read-only and safe for concurrent use.
type Bundle struct {
	files fs.FS
	index Index
}

// Open returns the bundle embedded in this binary, or [ErrMissing].
func Open() (*Bundle, error) {
	files, err := fs.Sub(embedded, "programs")
	if err != nil {
		return nil, fmt.Errorf("open embedded programs: %w", err)
	}
	return OpenFS(files)
}

// OpenFS returns the bundle that mkbundle wrote into a directory.
func OpenFS(files fs.FS) (*Bundle, error) {
	data, err := fs.ReadFile(files, IndexFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrMissing
	}
	if err != nil {
		return nil, fmt.Errorf("open embedded programs: %w", err)
	}
	var index Index
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&index); err != nil {
		return nil, fmt.Errorf("open embedded programs: %s: %w", IndexFile, err)
	}
	if err := index.check(); err != nil {
		return nil, fmt.Errorf("open embedded programs: %s: %w", IndexFile, err)
	}
	return &Bundle{files: files, index: index}, nil
}

// Version names the bundle's content.
func (b *Bundle) Version() string { return b.index.Version() }
