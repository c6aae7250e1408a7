package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"

	"barque.dev/internal/cluster/snapshot"
	"barque.dev/internal/cluster/snapshot/bucket"
)

// fetchedTo is where a snapshot goes that is fetched from a bucket: it may be too large for a file system in memory.
const fetchedTo = "/var/tmp"

// elsewhere says how buckets are reached, for commands that take s3://BUCKET/KEY where they take a file.
type elsewhere struct{ cfg bucket.Config }

func (e *elsewhere) flags(flags *pflag.FlagSet) {
	e.cfg.Flags = "--s3-"
	flags.StringVar(&e.cfg.Endpoint, "s3-endpoint", "", "for s3://…: `URL` of what speaks S3's API; by default AWS_ENDPOINT_URL in the environment, or Amazon's")
	flags.StringVar(&e.cfg.Region, "s3-region", "", "for s3://…: the bucket's `region`; by default AWS_REGION in the environment, or us-east-1")
	flags.StringVar(&e.cfg.CA, "s3-endpoint-ca", "", "for s3://…: `FILE` with the authorities that the endpoint's certificate may be of")
	flags.StringVar(&e.cfg.Credentials, "s3-credentials", "",
		"for s3://…: `FILE` with aws_access_key_id and aws_secret_access_key under [default]; without it AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment")
}

// open reads s3://bucket/key. What comes before the key's last slash becomes the prefix.
func (e *elsewhere) open(name string) (b *bucket.Bucket, key string, err error) {
	cfg := e.cfg
	if cfg.Bucket, key, err = bucket.Parse(name); err != nil {
		return nil, "", errUsage{err}
	}
	cfg.Prefix = key[:strings.LastIndex(key, "/")+1]
	cfg.Endpoint, cfg.Region = cmp.Or(cfg.Endpoint, os.Getenv("AWS_ENDPOINT_URL")), cmp.Or(cfg.Region, os.Getenv("AWS_REGION"))
	if b, err = bucket.Open(cfg); err != nil {
		return nil, "", errUsage{err}
	}
	return b, key, nil
}

// fetched calls f with a file: the named one, or one that it was fetched to, in a directory below dir.
func (e *elsewhere) fetched(ctx context.Context, dir, name string, f func(file string) error) error {
	if !bucket.Is(name) {
		return f(name)
	}
	b, key, err := e.open(name)
	if err != nil {
		return err
	}
	defer b.Close()
	if strings.HasSuffix(key, "/") || key == "" {
		return errUsage{fmt.Errorf("%s: name a snapshot in it: `barque snapshot list %s` shows them", name, b)}
	}
	return withScratch(cmp.Or(dir, fetchedTo), "", func(scratch string) error {
		file := filepath.Join(scratch, path.Base(key))
		if err := b.Get(ctx, key, file); err != nil {
			return err
		}
		return f(file)
	})
}

// withFile is fetched that gives an empty directory, too, for what is in the snapshot.
func (e *elsewhere) withFile(ctx context.Context, dir, name string, f func(file, scratch string) error) error {
	return e.fetched(ctx, dir, name, func(file string) error {
		return withScratch(dir, file, func(scratch string) error { return f(file, scratch) })
	})
}

// list lists what is below a prefix.
func (e *elsewhere) list(ctx context.Context, w io.Writer, name string) error {
	if !strings.HasSuffix(name, "/") {
		name += "/"
	}
	b, _, err := e.open(name)
	if err != nil {
		return err
	}
	defer b.Close()
	list, err := b.List(ctx)
	if err != nil {
		return err
	}
	for i := range list {
		list[i].File = b.String() + list[i].File
	}
	return printSnapshots(w, list)
}

// saveSnapshot has a server take a snapshot and brings it to a file, or into a directory or a bucket.
func saveSnapshot(ctx context.Context, config *rest.Config, to, dir string, e *elsewhere) (where string, m snapshot.Manifest, err error) {
	if !bucket.Is(to) {
		return fetchSnapshot(ctx, config, to)
	}
	b, key, err := e.open(to)
	if err != nil {
		return "", m, err
	}
	defer b.Close()
	if key != "" && !strings.HasSuffix(key, "/") {
		return "", m, errUsage{fmt.Errorf("--to %s: end it in a slash; the snapshot names itself", to)}
	}
	// What can't be reached is found out before the cluster is put to work.
	if _, err := b.List(ctx); err != nil {
		return "", m, err
	}
	err = withScratch(cmp.Or(dir, fetchedTo), "", func(scratch string) error {
		file, manifest, err := fetchSnapshot(ctx, config, scratch)
		if err != nil {
			return err
		}
		where, m = b.String()+filepath.Base(file), manifest
		return b.Put(ctx, file)
	})
	return where, m, err
}

// atMostABucket takes no argument, or s3://….
func atMostABucket(cmd *cobra.Command, args []string) error {
	if len(args) > 1 || len(args) == 1 && !bucket.Is(args[0]) {
		return errUsage{errors.New("barque snapshot list takes s3://BUCKET/PREFIX/, or --dir DIR")}
	}
	return nil
}

// inRemote are the snapshots that a server knows of in its bucket and that were not seen yet.
func inRemote(st snapshot.Status, seen map[string]bool) []snapshot.Info {
	if st.Remote == nil {
		return nil
	}
	var list []snapshot.Info
	for _, i := range st.Remote.Snapshots {
		if i.File = st.Remote.Where + i.File; !seen[i.File] {
			seen[i.File] = true
			list = append(list, i)
		}
	}
	return list
}

// andThere says what a server keeps in its bucket.
func andThere(st snapshot.Status) string {
	if st.Remote == nil {
		return ""
	}
	return fmt.Sprintf(", and %d in %s", st.Remote.Keep, st.Remote.Where)
}
