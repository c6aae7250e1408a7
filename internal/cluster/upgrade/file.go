package upgrade

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// put makes the file at path hold what fill writes: as a whole and on the disk, or not at all. check looks at the complete file
// before it gets its name; it may be nil.
func put(path string, mode os.FileMode, fill func(io.Writer) error, check func(part string) error) error {
	part, err := os.CreateTemp(filepath.Dir(path), ".barque-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(part.Name()) }()
	err = fill(part)
	if err := errors.Join(err, part.Chmod(mode), part.Sync(), part.Close()); err != nil {
		return err
	}
	if check != nil {
		if err := check(part.Name()); err != nil {
			return err
		}
	}
	return rename(part.Name(), path)
}

// rename gives a file another name in its directory, on the disk.
func rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// copyProgram copies a program.
func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	return put(to, 0o755, func(w io.Writer) error {
		_, err := io.Copy(w, in)
		return err
	}, nil)
}

// SumOf is the SHA-256 of a file, in hex.
func SumOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read the program: %w", err)
	}
	defer func() { _ = f.Close() }()
	hash := sha256.New()
	if _, err := io.Copy(hash, f); err != nil {
		return "", fmt.Errorf("read the program %s: %w", path, err)
	}
	return hex.EncodeToString(hash.Sum(nil)), nil
}

// ProgramFile is the file that this process was started from. It is an error when that had been removed by then.
func ProgramFile() (string, error) {
	path, err := os.Executable()
	if gone, ok := strings.CutSuffix(path, " (deleted)"); ok && err == nil {
		err = fmt.Errorf("%s was removed when this process started", gone)
	}
	return path, err
}
