package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Programs is a directory of unpacked programs.
type Programs struct {
	// Dir is absolute and holds nothing but the programs.
	Dir string
	// Version is the version of the bundle they come from.
	Version string
}

// Path returns where one of the programs is.
func (p Programs) Path(name string) string { return filepath.Join(p.Dir, name) }

// Unpack makes sure that the programs lie in dir/VERSION, complete, and returns where. What is
// there already is used as it is. Several processes may unpack into one directory at a time,
// and a crash half-way leaves nothing that looks complete. Versions that nothing uses any more
// are removed.
func (b *Bundle) Unpack(dir string) (Programs, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Programs{}, fmt.Errorf("unpack programs: %w", err)
	}
	p := Programs{Dir: filepath.Join(dir, b.Version()), Version: b.Version()}
	if !b.complete(p.Dir) {
		if err := b.unpack(dir, p.Dir); err != nil {
			return Programs{}, fmt.Errorf("unpack programs into %s: %w", dir, err)
		}
	}
	if err := prune(dir, p.Version, time.Now()); err != nil {
		return Programs{}, fmt.Errorf("remove old programs from %s: %w", dir, err)
	}
	return p, nil
}

// complete reports whether dir holds every program in its full length. Content is checked when
// it is written; a file that lost its tail in a power cut is found by its length.
func (b *Bundle) complete(dir string) bool {
	for _, p := range b.index.Programs {
		info, err := os.Stat(filepath.Join(dir, p.Name))
		if err != nil || !info.Mode().IsRegular() || info.Size() != p.Size {
			return false
		}
	}
	return true
}

// unpack writes the programs beside their place and then moves them there as a whole.
func (b *Bundle) unpack(dir, target string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(dir, ".unpack-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	var group errgroup.Group
	for _, p := range b.index.Programs {
		group.Go(func() error { return b.write(p, work) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	err = os.Rename(work, target)
	if err == nil {
		return nil
	}
	if !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	if b.complete(target) {
		return nil // another process was quicker
	}
	// What is there is damaged. Changing places keeps whoever looks from finding nothing.
	return unix.Renameat2(unix.AT_FDCWD, work, unix.AT_FDCWD, target, unix.RENAME_EXCHANGE)
}

// write unpacks one program and checks that it is what the index says.
func (b *Bundle) write(p Program, dir string) error {
	packed, err := b.files.Open(p.Name + ".zst")
	if err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	defer func() { _ = packed.Close() }()
	reader, err := zstd.NewReader(packed, zstd.WithDecoderConcurrency(1))
	if err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	defer reader.Close()
	out, err := os.OpenFile(filepath.Join(dir, p.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	hash := sha256.New()
	// One byte more than it should have shows a program that is too long.
	n, err := io.Copy(io.MultiWriter(out, hash), io.LimitReader(reader, p.Size+1))
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	if n != p.Size || hex.EncodeToString(hash.Sum(nil)) != p.SHA256 {
		return fmt.Errorf("%s: the packed program is damaged", p.Name)
	}
	return nil
}

// keepFor is how long an unused version is kept, because a process that has just unpacked it
// may be about to start it.
const keepFor = time.Hour

// prune removes versions, and remains of unpackings that did not finish, that no process runs
// from. The shims of older pods do, for as long as those pods last, whatever the version of the
// server has become meanwhile.
func prune(dir, current string, now time.Time) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var old []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() || e.Name() == current || now.Sub(info.ModTime()) < keepFor {
			continue
		}
		old = append(old, filepath.Join(dir, e.Name()))
	}
	if len(old) == 0 {
		return nil
	}
	used, err := running()
	if err != nil {
		return err
	}
	for _, o := range old {
		if !used[o] {
			if err := os.RemoveAll(o); err != nil {
				return err
			}
		}
	}
	return nil
}

// running returns the directories that the programs of all processes lie in.
func running() (map[string]bool, error) {
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return nil, err
	}
	dirs := make(map[string]bool, len(links))
	for _, link := range links {
		// Kernel threads have none, and processes end while we look.
		if exe, err := os.Readlink(link); err == nil {
			dirs[filepath.Dir(exe)] = true
		}
	}
	return dirs, nil
}
