package testimages

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"barque.dev/internal/runtime/images"
)

// debian makes root file systems of Debian packages, by apt's own means: whatever apt is set up
// to fetch from is used, and nothing is installed on this machine.
type debian struct {
	// dir keeps the packages, and the state of an apt to which nothing is installed.
	dir string
}

// merged are the directories that live below /usr, since Debian's packages still name both.
var merged = []string{"bin", "sbin", "lib", "lib64"}

// useless are the parts of packages that no program reads.
var useless = []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian", "usr/share/bug"}

// install matches a line of `apt-get --simulate install`: package, version, architecture.
var install = regexp.MustCompile(`(?m)^Inst (\S+) \((\S+) .*\[(\S+)\]`)

// closure names the files of the packages and of all that they depend on, in the order that they
// are to be unpacked, and fetches them.
func (d debian) closure(ctx context.Context, packages []string) ([]string, error) {
	if err := os.MkdirAll(filepath.Join(d.dir, "archives", "partial"), 0o755); err != nil {
		return nil, fmt.Errorf("make a folder for packages: %w", err)
	}
	if err := os.WriteFile(d.status(), nil, 0o644); err != nil {
		return nil, fmt.Errorf("make apt's state: %w", err)
	}
	plan, err := d.apt(ctx, "--simulate", packages)
	if err != nil {
		// A machine that never asked knows no packages.
		if out, update := exec.CommandContext(ctx, "apt-get", "update").CombinedOutput(); update != nil {
			return nil, errors.Join(err, fmt.Errorf("apt-get update: %w: %s", update, out))
		}
		if plan, err = d.apt(ctx, "--simulate", packages); err != nil {
			return nil, err
		}
	}
	if _, err := d.apt(ctx, "--download-only", packages); err != nil {
		return nil, err
	}
	return d.files(plan)
}

func (d debian) status() string { return filepath.Join(d.dir, "status") }

// files reads apt's plan.
func (d debian) files(plan []byte) ([]string, error) {
	var files []string
	for _, m := range install.FindAllSubmatch(plan, -1) {
		name := fmt.Sprintf("%s_%s_%s.deb", m[1], strings.ReplaceAll(string(m[2]), ":", "%3a"), m[3])
		files = append(files, filepath.Join(d.dir, "archives", name))
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("apt-get's plan names no packages: %s", plan)
	}
	return files, nil
}

// apt runs `apt-get install` as on a machine where nothing is installed.
func (d debian) apt(ctx context.Context, mode string, packages []string) ([]byte, error) {
	args := []string{
		"-y", "-q", mode, "-o", "Dir::State::status=" + d.status(), "-o", "Dir::Cache::archives=" + filepath.Join(d.dir, "archives"),
		"-o", "APT::Install-Recommends=false", "-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=true", "install",
	}
	out, err := exec.CommandContext(ctx, "apt-get", append(args, packages...)...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("apt-get install %s %s: %w: %s", mode, strings.Join(packages, " "), err, out)
	}
	return out, nil
}

// layer unpacks package files.
func (d debian) layer(ctx context.Context, files []string) (images.Layer, error) {
	root, err := os.MkdirTemp(d.dir, "root-")
	if err != nil {
		return nil, fmt.Errorf("make a root file system: %w", err)
	}
	defer func() { _ = os.RemoveAll(root) }()
	for _, name := range merged {
		if err := errors.Join(os.MkdirAll(filepath.Join(root, "usr", name), 0o755), os.Symlink("usr/"+name, filepath.Join(root, name))); err != nil {
			return nil, fmt.Errorf("make a root file system: %w", err)
		}
	}
	for _, file := range files {
		if err := unpack(ctx, file, root); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", file, err)
		}
	}
	for _, name := range useless {
		if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
			return nil, fmt.Errorf("thin out a root file system: %w", err)
		}
	}
	return images.Files(os.DirFS(root))
}

// file reads one file of one package, without what the package depends on.
func (d debian) file(ctx context.Context, name, path string) ([]byte, error) {
	files, err := d.closure(ctx, []string{name})
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(files, func(f string) bool { return strings.HasPrefix(filepath.Base(f), name+"_") })
	if i < 0 {
		return nil, fmt.Errorf("apt-get's plan for %s lacks it", name)
	}
	layer, err := d.layer(ctx, files[i:i+1])
	if err != nil {
		return nil, err
	}
	for _, f := range layer {
		if f.Path == path {
			return f.Data, nil
		}
	}
	return nil, fmt.Errorf("the package %s has no %s", name, path)
}

// unpack unpacks one package. tar has to be told not to put directories in the place of the links
// to merged ones, which dpkg-deb's own way of calling it does not.
func unpack(ctx context.Context, file, root string) error {
	read := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", file)
	write := exec.CommandContext(ctx, "tar", "-x", "-p", "--keep-directory-symlink", "-C", root)
	var reading, writing bytes.Buffer
	read.Stderr, write.Stderr = &reading, &writing
	pipe, err := read.StdoutPipe()
	if err != nil {
		return err
	}
	write.Stdin = pipe
	if err := read.Start(); err != nil {
		return err
	}
	written := write.Run()
	if err := errors.Join(written, read.Wait()); err != nil {
		return fmt.Errorf("%w: %s%s", err, reading.Bytes(), writing.Bytes())
	}
	return nil
}

// above is the layer that adds packages to a root file system of others, whose package files and layer
// are given. It may be empty.
func (d debian) above(ctx context.Context, below []string, lower images.Layer, packages []string) (images.Layer, error) {
	all, err := d.closure(ctx, packages)
	if err != nil {
		return nil, err
	}
	more := slices.DeleteFunc(all, func(file string) bool { return slices.Contains(below, file) })
	if len(more) == 0 {
		return nil, nil
	}
	upper, err := d.layer(ctx, more)
	return withoutDirectories(upper, lower), err
}

// withoutDirectories leaves out the directories and links that the layer below has: they would
// hide nothing, but the owner and mode of what is below shall stay.
func withoutDirectories(upper, lower images.Layer) images.Layer {
	has := map[string]fs.FileMode{}
	for _, f := range lower {
		has[f.Path] = f.Mode.Type()
	}
	return slices.DeleteFunc(upper, func(f images.File) bool {
		below, ok := has[f.Path]
		return ok && f.Mode.Type() != 0 && below == f.Mode.Type()
	})
}
