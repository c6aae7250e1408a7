package snapshot

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"barque.dev/internal/cluster/join"
)

// The files in an archive.
const (
	manifestFile = "manifest.json"
	keysFile     = "keys.json"
	databaseFile = "etcd.db"
	sumsFile     = "SHA256SUMS"
)

// manifestFormat is that of the archives that this version writes, and the newest that it reads.
const manifestFormat = 1

// A Manifest says what a snapshot is of.
type Manifest struct {
	Format int `json:"format"`
	// Time is when it was taken, by the clock of Server.
	Time   time.Time `json:"time"`
	Server string    `json:"server"`
	// Cluster is the hash of the cluster's authority.
	Cluster string `json:"cluster"`
	// Version is that of the server, Kubernetes that of the API which it serves.
	Version    string `json:"version"`
	Kubernetes string `json:"kubernetes"`
	Scheduled  bool   `json:"scheduled,omitempty"`
	// Revision is the newest of etcd's in it, Compacted the one that its history begins after.
	Revision  int64 `json:"revision"`
	Compacted int64 `json:"compacted"`
	// Keys are those that etcd had at Revision.
	Keys int64 `json:"keys"`
	// Behind: the server could not tell whether it had all that was acknowledged.
	Behind bool `json:"behind,omitempty"`
	// Facts are what a server has to know of the cluster beside its keys.
	Facts join.Facts `json:"facts"`
}

// Name is that of the snapshot's file.
func (m Manifest) Name() Name {
	return Name{
		Time: m.Time.UTC().Truncate(time.Second), Cluster: m.Cluster[:min(len(m.Cluster), clusterDigits)],
		Revision: m.Revision, Scheduled: m.Scheduled, Server: shortServer(m.Server),
	}
}

// A Database is etcd's snapshot, which is written once.
type Database interface {
	io.WriterTo
	// Size is how many bytes that will be.
	Size() int64
}

// write writes an archive.
func write(w io.Writer, m Manifest, keys json.RawMessage, db Database) error {
	manifest, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the manifest: %w", err)
	}
	out, sums := tar.NewWriter(w), strings.Builder{}
	add := func(name string, size int64, content io.WriterTo) error {
		header := &tar.Header{Name: name, Mode: 0o600, Size: size, ModTime: m.Time.Truncate(time.Second), Format: tar.FormatPAX}
		if size < 1<<33 { // what every tar knows
			header.Format = tar.FormatUSTAR
		}
		if err := out.WriteHeader(header); err != nil {
			return err
		}
		sum := sha256.New()
		if _, err := content.WriteTo(io.MultiWriter(out, sum)); err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sum.Sum(nil), name)
		return nil
	}
	for _, file := range []struct {
		name    string
		size    int64
		content io.WriterTo
	}{
		{manifestFile, int64(len(manifest)), bytes.NewReader(manifest)},
		{keysFile, int64(len(keys)), bytes.NewReader(keys)},
		{databaseFile, db.Size(), db},
	} {
		if err := add(file.name, file.size, file.content); err != nil {
			return fmt.Errorf("write %s: %w", file.name, err)
		}
	}
	text := sums.String()
	if err := add(sumsFile, int64(len(text)), strings.NewReader(text)); err != nil {
		return fmt.Errorf("write %s: %w", sumsFile, err)
	}
	return out.Close()
}

// ReadManifest reads what a snapshot says of itself, without checking the rest. ErrForeign says that it
// is none of Barque's.
func ReadManifest(path string) (Manifest, error) {
	f, err := os.Open(path)
	if err != nil {
		return Manifest{}, err
	}
	defer func() { _ = f.Close() }()
	if kind, err := kindOf(f); err != nil || kind != kindArchive {
		return Manifest{}, errors.Join(err, ErrForeign)
	}
	var m Manifest
	err = eachFile(f, func(name string, content io.Reader) error {
		if name != manifestFile {
			return fmt.Errorf("%w: it begins with %s", ErrDamaged, name)
		}
		text, err := io.ReadAll(content)
		if err == nil {
			m, err = parseManifest(text)
		}
		return errors.Join(err, errEnough)
	})
	if errors.Is(err, errEnough) && m.Format != 0 {
		err = nil
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("read %s: %w", path, err)
	}
	return m, nil
}

var errEnough = errors.New("nothing more has to be read")

func parseManifest(text []byte) (Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return Manifest{}, fmt.Errorf("%w: its manifest: %w", ErrDamaged, err)
	}
	if m.Format > manifestFormat {
		return Manifest{}, fmt.Errorf("the snapshot is of a newer Barque (%s): use that, or a newer one", m.Version)
	}
	if m.Format < 1 || m.Revision < 1 || m.Cluster == "" {
		return Manifest{}, fmt.Errorf("%w: its manifest lacks what it is of", ErrDamaged)
	}
	return m, nil
}

// eachFile reads an archive from its beginning.
func eachFile(r io.Reader, visit func(name string, content io.Reader) error) error {
	in := tar.NewReader(r)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		if header.Name != databaseFile && header.Size > maxSmall {
			return fmt.Errorf("%w: %s in it is too large", ErrDamaged, header.Name)
		}
		if err := visit(header.Name, in); err != nil {
			return err
		}
	}
}

// maxSmall bounds the files beside the database, in bytes.
const maxSmall = 4 << 20

// parseSums reads the checksums of the other files, by name.
func parseSums(text []byte) (map[string]string, error) {
	sums := map[string]string{}
	for line := range strings.Lines(string(text)) {
		sum, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if raw, err := hex.DecodeString(sum); !ok || err != nil || len(raw) != sha256.Size {
			return nil, fmt.Errorf("%w: its checksums can't be read", ErrDamaged)
		}
		sums[name] = sum
	}
	return sums, nil
}
