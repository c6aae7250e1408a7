package images

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// nameAnnotation carries an image's whole name in an archive's index; containerd, and
// whatever reads its archives, takes the name from here.
const nameAnnotation = "io.containerd.image.name"

// Image is an image to be made. The same Image gives the same bytes each time.
type Image struct {
	// Names are the names the image shall have, such as "barque.dev/examples/hello:v1". They
	// are completed by [Normalize].
	Names []string
	// Layers are laid over each other, the first one at the bottom.
	Layers []Layer
	// Config says how the image is started.
	Config ocispec.ImageConfig
	// Arch is a GOARCH value; that of this program by default.
	Arch string
	// Created is shown by tools that list images; by default 1970, so that the same content
	// gives the same image.
	Created time.Time
}

// Layer is a set of files. Directories that are not listed are made, owned by root, with mode
// 0755.
type Layer []File

// File is one file, directory or symbolic link of a layer.
type File struct {
	// Path is where it is in the image; a slash at the front does not matter.
	Path string
	// Mode is its type (regular, fs.ModeDir or fs.ModeSymlink) and permissions, with
	// fs.ModeSetuid, fs.ModeSetgid and fs.ModeSticky where needed.
	Mode fs.FileMode
	// Data is the content of a regular file.
	Data []byte
	// Target is where a symbolic link points.
	Target string
	// UID and GID own it.
	UID, GID int
}

// blob is a piece of an archive, named by its digest.
type blob struct {
	digest digest.Digest
	data   []byte
}

// archive collects the blobs and the index of an archive.
type archive struct {
	blobs []blob
	index ocispec.Index
}

// WriteArchive writes images into one OCI image archive. Layers are not compressed: archives
// that are to be small are best compressed as a whole, so that images share what they have in
// common. [Store.Import] takes them that way.
func WriteArchive(w io.Writer, images ...Image) error {
	a := archive{index: ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageIndex,
	}}
	for _, image := range images {
		if err := a.add(image); err != nil {
			return fmt.Errorf("pack image %s: %w", strings.Join(image.Names, ", "), err)
		}
	}
	if err := a.write(w); err != nil {
		return fmt.Errorf("write image archive: %w", err)
	}
	return nil
}

// add packs one image.
func (a *archive) add(image Image) error {
	if len(image.Names) == 0 {
		return errors.New("it has no name")
	}
	arch := image.Arch
	if arch == "" {
		arch = runtime.GOARCH
	}
	created := image.Created.UTC()
	if image.Created.IsZero() {
		created = time.Unix(0, 0).UTC()
	}
	config := ocispec.Image{
		Created:  &created,
		Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		Config:   image.Config,
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
	}
	for _, layer := range image.Layers {
		data, err := layer.pack(created)
		if err != nil {
			return err
		}
		descriptor := a.put(ocispec.MediaTypeImageLayer, data)
		manifest.Layers = append(manifest.Layers, descriptor)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, descriptor.Digest)
	}
	var err error
	if manifest.Config, err = a.putJSON(ocispec.MediaTypeImageConfig, config); err != nil {
		return err
	}
	descriptor, err := a.putJSON(ocispec.MediaTypeImageManifest, manifest)
	if err != nil {
		return err
	}
	descriptor.Platform = &config.Platform
	for _, name := range image.Names {
		full, err := Normalize(name)
		if err != nil {
			return err
		}
		named := descriptor
		named.Annotations = map[string]string{nameAnnotation: full, ocispec.AnnotationRefName: full}
		a.index.Manifests = append(a.index.Manifests, named)
	}
	return nil
}

// put adds a blob, unless it is there, and describes it.
func (a *archive) put(mediaType string, data []byte) ocispec.Descriptor {
	d := digest.FromBytes(data)
	if !slices.ContainsFunc(a.blobs, func(b blob) bool { return b.digest == d }) {
		a.blobs = append(a.blobs, blob{digest: d, data: data})
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (a *archive) putJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return a.put(mediaType, data), nil
}

// write writes the archive as the OCI image layout wants it.
func (a *archive) write(w io.Writer) error {
	index, err := json.Marshal(a.index)
	if err != nil {
		return err
	}
	layout, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	for _, dir := range []string{ocispec.ImageBlobsDir + "/", ocispec.ImageBlobsDir + "/sha256/"} {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755}); err != nil {
			return err
		}
	}
	files := []File{{Path: ocispec.ImageLayoutFile, Data: layout}, {Path: ocispec.ImageIndexFile, Data: index}}
	for _, b := range a.blobs {
		files = append(files, File{Path: path.Join(ocispec.ImageBlobsDir, b.digest.Algorithm().String(), b.digest.Encoded()), Data: b.data})
	}
	for _, f := range files {
		header := tar.Header{Typeflag: tar.TypeReg, Name: f.Path, Mode: 0o644, Size: int64(len(f.Data))}
		if err := tw.WriteHeader(&header); err != nil {
			return err
		}
		if _, err := tw.Write(f.Data); err != nil {
			return err
		}
	}
	return tw.Close()
}

// pack makes the tar file of a layer, every time in it being t.
func (l Layer) pack(t time.Time) ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	made := map[string]bool{".": true}
	for _, f := range l {
		name := strings.TrimPrefix(path.Clean("/"+f.Path), "/")
		if name == "" {
			return nil, errors.New("a layer's file has no path")
		}
		for _, parent := range parents(name) {
			if made[parent] {
				continue
			}
			made[parent] = true
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: parent + "/", Mode: 0o755, ModTime: t}); err != nil {
				return nil, err
			}
		}
		if err := f.pack(tw, name, t); err != nil {
			return nil, fmt.Errorf("file %s: %w", f.Path, err)
		}
		made[name] = true
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// pack writes one file.
func (f File) pack(tw *tar.Writer, name string, t time.Time) error {
	header := tar.Header{Name: name, Mode: permissions(f.Mode), ModTime: t, Uid: f.UID, Gid: f.GID}
	switch f.Mode.Type() {
	case 0:
		header.Typeflag, header.Size = tar.TypeReg, int64(len(f.Data))
	case fs.ModeDir:
		header.Typeflag, header.Name = tar.TypeDir, name+"/"
	case fs.ModeSymlink:
		header.Typeflag, header.Linkname = tar.TypeSymlink, f.Target
	default:
		return fmt.Errorf("type %s cannot be packed", f.Mode.Type())
	}
	if header.Typeflag != tar.TypeReg && len(f.Data) > 0 {
		return errors.New("only a regular file has content")
	}
	if err := tw.WriteHeader(&header); err != nil {
		return err
	}
	_, err := tw.Write(f.Data)
	return err
}

// permissions are the mode bits as Unix and tar number them.
func permissions(m fs.FileMode) int64 {
	bits := int64(m.Perm())
	for _, special := range []struct {
		mode fs.FileMode
		bit  int64
	}{{fs.ModeSetuid, 0o4000}, {fs.ModeSetgid, 0o2000}, {fs.ModeSticky, 0o1000}} {
		if m&special.mode != 0 {
			bits |= special.bit
		}
	}
	return bits
}

// parents lists the directories above a file, the topmost first.
func parents(name string) []string {
	var all []string
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		all = append(all, dir)
	}
	slices.Reverse(all)
	return all
}

// Files reads a file tree into a layer, owned by root.
func Files(tree fs.FS) (Layer, error) {
	var layer Layer
	err := fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		f := File{Path: name, Mode: info.Mode()}
		switch entry.Type() {
		case fs.ModeSymlink:
			f.Target, err = fs.ReadLink(tree, name)
		case 0:
			f.Data, err = fs.ReadFile(tree, name)
		}
		layer = append(layer, f)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read files for a layer: %w", err)
	}
	return layer, nil
}
