// Package bucket keeps snapshots in a bucket of Amazon S3, or of whatever speaks its API.
//
// A snapshot is one object, whose key is a prefix and the snapshot's name. It is there as a whole or not at all. What was sent is compared with what
// has arrived: the server compares each part's MD5 (Content-MD5), and afterwards [Bucket.Put] asks for the size and the ETag, which is the MD5 of the
// object or of its parts' MD5s. A server whose ETags are something else, as with SSE-KMS, is asked for the object itself, which is compared.
//
// Keys to the bucket come from a file or the environment, never from a command line, which all of a machine can read.
package bucket

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"

	"barque.dev/internal/cluster/snapshot"
)

// Config says where a bucket is.
type Config struct {
	// Endpoint is a URL, such as https://minio.example:9000; empty for Amazon's.
	Endpoint string
	// Region is the bucket's; empty for us-east-1, which most servers but Amazon's take.
	Region string
	// Bucket is its name. Prefix begins all keys; a slash is put behind it, unless it ends in one or is empty.
	Bucket, Prefix string
	// CA is a PEM file with the authorities that the endpoint's certificate may be of; empty for the system's.
	CA string
	// Credentials is a file as Amazon's tools read it, with aws_access_key_id and aws_secret_access_key under [default]. It is read
	// anew for each call. Empty for the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN.
	Credentials string
	// Flags begins the names of the flags that errors speak of, such as --s3-.
	Flags string
}

// DefaultRegion is that of a Config which names none.
const DefaultRegion = "us-east-1"

const amazon = "https://s3.amazonaws.com"

// A Bucket is safe for concurrent use. It satisfies [snapshot.Remote].
type Bucket struct {
	cfg       Config
	endpoint  *url.URL
	transport *http.Transport
}

var _ snapshot.Remote = (*Bucket)(nil)

const (
	// callWithin bounds a call that carries no snapshot.
	callWithin = time.Minute
	// leastRate is how slowly a snapshot may be carried, in bytes a second.
	leastRate = 64 << 10
	// attempts bounds how often a request is sent.
	attempts = 3
)

// Open looks whether the configuration can be right. It asks nobody.
func Open(cfg Config) (*Bucket, error) {
	cfg.Region = cmp.Or(cfg.Region, DefaultRegion)
	if cfg.Prefix != "" && !strings.HasSuffix(cfg.Prefix, "/") {
		cfg.Prefix += "/"
	}
	cfg.Prefix = strings.TrimPrefix(cfg.Prefix, "/")
	if err := s3utils.CheckValidBucketName(cfg.Bucket); err != nil {
		return nil, fmt.Errorf("%q is no name of a bucket: %w", cfg.Bucket, err)
	}
	u, err := url.Parse(cmp.Or(cfg.Endpoint, amazon))
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" {
		return nil, fmt.Errorf("%sendpoint %q: give a URL without a path, such as https://s3.example.com", cfg.Flags, cfg.Endpoint)
	}
	b := &Bucket{cfg: cfg, endpoint: u}
	if b.transport, err = minio.DefaultTransport(u.Scheme == "https"); err != nil {
		return nil, err
	}
	if cfg.CA != "" {
		if err := b.trust(cfg.CA); err != nil {
			return nil, fmt.Errorf("%sendpoint-ca %s: %w", cfg.Flags, cfg.CA, err)
		}
	}
	return b, nil
}

// trust has only certificates of a file's authorities count.
func (b *Bucket) trust(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return errors.New("it can't be read: name a file with the authority's certificate in PEM")
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return errors.New("there is no certificate in PEM in it")
	}
	if b.transport.TLSClientConfig == nil {
		b.transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	b.transport.TLSClientConfig.RootCAs = pool
	return nil
}

// Close lets go of connections.
func (b *Bucket) Close() { b.transport.CloseIdleConnections() }

// String is where the snapshots are: s3://bucket/prefix/.
func (b *Bucket) String() string { return "s3://" + b.cfg.Bucket + "/" + b.cfg.Prefix }

// client is one with the keys of now, which are changed now and then.
func (b *Bucket) client() (*minio.Client, error) {
	keys, err := b.keys()
	if err != nil {
		return nil, err
	}
	return minio.New(b.endpoint.Host, &minio.Options{
		Creds: keys, Secure: b.endpoint.Scheme == "https", Transport: b.transport, Region: b.cfg.Region, MaxRetries: attempts,
	})
}

func (b *Bucket) keys() (*credentials.Credentials, error) {
	if file := b.cfg.Credentials; file != "" {
		value, err := (&credentials.FileAWSCredentials{Filename: file}).RetrieveWithCredContext(nil)
		if err != nil || value.AccessKeyID == "" || value.SecretAccessKey == "" { // the error could quote it
			return nil, fmt.Errorf("%scredentials %s: it must have aws_access_key_id and aws_secret_access_key under [default], and be readable", b.cfg.Flags, file)
		}
		return credentials.NewStaticV4(value.AccessKeyID, value.SecretAccessKey, value.SessionToken), nil
	}
	id, secret := os.Getenv("AWS_ACCESS_KEY_ID"), os.Getenv("AWS_SECRET_ACCESS_KEY")
	if id == "" || secret == "" {
		return nil, fmt.Errorf("there are no keys to %s: name a file with %scredentials, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", b, b.cfg.Flags)
	}
	return credentials.NewStaticV4(id, secret, os.Getenv("AWS_SESSION_TOKEN")), nil
}

// List lists the snapshots right below the prefix, by their names, the newest first.
func (b *Bucket) List(ctx context.Context) ([]snapshot.Info, error) {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	c, err := b.client()
	if err != nil {
		return nil, err
	}
	var list []snapshot.Info
	for o := range c.ListObjects(ctx, b.cfg.Bucket, minio.ListObjectsOptions{Prefix: b.cfg.Prefix}) {
		if o.Err != nil {
			return nil, b.advise("list "+b.String(), o.Err)
		}
		n, ok := snapshot.ParseName(strings.TrimPrefix(o.Key, b.cfg.Prefix))
		if !ok {
			continue
		}
		list = append(list, snapshot.Info{File: n.String(), Time: n.Time, Revision: n.Revision, Server: n.Server, Scheduled: n.Scheduled, Bytes: o.Size})
	}
	slices.SortFunc(list, snapshot.Newer)
	return list, nil
}

// Put copies a file below the prefix, under its own name. What is not right afterwards is removed.
func (b *Bucket) Put(ctx context.Context, file string) error {
	return b.PutAs(ctx, file, b.cfg.Prefix+filepath.Base(file))
}

// PutAs is Put with another key.
func (b *Bucket) PutAs(ctx context.Context, file, key string) error {
	stat, err := os.Stat(file)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.within(stat.Size()))
	defer cancel()
	c, err := b.client()
	if err != nil {
		return err
	}
	what := "copy " + filepath.Base(file) + " to " + b.at(key)
	// Parts that are left of an attempt that was interrupted would be paid for for ever. Not every key may ask for them.
	_ = c.RemoveIncompleteUpload(ctx, b.cfg.Bucket, key)
	_, err = c.FPutObject(ctx, b.cfg.Bucket, key, file, minio.PutObjectOptions{
		ContentType: "application/x-tar", SendContentMd5: true, PartSize: partBytes, NumThreads: 1,
	})
	if err != nil {
		return b.advise(what, err)
	}
	if err := b.compare(ctx, c, file, key); err != nil {
		if errors.Is(err, errDiffers) {
			_ = c.RemoveObject(ctx, b.cfg.Bucket, key, minio.RemoveObjectOptions{})
		}
		return b.advise(what, err)
	}
	return nil
}

// within is how long a snapshot may take.
func (b *Bucket) within(size int64) time.Duration {
	return 2*callWithin + time.Duration(size/leastRate)*time.Second
}

// Get copies an object to a file that is not there yet. Its content has checksums of its own: who uses it compares them.
func (b *Bucket) Get(ctx context.Context, key, file string) (err error) {
	c, err := b.client()
	if err != nil {
		return err
	}
	what := "fetch " + b.at(key)
	head, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	stat, err := c.StatObject(head, b.cfg.Bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return b.advise(what, err)
	}
	ctx, cancelGet := context.WithTimeout(ctx, b.within(stat.Size))
	defer cancelGet()
	o, err := c.GetObject(ctx, b.cfg.Bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return b.advise(what, err)
	}
	defer func() { _ = o.Close() }()
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	n, err := io.Copy(f, o)
	if err == nil && n != stat.Size {
		err = fmt.Errorf("%w: %d of %d bytes came", io.ErrUnexpectedEOF, n, stat.Size)
	}
	if closed := f.Close(); err == nil && closed != nil {
		return fmt.Errorf("%s: %w", what, closed)
	}
	return b.advise(what, err)
}

// Remove removes a snapshot below the prefix. One that is not there is removed.
func (b *Bucket) Remove(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	c, err := b.client()
	if err != nil {
		return err
	}
	return b.advise("remove "+b.at(b.cfg.Prefix+name), c.RemoveObject(ctx, b.cfg.Bucket, b.cfg.Prefix+name, minio.RemoveObjectOptions{}))
}

func (b *Bucket) at(key string) string { return "s3://" + b.cfg.Bucket + "/" + key }

// Is tells whether a name is that of something in a bucket, rather than of a file.
func Is(name string) bool { return strings.HasPrefix(name, "s3://") }

// Parse reads s3://bucket/key. The key may be empty, or end in a slash: then it is a prefix.
func Parse(name string) (bucket, key string, err error) {
	bucket, key, _ = strings.Cut(strings.TrimPrefix(name, "s3://"), "/")
	if bucket == "" || key != "" && path.Clean("/"+key) != "/"+strings.TrimSuffix(key, "/") {
		return "", "", fmt.Errorf("%s: write s3://BUCKET/KEY", name)
	}
	return bucket, key, nil
}
