// Package s3 tests snapshots in a bucket against a server of S3's API that people run: versitygw, in a process of its own. It is a
// module of its own, so that what that stands on stays out of Barque's.
package s3

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"

	"barque.dev/internal/store/etcd/etcdtest"
	"barque.dev/internal/testkit"
)

const (
	accessKey, secretKey = "barque", "sails-in-the-wind"
	// patience bounds everything that a test waits for.
	patience = time.Minute
	// serveAs makes this program the server: it names the directory of buckets, sidecarOf the one of what is known of objects.
	serveAs, sidecarOf, listenOn, certOf, keyOf = "S3_DIR", "S3_SIDECAR", "S3_LISTEN", "S3_CERT", "S3_KEY"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(serveAs); dir != "" {
		if err := serve(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	etcdtest.Main(m)
}

// serve is the server's process.
func serve(dir string) error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	sidecar, err := meta.NewSideCar(os.Getenv(sidecarOf))
	if err != nil {
		return err
	}
	be, err := posix.New(dir, sidecar, posix.PosixOpts{SideCarDir: os.Getenv(sidecarOf), Concurrency: 16})
	if err != nil {
		return err
	}
	return embedgw.RunVersityGW(ctx, be, &embedgw.Config{
		RootUserAccess: accessKey, RootUserSecret: secretKey, Region: "us-east-1", Ports: []string{os.Getenv(listenOn)},
		CertFile: os.Getenv(certOf), KeyFile: os.Getenv(keyOf),
		MaxConnections: 64, MaxRequests: 64, MultipartMaxParts: 1000, Quiet: true, KeepAlive: true,
	})
}

// gateway is a server of S3's API with its data in a directory.
type gateway struct {
	dir, sidecar, address string
	env                   []string
	scheme                string
	process               *exec.Cmd
}

// newGateway starts one with a bucket; with a certificate if files are named.
func newGateway(t *testing.T, bucket, cert, key string) *gateway {
	t.Helper()
	g := &gateway{dir: t.TempDir(), sidecar: t.TempDir(), scheme: "http"}
	if err := os.Mkdir(filepath.Join(g.dir, bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.address = l.Addr().String()
	_ = l.Close()
	g.env = append(os.Environ(), serveAs+"="+g.dir, sidecarOf+"="+g.sidecar, listenOn+"="+g.address)
	if cert != "" {
		g.env, g.scheme = append(g.env, certOf+"="+cert, keyOf+"="+key), "https"
	}
	t.Cleanup(g.stop)
	g.start(t)
	return g
}

func (g *gateway) url() string { return g.scheme + "://" + g.address }

func (g *gateway) start(t *testing.T) {
	t.Helper()
	g.process = exec.Command("/proc/self/exe")
	g.process.Env = g.env
	log, err := os.OpenFile(filepath.Join(t.TempDir(), "server.log"), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	g.process.Stdout, g.process.Stderr = log, log
	g.process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := g.process.Start(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, patience, "the server listens", func() error {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(t.Context(), "tcp", g.address)
		if err == nil {
			_ = conn.Close()
			return nil
		}
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%w: %s", err, text)
	})
}

func (g *gateway) stop() {
	if g.process != nil {
		_ = g.process.Process.Kill()
		_ = g.process.Wait()
		g.process = nil
	}
}
