package bucket

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // what ETags are made of; nobody who could forge one is kept out by it
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/minio/minio-go/v7"
)

// partBytes is how much is sent at a time, and how large the parts of a large object are, in bytes.
const partBytes = 16 << 20

// errDiffers: the object is not the file.
var errDiffers = errors.New("what has arrived is not what was sent")

// compare compares an object with the file that was sent.
func (b *Bucket) compare(ctx context.Context, c *minio.Client, file, key string) error {
	there, err := c.StatObject(ctx, b.cfg.Bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return err
	}
	whole, parts, size, err := etags(file)
	if err != nil {
		return err
	}
	if there.Size != size {
		return fmt.Errorf("%w: %d bytes of %d", errDiffers, there.Size, size)
	}
	if etag := strings.Trim(there.ETag, `"`); etag == whole || etag == parts {
		return nil
	}
	o, err := c.GetObject(ctx, b.cfg.Bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = o.Close() }()
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	sent, came := sha256.New(), sha256.New()
	if _, err := io.Copy(came, o); err != nil {
		return err
	}
	if _, err := io.Copy(sent, f); err != nil {
		return err
	}
	if !bytes.Equal(sent.Sum(nil), came.Sum(nil)) {
		return errDiffers
	}
	return nil
}

// etags are those that S3 gives to a file's content, if it was sent as a whole and if it was sent in parts.
func etags(file string) (whole, parts string, size int64, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", "", 0, err
	}
	defer func() { _ = f.Close() }()
	all, of, count := md5.New(), md5.New(), 0
	for {
		part := md5.New()
		n, err := io.CopyN(io.MultiWriter(all, part), f, partBytes)
		if err != nil && !errors.Is(err, io.EOF) {
			return "", "", 0, err
		}
		if n > 0 {
			_, _ = of.Write(part.Sum(nil))
			size += n
			count++
		}
		if n < partBytes {
			return hex.EncodeToString(all.Sum(nil)), fmt.Sprintf("%x-%d", of.Sum(nil), count), size, nil
		}
	}
}
