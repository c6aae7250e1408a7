package volume

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// File is one file of a volume.
type File struct {
	Data []byte
	Mode fs.FileMode
	// UID owns the file; nil leaves it to the agent's user.
	UID *int64
}

// Payload is everything in a volume, by slash-separated path relative to it.
type Payload map[string]File

// The names of the two links that make replacing atomic. Users' files never begin with "..".
const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
)

// WriteAtomic makes dir hold exactly the payload. The files are in a folder of their own, with its
// time in its name; ..data links to it, and each top-level name links through ..data. Turning
// that one link replaces all files at once. A payload that is there already is left alone. group,
// if set, may read the files.
func WriteAtomic(dir string, payload Payload, group *int64) error {
	for name := range payload {
		if err := validName(name); err != nil {
			return err
		}
	}
	old, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read link of %s: %w", dir, err)
	}
	if err == nil && same(filepath.Join(dir, old), payload) {
		return sweep(dir, old, payload)
	}
	name, err := writeNew(dir, payload, group)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, newDataLink)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(name, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, dataLink)); err != nil {
		return err
	}
	return sweep(dir, name, payload)
}

func validName(name string) error {
	if name == "" || filepath.IsAbs(name) || filepath.Clean(name) != name {
		return fmt.Errorf("invalid file name %q", name)
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return fmt.Errorf("invalid file name %q: leads out of the volume", name)
		}
	}
	if strings.HasPrefix(name, "..") {
		return fmt.Errorf("invalid file name %q: begins with two dots", name)
	}
	return nil
}

// same tells whether the folder holds exactly the payload.
func same(dir string, payload Payload) bool {
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, ok := payload[filepath.ToSlash(rel)]
		if !ok {
			return fs.ErrInvalid
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !bytes.Equal(data, f.Data) {
			return fs.ErrInvalid
		}
		seen++
		return nil
	})
	return err == nil && seen == len(payload)
}

// writeNew writes the payload into a new folder and returns its name.
func writeNew(dir string, payload Payload, group *int64) (string, error) {
	at, err := os.MkdirTemp(dir, time.Now().UTC().Format("..2006_01_02_15_04_05."))
	if err != nil {
		return "", err
	}
	if err := os.Chmod(at, 0o755); err != nil {
		return "", err
	}
	for name, f := range payload {
		path := filepath.Join(at, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(path, f.Data, 0o600); err != nil {
			return "", err
		}
		if f.UID != nil {
			if err := os.Chown(path, int(*f.UID), -1); err != nil {
				return "", err
			}
		}
		if err := os.Chmod(path, f.Mode.Perm()); err != nil {
			return "", err
		}
	}
	if group != nil {
		if err := giveToGroup(at, *group, true); err != nil {
			return "", err
		}
	}
	return filepath.Base(at), nil
}

// sweep makes the links of the payload's names and removes what is neither theirs nor current.
func sweep(dir, current string, payload Payload) error {
	tops := map[string]bool{}
	for name := range payload {
		top, _, _ := strings.Cut(name, "/")
		tops[top] = true
	}
	for top := range tops {
		link := filepath.Join(dir, top)
		if _, err := os.Readlink(link); err == nil {
			continue
		}
		if err := os.Symlink(filepath.Join(dataLink, top), link); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if tops[e.Name()] || e.Name() == dataLink || e.Name() == current {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
