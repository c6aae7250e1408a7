package s3

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"barque.dev/internal/cluster/join"
	"barque.dev/internal/cluster/snapshot"
	"barque.dev/internal/cluster/snapshot/bucket"
	"barque.dev/internal/store/etcd/etcdtest"
	"barque.dev/internal/testkit"
)

const cluster = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// credentials writes a file of keys.
func credentials(t *testing.T, id, secret string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "credentials")
	text := "[default]\naws_access_key_id = " + id + "\naws_secret_access_key = " + secret + "\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func open(t *testing.T, cfg bucket.Config) *bucket.Bucket {
	t.Helper()
	if cfg.Credentials == "" {
		cfg.Credentials = credentials(t, accessKey, secretKey)
	}
	cfg.Flags = "--s3-"
	b, err := bucket.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func random(t *testing.T, name string, size int) string {
	t.Helper()
	content := make([]byte, size)
	_, _ = rand.Read(content)
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func same(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}

const (
	small = "barque-20261123T200000Z-01234567-r41-auto-a.tar"
	large = "barque-20261123T210000Z-01234567-r42-saved-a.tar"
)

// TestRoundTrip puts snapshots, of one part and of several, over TLS, and gets them back.
func TestRoundTrip(t *testing.T) {
	tls := etcdtest.Certificates(t, net.IPv4(127, 0, 0, 1))
	g := newGateway(t, "backups", tls.Cert, tls.Key)
	b := open(t, bucket.Config{Endpoint: g.url(), Bucket: "backups", Prefix: "prod", CA: tls.CA})
	files := []string{random(t, large, 40<<20), random(t, small, 100_000)}
	for _, f := range files {
		if err := b.Put(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.PutAs(t.Context(), random(t, "x", 10), "prod/notes.txt"); err != nil {
		t.Fatal(err)
	}
	if err := b.PutAs(t.Context(), files[1], "other/"+small); err != nil {
		t.Fatal(err)
	}
	list, err := b.List(t.Context())
	if err != nil || len(list) != 2 || list[0].File != large || list[0].Bytes != 40<<20 || list[1].File != small || list[1].Revision != 41 || !list[1].Scheduled {
		t.Errorf("listed are %+v: %v", list, err)
	}
	for i, name := range []string{large, small} {
		back := filepath.Join(t.TempDir(), name)
		if err := b.Get(t.Context(), "prod/"+name, back); err != nil || !same(t, back, files[i]) {
			t.Errorf("%s came back as something else: %v", name, err)
		}
	}
	for range 2 { // what is gone may be removed
		if err := b.Remove(t.Context(), large); err != nil {
			t.Error(err)
		}
	}
	if list, err := b.List(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("left are %+v: %v", list, err)
	}

	untrusting := open(t, bucket.Config{Endpoint: g.url(), Bucket: "backups"})
	if _, err := untrusting.List(t.Context()); err == nil || !strings.Contains(err.Error(), "--s3-endpoint-ca") {
		t.Errorf("a certificate of nobody's: %v", err)
	}
}

// TestErrorsSayWhatToDo asks for what the server refuses.
func TestErrorsSayWhatToDo(t *testing.T) {
	g := newGateway(t, "backups", "", "")
	file := random(t, small, 1000)
	for want, cfg := range map[string]bucket.Config{
		"has no bucket nothing: make it":                          {Bucket: "nothing"},
		"does not take the keys (SignatureDoesNotMatch): correct": {Bucket: "backups", Credentials: credentials(t, accessKey, "wrong")},
		"does not take the keys (XAdminUserNotFound)":             {Bucket: "backups", Credentials: credentials(t, "nobody", secretKey)},
	} {
		cfg.Endpoint = g.url()
		b := open(t, cfg)
		if _, err := b.List(t.Context()); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), secretKey) {
			t.Errorf("list: %v, want %q", err, want)
		}
		if err := b.Put(t.Context(), file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("put: %v, want %q", err, want)
		}
	}
	b := open(t, bucket.Config{Endpoint: g.url(), Bucket: "backups"})
	into := filepath.Join(t.TempDir(), "x")
	if err := b.Get(t.Context(), small, into); err == nil || !strings.Contains(err.Error(), "it is not there: `barque snapshot list s3://backups/` shows") {
		t.Error(err)
	}
	if _, err := os.Stat(into); err == nil {
		t.Error("of what is not there a file was made")
	}
	g.stop()
	if err := b.Put(t.Context(), file); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Error(err)
	}
}

// flip changes a byte of each large body on its way.
type flip struct{ io.ReadCloser }

func (f flip) Read(b []byte) (int, error) {
	n, err := f.ReadCloser.Read(b)
	if n > 500 {
		b[n-1] ^= 1
	}
	return n, err
}

// TestDamageOnTheWay: what does not arrive as it was sent is refused, and is not there afterwards. TLS would notice by itself.
func TestDamageOnTheWay(t *testing.T) {
	g := newGateway(t, "backups", "", "")
	target, err := url.Parse(g.url())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy := &http.Server{Handler: &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		host := r.In.Host
		r.SetURL(target)
		r.Out.Host = host // it is signed
		if r.Out.Method == http.MethodPut && r.Out.Body != nil {
			r.Out.Body = flip{r.Out.Body}
		}
	}}}
	go func() { _ = proxy.Serve(l) }()
	defer func() { _ = proxy.Close() }()
	through := open(t, bucket.Config{Endpoint: "http://" + l.Addr().String(), Bucket: "backups"})
	if err := through.Put(t.Context(), random(t, small, 100_000)); err == nil {
		t.Error("nobody noticed")
	}
	if list, err := open(t, bucket.Config{Endpoint: g.url(), Bucket: "backups"}).List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("there are %+v: %v", list, err)
	}
}

// TestSilentDamage: a server that keeps something else than it was sent, and says nothing, is found out by its answer afterwards.
func TestSilentDamage(t *testing.T) {
	g := newGateway(t, "backups", "", "")
	target, err := url.Parse(g.url())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	// The object is changed between the upload and the question what is there.
	proxy := &http.Server{Handler: &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		host := r.In.Host
		if r.In.Method == http.MethodHead {
			other := open(t, bucket.Config{Endpoint: g.url(), Bucket: "backups"})
			if err := other.PutAs(t.Context(), random(t, "x", 100_000), small); err != nil {
				t.Error(err)
			}
		}
		r.SetURL(target)
		r.Out.Host = host
	}}}
	go func() { _ = proxy.Serve(l) }()
	defer func() { _ = proxy.Close() }()
	through := open(t, bucket.Config{Endpoint: "http://" + l.Addr().String(), Bucket: "backups"})
	if err := through.Put(t.Context(), random(t, small, 100_000)); err == nil || !strings.Contains(err.Error(), "what has arrived is not what was sent") {
		t.Errorf("%v", err)
	}
	if list, err := open(t, bucket.Config{Endpoint: g.url(), Bucket: "backups"}).List(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("there are %+v: %v", list, err)
	}
}

// TestKeeper: a server's scheduled snapshots go to the bucket, while it is away they are taken all the same, and what it missed follows. What
// is fetched from there is a snapshot of the cluster.
func TestKeeper(t *testing.T) {
	g := newGateway(t, "backups", "", "")
	b := open(t, bucket.Config{Endpoint: g.url(), Bucket: "backups", Prefix: "prod/"})
	member := etcdtest.New(t, 1, nil).Member(0)
	if _, err := member.Server().Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte("/k"), Value: []byte("v")}); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	const every = 2 * time.Second // names tell seconds
	k := snapshot.NewKeeper(snapshot.Config{
		Source: member, Dir: dir, Server: "server-1", Cluster: cluster, Every: every, Keep: 2, Remote: b, RemoteKeep: 3,
		Servers: func() []string { return []string{"server-1"} },
		Keys:    func() (json.RawMessage, error) { return json.RawMessage(`{}`), nil },
		Facts:   func() join.Facts { return join.Facts{ClusterDomain: "sea"} },
		Check: func(ctx context.Context, path, scratch string) error {
			_, err := snapshot.Unpack(ctx, path, scratch, nil)
			return err
		},
		Disk: func(string) (int64, int64, error) { return 1 << 40, 1 << 40, nil },
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	names := func(list []snapshot.Info) (names []string) {
		for _, i := range list {
			names = append(names, i.File)
		}
		return names
	}
	there := func() []string {
		list, err := b.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return names(list)
	}
	testkit.Eventually(t, patience, "the bucket holds two", func() error {
		if len(there()) < 2 {
			return errors.New(k.Problem())
		}
		return nil
	})
	g.stop()
	here, err := snapshot.List(dir)
	if err != nil || len(here) == 0 {
		t.Fatal(err)
	}
	before := here[0].File
	testkit.Eventually(t, patience, "without the bucket two more are taken", func() error {
		here, err = snapshot.List(dir)
		if err != nil || slices.Contains(names(here), before) {
			return errors.Join(err, errors.New(k.Problem()))
		}
		return nil
	})
	if k.Problem() != "" {
		t.Errorf("they are not to need the bucket: %s", k.Problem())
	}
	g.start(t)
	testkit.Eventually(t, patience, "the bucket gets what it missed, and keeps three", func() error {
		if list := there(); len(list) != 3 || !slices.Contains(list, here[0].File) && list[2] < here[0].File {
			return errors.New(strings.Join(list, " "))
		}
		return nil
	})
	newest := there()[0]
	file := filepath.Join(t.TempDir(), newest)
	if err := b.Get(t.Context(), "prod/"+newest, file); err != nil {
		t.Fatal(err)
	}
	c, err := snapshot.Unpack(t.Context(), file, t.TempDir(), nil)
	if err != nil || c.Info.Keys != 1 || c.Manifest.Facts.ClusterDomain != "sea" {
		t.Errorf("%+v: %v", c, err)
	}
}
