package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	core "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// seenLimit is how long CRI may take to notice an image that was imported or removed.
const seenLimit = 10 * time.Second

// The label by which containerd's CRI tells that an image is pinned: whoever removes unused images
// leaves it alone.
const (
	pinnedLabel = "io.cri-containerd.pinned"
	pinnedValue = "pinned"
)

// Stored is an image that a containerd has.
type Stored struct {
	// Name is complete, as [Normalize] makes it.
	Name string
	// Digest is of the manifest, or of the index of several platforms.
	Digest digest.Digest
	// Size is what its blobs take, in bytes; unpacked they take more. 0 if not known.
	Size int64
	// Created is when containerd got it.
	Created time.Time
}

// Store looks after the images of one containerd. It is safe for concurrent use.
type Store struct {
	client *containerd.Client
	images cri.ImageServiceClient
}

// Open connects to the containerd whose socket has that path. It fails if nothing answers
// within some seconds.
func Open(socket string) (*Store, error) {
	client, err := containerd.New(socket, containerd.WithDefaultNamespace(Namespace), containerd.WithTimeout(10*time.Second))
	if err != nil {
		return nil, fmt.Errorf("open images of containerd at %s: %w", socket, err)
	}
	conn, ok := client.Conn().(grpc.ClientConnInterface)
	if !ok {
		_ = client.Close()
		return nil, fmt.Errorf("open images of containerd at %s: the connection is a %T", socket, client.Conn())
	}
	return &Store{client: client, images: cri.NewImageServiceClient(conn)}, nil
}

// Close ends the connection.
func (s *Store) Close() error {
	if err := s.client.Close(); err != nil {
		return fmt.Errorf("close images of containerd: %w", err)
	}
	return nil
}

// importFailure says what is wrong with an archive, where that is what is wrong.
func importFailure(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("import images: the archive ends too early")
	case errors.Is(err, tar.ErrHeader):
		return errors.New("import images: the file is no archive of images: make one with `docker save NAME:TAG` or `skopeo copy … oci-archive:FILE:NAME:TAG`")
	}
	return fmt.Errorf("import images: %w", err)
}

// Import reads an archive of images, made by docker save, podman, [WriteArchive] or whatever
// else writes Docker's or OCI's format, compressed by gzip, zstd or bzip2 or not at all. It
// returns the images that pods can run from now. They are pinned, since there may be no registry to
// fetch them from again. An archive that has no image for this machine's platform, or none with a
// name, is refused.
func (s *Store) Import(ctx context.Context, archive io.Reader) ([]Stored, error) {
	plain, done, err := decompress(archive)
	if err != nil {
		return nil, importFailure(err)
	}
	defer done()
	snapshotter, err := s.snapshotter(ctx)
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	// The lease keeps containerd's garbage collection away until everything has its name.
	ctx, release, err := s.client.WithLease(ctx)
	if err != nil {
		return nil, fmt.Errorf("import images: %w", err)
	}
	defer func() { _ = release(context.WithoutCancel(ctx)) }()

	var nameless []string
	imported, err := s.client.Import(ctx, plain, containerd.WithImageLabels(map[string]string{pinnedLabel: pinnedValue}),
		containerd.WithImageRefTranslator(func(ref string) string {
			if isName(ref) {
				return ref
			}
			nameless = append(nameless, ref)
			return ""
		}))
	switch {
	case err != nil:
		return nil, importFailure(err)
	case len(imported) == 0 && len(nameless) > 0:
		return nil, fmt.Errorf("import images: the archive gives only the tag %q and no name: write it with a whole name, such as by `docker save NAME:TAG` or `skopeo copy … oci-archive:FILE:NAME:TAG`", nameless[0])
	case len(imported) == 0:
		return nil, errors.New("import images: there is no image with a name in the archive")
	}
	var stored []Stored
	for _, image := range imported {
		one, err := s.settle(ctx, image, snapshotter)
		if err != nil {
			return nil, fmt.Errorf("import image %s: %w", image.Name, err)
		}
		if !slices.ContainsFunc(stored, func(o Stored) bool { return o.Name == one.Name }) {
			stored = append(stored, one)
		}
	}
	return stored, nil
}

// settle unpacks an imported image, gives it its complete name, and waits until CRI knows it.
func (s *Store) settle(ctx context.Context, image core.Image, snapshotter string) (Stored, error) {
	full, err := Normalize(image.Name)
	if err != nil {
		return Stored{}, err
	}
	handle := containerd.NewImageWithPlatform(s.client, image, platforms.Default())
	if err := handle.Unpack(ctx, snapshotter); err != nil {
		return Stored{}, fmt.Errorf("unpack: %w", err)
	}
	if full != image.Name {
		short := image.Name
		image.Name = full
		if image, err = s.rename(ctx, image, short); err != nil {
			return Stored{}, err
		}
	}
	size, err := handle.Size(ctx)
	if err != nil {
		return Stored{}, fmt.Errorf("measure: %w", err)
	}
	config, err := handle.Config(ctx)
	if err != nil {
		return Stored{}, fmt.Errorf("read its configuration: %w", err)
	}
	// CRI hears of it by an event, and calls an image by the digest of its configuration. One
	// that it knows by that name already may have had other content before.
	err = s.await(ctx, full, func(known *cri.Image) bool { return known.GetId() == config.Digest.String() && known.GetPinned() })
	if err != nil {
		return Stored{}, err
	}
	return Stored{Name: full, Digest: image.Target.Digest, Size: size, Created: image.CreatedAt}, nil
}

// rename stores an image under its Name instead of under the one given.
func (s *Store) rename(ctx context.Context, image core.Image, from string) (core.Image, error) {
	service := s.client.ImageService()
	renamed, err := service.Create(ctx, image)
	if errdefs.IsAlreadyExists(err) {
		renamed, err = service.Update(ctx, image, "target", "labels")
	}
	if err != nil {
		return core.Image{}, fmt.Errorf("name it %s: %w", image.Name, err)
	}
	if err := service.Delete(ctx, from); err != nil && !errdefs.IsNotFound(err) {
		return core.Image{}, fmt.Errorf("take away its name %s: %w", from, err)
	}
	return renamed, nil
}

// await returns when what CRI knows of an image, nil for nothing, is as wanted.
func (s *Store) await(ctx context.Context, name string, wanted func(*cri.Image) bool) error {
	ctx, cancel := context.WithTimeout(ctx, seenLimit)
	defer cancel()
	for delay := time.Millisecond; ; delay = min(2*delay, 50*time.Millisecond) {
		r, err := s.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
		if err != nil {
			return fmt.Errorf("ask CRI for image %s: %w", name, err)
		}
		if wanted(r.GetImage()) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until CRI notices image %s: %w", name, context.Cause(ctx))
		case <-time.After(delay):
		}
	}
}

// snapshotter finds out how this containerd's CRI unpacks images: by the directory that it
// says images are in, which ends in the name of the plugin.
func (s *Store) snapshotter(ctx context.Context) (string, error) {
	info, err := s.images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
	if err != nil {
		return "", fmt.Errorf("ask how images are unpacked: %w", err)
	}
	for _, f := range info.GetImageFilesystems() {
		if name, ok := strings.CutPrefix(path.Base(f.GetFsId().GetMountpoint()), "io.containerd.snapshotter.v1."); ok {
			return name, nil
		}
	}
	return "", errors.New("this container runtime does not say how it unpacks images: it is no containerd")
}

// List lists the images by name, in order. The names by which CRI keeps digests are left out.
func (s *Store) List(ctx context.Context) ([]Stored, error) {
	handles, err := s.client.ListImages(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var all []Stored
	for _, h := range handles {
		if strings.HasPrefix(h.Name(), "sha256:") {
			continue
		}
		// An image whose layers were never fetched, or not for this platform, has no size.
		size, err := h.Size(ctx)
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, fmt.Errorf("list images: measure %s: %w", h.Name(), err)
		}
		all = append(all, Stored{Name: h.Name(), Digest: h.Target().Digest, Size: size, Created: h.Metadata().CreatedAt})
	}
	slices.SortFunc(all, func(a, b Stored) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// Remove takes away one name of an image, and the image with its last one. Containers made
// from it go on. It fails with an error that matches errdefs.ErrNotFound if there is no such
// name.
func (s *Store) Remove(ctx context.Context, name string) error {
	full, err := Normalize(name)
	if err != nil {
		return err
	}
	service := s.client.ImageService()
	image, err := service.Get(ctx, full)
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("remove image %s: there is no such image: %w", full, err)
	}
	if err != nil {
		return fmt.Errorf("remove image %s: %w", full, err)
	}
	id, err := s.id(ctx, full)
	if err != nil {
		return fmt.Errorf("remove image %s: %w", full, err)
	}
	last, err := s.isLastName(ctx, image, id)
	if err != nil {
		return fmt.Errorf("remove image %s: %w", full, err)
	}
	if last && id != "" {
		// CRI takes the names by digest away too, which hold the image's content.
		_, err := s.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: id}})
		if err != nil {
			return fmt.Errorf("remove image %s: %w", full, err)
		}
		return nil
	}
	if err := service.Delete(ctx, full, core.SynchronousDelete()); err != nil {
		return fmt.Errorf("remove image %s: %w", full, err)
	}
	return s.await(ctx, full, func(known *cri.Image) bool { return known == nil })
}

// id returns what CRI calls an image, or nothing if it does not know it.
func (s *Store) id(ctx context.Context, name string) (string, error) {
	r, err := s.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
	if err != nil {
		return "", err
	}
	return r.GetImage().GetId(), nil
}

// isLastName reports whether no other name that a person could have given leads to the image.
func (s *Store) isLastName(ctx context.Context, image core.Image, id string) (bool, error) {
	all, err := s.client.ImageService().List(ctx)
	if err != nil {
		return false, err
	}
	for _, other := range all {
		if other.Name == image.Name || other.Name == id || strings.Contains(other.Name, "@") || strings.HasPrefix(other.Name, "sha256:") {
			continue
		}
		if other.Target.Digest == image.Target.Digest {
			return false, nil
		}
	}
	return true, nil
}

// EnsurePause imports the pause image if it is not there.
func (s *Store) EnsurePause(ctx context.Context) error {
	id, err := s.id(ctx, PauseName)
	if err != nil {
		return fmt.Errorf("look for the pause image: %w", err)
	}
	if id != "" {
		return nil
	}
	archive, err := pauseArchive()
	if err != nil {
		return err
	}
	_, err = s.Import(ctx, archive)
	return err
}

// decompress undoes the compression of an archive, which it knows by its first bytes.
func decompress(r io.Reader) (plain io.Reader, done func(), err error) {
	buffered := bufio.NewReaderSize(r, 64<<10)
	magic, err := buffered.Peek(4)
	if err != nil && len(magic) == 0 {
		return nil, nil, fmt.Errorf("read the archive: %w", noEOF(err))
	}
	nothing := func() {}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, nil, fmt.Errorf("read the archive: %w", noEOF(err))
		}
		return z, func() { _ = z.Close() }, nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(buffered)
		if err != nil {
			return nil, nil, fmt.Errorf("read the archive: %w", noEOF(err))
		}
		return z, z.Close, nil
	case bytes.HasPrefix(magic, []byte("BZh")):
		return bzip2.NewReader(buffered), nothing, nil
	}
	return buffered, nothing, nil
}

// noEOF says of an end that comes where something should be that it is unexpected.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
