package snapshot

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"

	"barque.dev/internal/store/etcd"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrDamaged: the file is not what was written.
	ErrDamaged = errors.New("the snapshot is damaged")
	// ErrForeign: it is a snapshot of etcd's, or nothing that is known.
	ErrForeign = errors.New("it is no snapshot of Barque's")
)

// Contents are what a snapshot holds.
type Contents struct {
	// Manifest is nil for a snapshot that etcd's tools made.
	Manifest *Manifest
	// Keys are the cluster's, a pki.Bundle in JSON; nil for a snapshot that etcd's tools made.
	Keys json.RawMessage
	// Database is the file that etcd's database was unpacked to.
	Database string
	// Info is what was found in it.
	Info etcd.DatabaseInfo
}

// Unpack reads the snapshot in a file, compares it with its checksums, writes its database into a directory that
// is there, and checks that by opening it as etcd does. visit is given every key with its value; it may be nil.
// The process should be one that can be missed: see [etcd.CheckDatabase].
func Unpack(ctx context.Context, path, dir string, visit func(key, value []byte) error) (*Contents, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the snapshot: %w", err)
	}
	defer func() { _ = f.Close() }()
	c := &Contents{Database: filepath.Join(dir, "db")}
	kind, err := kindOf(f)
	switch {
	case err != nil:
	case kind == kindArchive:
		err = c.unpackArchive(ctx, f)
	case kind == kindDatabase:
		err = c.unpackDatabase(ctx, f)
	case kind == kindZip:
		err = c.unpackZip(ctx, f)
	default:
		err = advice[kind]
	}
	if err == nil {
		c.Info, err = etcd.CheckDatabase(ctx, c.Database, visit)
	}
	if err == nil && c.Manifest != nil && (c.Info.Revision != c.Manifest.Revision || c.Info.Keys != c.Manifest.Keys) {
		err = fmt.Errorf("%w: there are %d keys at revision %d in it, and there were %d at %d when it was taken", ErrDamaged,
			c.Info.Keys, c.Info.Revision, c.Manifest.Keys, c.Manifest.Revision)
	}
	if err != nil {
		_ = os.Remove(c.Database)
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return c, nil
}

// kind is what a file is, by its beginning.
type kind int

const (
	kindUnknown kind = iota
	kindArchive
	kindDatabase
	kindZip
	kindGzip
)

var advice = map[kind]error{
	kindUnknown: fmt.Errorf("%w, and none of etcd's: name a file that `barque snapshot save`, `etcdctl snapshot save` or `k3s etcd-snapshot` wrote", ErrForeign),
	kindGzip:    fmt.Errorf("%w, but compressed: name the file that gunzip makes of it", ErrForeign),
}

// kindOf looks at the beginning of a file, and goes back to it.
func kindOf(f *os.File) (kind, error) {
	head := make([]byte, headBytes)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return kindUnknown, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return kindUnknown, err
	}
	return kindOfHead(head[:n]), nil
}

// headBytes is how much of a file tells what it is.
const headBytes = 512

func kindOfHead(head []byte) kind {
	at := func(offset int, magic string) bool {
		return len(head) > offset && bytes.HasPrefix(head[offset:], []byte(magic))
	}
	switch {
	case at(257, "ustar"):
		return kindArchive
	case at(16, "\xed\xda\x0c\xed"):
		return kindDatabase
	case at(0, "PK\x03\x04"):
		return kindZip
	case at(0, "\x1f\x8b"):
		return kindGzip
	}
	return kindUnknown
}

// unpackArchive reads what Barque wrote.
func (c *Contents) unpackArchive(ctx context.Context, r io.Reader) error {
	small, found := map[string][]byte{}, map[string]string{}
	err := eachFile(r, func(name string, content io.Reader) (err error) {
		sum := sha256.New()
		content = io.TeeReader(content, sum)
		if name == databaseFile {
			err = c.takeDatabase(ctx, content)
		} else {
			small[name], err = io.ReadAll(content)
		}
		found[name] = fmt.Sprintf("%x", sum.Sum(nil))
		return err
	})
	if err != nil {
		return err
	}
	sums, err := parseSums(small[sumsFile])
	if err != nil {
		return err
	}
	for _, name := range []string{manifestFile, keysFile, databaseFile} {
		if found[name] == "" || found[name] != sums[name] {
			return fmt.Errorf("%w: %s in it is not what was written", ErrDamaged, name)
		}
	}
	m, err := parseManifest(small[manifestFile])
	if err != nil {
		return err
	}
	c.Manifest, c.Keys = &m, small[keysFile]
	return nil
}

// unpackDatabase reads what etcd's tools wrote.
func (c *Contents) unpackDatabase(ctx context.Context, f *os.File) error {
	stat, err := f.Stat()
	if err != nil {
		return err
	}
	if err := checkSize(stat.Size()); err != nil {
		return err
	}
	return c.takeDatabase(ctx, f)
}

// checkSize tells by its size whether a snapshot of etcd's has its checksum, as etcd's tools tell: a database is pages of a
// multiple of 512 bytes.
func checkSize(size int64) error {
	if size%512 != sha256.Size {
		return fmt.Errorf("%w: it has no checksum, as a file of etcd's that was copied, or a snapshot that was cut; take it from etcd with `etcdctl snapshot save`", ErrDamaged)
	}
	return nil
}

// unpackZip reads what k3s wrote with --etcd-snapshot-compress: a zip with etcd's snapshot in it and nothing else.
func (c *Contents) unpackZip(ctx context.Context, f *os.File) error {
	stat, err := f.Stat()
	if err != nil {
		return err
	}
	in, err := zip.NewReader(f, stat.Size())
	if err != nil {
		return fmt.Errorf("%w: it begins as a zip, and does not end as one: %w", ErrDamaged, err)
	}
	if len(in.File) != 1 {
		return fmt.Errorf("%w, but a zip with %d files in it: unpack it, and name the snapshot", ErrForeign, len(in.File))
	}
	content, err := in.File[0].Open()
	if err != nil {
		return fmt.Errorf("%w: %s in it can't be read: %w", ErrDamaged, in.File[0].Name, err)
	}
	defer func() { _ = content.Close() }()
	head := make([]byte, headBytes)
	n, err := io.ReadFull(content, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %s in it can't be read: %w", ErrDamaged, in.File[0].Name, err)
	}
	if kindOfHead(head[:n]) != kindDatabase {
		return fmt.Errorf("%w, but a zip with something else in it than a snapshot of etcd's: unpack it, and name the snapshot", ErrForeign)
	}
	if err := checkSize(int64(in.File[0].UncompressedSize64)); err != nil {
		return err
	}
	err = c.takeDatabase(ctx, io.MultiReader(bytes.NewReader(head[:n]), content))
	if errors.Is(err, zip.ErrChecksum) || errors.Is(err, zip.ErrFormat) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// takeDatabase writes the database without its checksum, which it has to match. What may be damaged is not
// opened before.
func (c *Contents) takeDatabase(ctx context.Context, r io.Reader) (err error) {
	out, err := os.OpenFile(c.Database, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	return copyDatabase(&steadyWriter{ctx: ctx, f: out}, r)
}

// copyDatabase writes on a database without its checksum, which it has to match.
func copyDatabase(out io.Writer, r io.Reader) error {
	w := &sumWriter{out: out, sum: sha256.New()}
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	if !bytes.Equal(w.held, w.sum.Sum(nil)) {
		return fmt.Errorf("%w: the checksum of etcd's database is wrong", ErrDamaged)
	}
	return nil
}

// sumWriter writes on all but the last bytes, which are the checksum of those.
type sumWriter struct {
	out  io.Writer
	sum  hash.Hash
	held []byte // the last that came, at most a checksum
}

func (w *sumWriter) Write(b []byte) (int, error) {
	all := append(w.held, b...)
	n := max(0, len(all)-sha256.Size)
	if _, err := io.MultiWriter(w.out, w.sum).Write(all[:n]); err != nil {
		return 0, err
	}
	w.held = append([]byte(nil), all[n:]...)
	return len(b), nil
}
