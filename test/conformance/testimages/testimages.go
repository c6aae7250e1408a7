// Package testimages makes the images that upstream's specs run, without a registry: from Debian
// packages, and from Go programs of the modules that this one requires.
//
// The images have upstream's names and do what upstream's do, but are not the same bytes: their
// base is the Debian of this machine, where some of upstream's have Alpine.
package testimages

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"barque.dev/internal/runtime/images"
	"barque.dev/test/conformance/programs"
)

// Archive is a file with images.
type Archive struct {
	// File is an OCI image archive. Its name changes with what should be in it.
	File string
	// Missing are the names that no image could be made for.
	Missing []string
}

// Make makes the named images, or finds them made, in the folder dir.
func Make(ctx context.Context, dir string, names []string, progress func(string, ...any)) (Archive, error) {
	m := maker{dir: dir, debian: debian{dir: filepath.Join(dir, "debian")}, above: map[string]images.Layer{}, progress: progress}
	var err error
	if m.module, err = programs.Dir(ctx); err != nil {
		return Archive{}, err
	}
	wanted, missing := choose(names)
	key, err := m.key(ctx, wanted)
	if err != nil {
		return Archive{}, err
	}
	a := Archive{File: filepath.Join(dir, "images-"+key+".tar"), Missing: missing}
	if _, err := os.Stat(a.File); err == nil {
		return a, nil
	}
	var made []images.Image
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		progress("making the image %s", name)
		image, err := m.image(ctx, name)
		if err != nil {
			return Archive{}, fmt.Errorf("make image %s: %w", name, err)
		}
		made = append(made, tagged(image, wanted[name])...)
	}
	return a, write(a.File, made)
}

// choose sorts image names by the recipe that makes them.
func choose(names []string) (wanted map[string][]string, missing []string) {
	known := recipes()
	wanted = map[string][]string{}
	for _, name := range names {
		short := Short(name)
		// Other registries stand for what cannot be pulled, which a spec may want to see fail.
		if _, ok := known[short]; strings.HasPrefix(name, Registry+"/") && (ok || short == pause) {
			wanted[short] = append(wanted[short], name)
		} else {
			missing = append(missing, name)
		}
	}
	return wanted, missing
}

// Registry is where the names of images that are to exist begin.
const Registry = "registry.k8s.io"

// pause is made by the product's own code; it has no recipe.
const pause = "pause"

// Short is an image's name without registry and tag.
func Short(name string) string {
	short, _, _ := strings.Cut(path.Base(name), ":")
	return short
}

// maker makes images, each set of packages once.
type maker struct {
	dir, module string
	debian      debian
	// baseFiles are the packages of the layer base, and above the layers on it by their packages.
	baseFiles []string
	base      images.Layer
	above     map[string]images.Layer
	progress  func(string, ...any)
}

// key changes when other images have to be made.
func (m *maker) key(ctx context.Context, wanted map[string][]string) (string, error) {
	version, err := programs.Version(ctx)
	if err != nil {
		return "", err
	}
	hash := sha256.New()
	_, _ = fmt.Fprintln(hash, "one image a name", version, base, merged, useless)
	known := recipes()
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		r := known[name]
		// Maps are printed in the order of their keys.
		_, _ = fmt.Fprintln(hash, name, wanted[name], r.debian, r.programs, r.setuid, r.upstream)
		if err := json.NewEncoder(hash).Encode([]any{r.files, r.config}); err != nil {
			return "", fmt.Errorf("digest of recipe %s: %w", name, err)
		}
	}
	return fmt.Sprintf("%.8x", hash.Sum(nil)), nil
}

// tagged are an image under its names. Each has an identity of its own, as upstream's have: a node
// tells by it which image a container runs.
func tagged(image images.Image, names []string) []images.Image {
	var all []images.Image
	for _, name := range names {
		named := image
		named.Names = []string{name}
		named.Config.Labels = map[string]string{"org.opencontainers.image.ref.name": name}
		all = append(all, named)
	}
	return all
}

// image makes one that has no name yet.
func (m *maker) image(ctx context.Context, name string) (images.Image, error) {
	if name == pause {
		return images.PauseImage()
	}
	r := recipes()[name]
	image := images.Image{Config: r.config}
	if len(r.debian) > 0 {
		layers, err := m.root(ctx, r.debian)
		if err != nil {
			return image, err
		}
		image.Layers = append(image.Layers, layers...)
	}
	top, err := read(m.module, r.upstream)
	if err != nil {
		return image, err
	}
	built, err := m.build(ctx, r)
	if err != nil {
		return image, err
	}
	top = slices.Concat(r.files, top, built)
	if name == "busybox" {
		applets, err := m.applets(ctx)
		if err != nil {
			return image, err
		}
		top = append(top, applets...)
	}
	image.Layers = append(image.Layers, top)
	return image, nil
}

// root is the root file system of packages as two layers: base, which images share, and the rest.
func (m *maker) root(ctx context.Context, packages []string) ([]images.Layer, error) {
	if m.base == nil {
		var err error
		if m.baseFiles, err = m.debian.closure(ctx, base); err != nil {
			return nil, err
		}
		if m.base, err = m.debian.layer(ctx, m.baseFiles); err != nil {
			return nil, err
		}
	}
	key := strings.Join(packages, " ")
	if _, ok := m.above[key]; !ok {
		var err error
		if m.above[key], err = m.debian.above(ctx, m.baseFiles, m.base, slices.Concat(base, packages)); err != nil {
			return nil, err
		}
	}
	if len(m.above[key]) == 0 {
		return []images.Layer{m.base}, nil
	}
	return []images.Layer{m.base, m.above[key]}, nil
}

// build builds a recipe's programs.
func (m *maker) build(ctx context.Context, r recipe) (images.Layer, error) {
	var layer images.Layer
	for _, to := range slices.Sorted(maps.Keys(r.programs)) {
		file := filepath.Join(m.dir, path.Base(to))
		if err := programs.Go(ctx, "build", "-ldflags", "-s -w", "-o", file, r.programs[to]); err != nil {
			return nil, err
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read a program: %w", err)
		}
		mode := fs.FileMode(0o755)
		if r.setuid {
			mode |= fs.ModeSetuid | fs.ModeSetgid
		}
		layer = append(layer, images.File{Path: to, Mode: mode, Data: data})
	}
	return layer, nil
}

// applets is Debian's static busybox with a link for everything that it can do but the shell, which is a program
// of ours that needs bash too.
func (m *maker) applets(ctx context.Context) (images.Layer, error) {
	data, err := m.debian.file(ctx, "busybox-static", "usr/bin/busybox")
	if err != nil {
		return nil, err
	}
	bash, err := m.debian.file(ctx, "bash-static", "usr/bin/bash-static")
	if err != nil {
		return nil, err
	}
	program := filepath.Join(m.dir, "busybox")
	if err := os.WriteFile(program, data, 0o755); err != nil {
		return nil, fmt.Errorf("unpack busybox: %w", err)
	}
	list, err := exec.CommandContext(ctx, program, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list what busybox can do: %w", err)
	}
	layer := images.Layer{{Path: "bin/busybox", Mode: 0o755, Data: data}, {Path: "bin/bash", Mode: 0o755, Data: bash}}
	for name := range strings.FieldsSeq(string(list)) {
		if name != "busybox" && name != "bash" && name != "sh" {
			layer = append(layer, images.File{Path: "bin/" + name, Mode: fs.ModeSymlink | 0o777, Target: "busybox"})
		}
	}
	return layer, nil
}

// write writes an archive whole or not at all.
func write(file string, made []images.Image) error {
	out, err := os.Create(file + ".new")
	if err != nil {
		return fmt.Errorf("make an archive: %w", err)
	}
	err = images.WriteArchive(out, made...)
	if err = cmp.Or(err, out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), file)
}
