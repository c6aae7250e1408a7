package portability

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// startTimeout bounds how long a program may take until it answers, on a machine that is busy.
const startTimeout = 90 * time.Second

// A portal is an API server, and how to speak to it as an administrator.
type portal struct {
	name    string
	process *process
	started time.Time
	dir     string // Barque's data directory; empty for stock
	config  *rest.Config
	dynamic dynamic.Interface
	disco   discovery.DiscoveryInterface
	rest    rest.Interface
}

func (p *portal) connect(t *testing.T) {
	t.Helper()
	p.config.QPS, p.config.Burst = -1, -1
	p.config.WarningHandler = rest.NoWarnings{}
	var err error
	if p.dynamic, err = dynamic.NewForConfig(p.config); err != nil {
		t.Fatal(err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(p.config)
	if err != nil {
		t.Fatal(err)
	}
	p.disco, p.rest = disco, disco.RESTClient()
}

func (p *portal) waitReady(t *testing.T) {
	t.Helper()
	eventually(t, startTimeout, p.name+" is ready", func(ctx context.Context) error {
		if p.process.ended() {
			t.Fatalf("%s ended:\n%s", p.name, p.process.log())
		}
		return p.rest.Get().AbsPath("/readyz").Do(ctx).Error()
	})
}

// endpoint is an etcd's client URL with what authenticates both sides.
type endpoint struct{ url, ca, cert, key string }

// flags are the endpoint's, as stock and Barque spell them alike but for the first.
func (e endpoint) flags(servers string) []string {
	flags := []string{servers + "=" + e.url, "--etcd-cafile=" + e.ca}
	if e.cert != "" {
		flags = append(flags, "--etcd-certfile="+e.cert, "--etcd-keyfile="+e.key)
	}
	return flags
}

// startMember starts a Barque control plane on an etcd of its own, and tells how to reach that.
func startMember(t *testing.T) (*portal, endpoint) {
	ports := freePorts(t, 3)
	p := startBarque(t, "embedded", "--etcd-peer-port="+strconv.Itoa(ports[0]), "--etcd-client-port="+strconv.Itoa(ports[2]))
	file := func(name string) string { return filepath.Join(p.dir, "certs", name) }
	return p, endpoint{
		url: "https://127.0.0.1:" + strconv.Itoa(ports[2]),
		ca:  file("etcd-peer-ca.crt"), cert: file("etcd-peer.crt"), key: file("etcd-peer.key"),
	}
}

// startBarque starts a control plane in a directory of its own.
func startBarque(t *testing.T, name string, flags ...string) *portal {
	t.Helper()
	return startBarqueIn(t, name, filepath.Join(t.TempDir(), "data"), flags...)
}

// startBarqueIn starts a control plane in a directory.
func startBarqueIn(t *testing.T, name, dir string, flags ...string) *portal {
	t.Helper()
	p := startBarqueUnready(t, name, dir, flags...)
	p.waitReady(t)
	return p
}

// startBarqueUnready starts a control plane that can't get ready yet, and returns when it answers.
func startBarqueUnready(t *testing.T, name, dir string, flags ...string) *portal {
	t.Helper()
	port := strconv.Itoa(freePorts(t, 1)[0])
	// Whole seconds, since Leases are compared with it.
	p := &portal{name: "barque " + name, dir: dir, started: time.Now().Truncate(time.Second)}
	p.process = start(t, barqueProgram, append([]string{
		"server", "--data-dir=" + p.dir, "--node-name=" + name, "--disable=agent", "--bind-address=127.0.0.1", "--https-port=" + port,
	}, flags...)...)
	kubeconfig := filepath.Join(p.dir, "kubeconfig")
	eventually(t, startTimeout, p.name+" writes its kubeconfig", func(context.Context) (err error) {
		if p.process.ended() {
			t.Fatalf("%s ended:\n%s", p.name, p.process.log())
		}
		p.config, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err == nil && !strings.HasSuffix(p.config.Host, ":"+port) {
			err = fmt.Errorf("it is still of an earlier start: %s", p.config.Host)
		}
		return err
	})
	p.connect(t)
	eventually(t, startTimeout, p.name+" answers", func(ctx context.Context) error {
		if p.process.ended() {
			t.Fatalf("%s ended:\n%s", p.name, p.process.log())
		}
		return p.rest.Get().AbsPath("/livez").Do(ctx).Error()
	})
	return p
}

// startStock starts a stock kube-apiserver on an etcd.
// Its administrator is Barque's, so that both servers note the same user.
func startStock(t *testing.T, e endpoint, admin *portal, flags ...string) *portal {
	t.Helper()
	dir := t.TempDir()
	port := strconv.Itoa(freePorts(t, 1)[0])
	clientCA, key := filepath.Join(dir, "client-ca.crt"), filepath.Join(dir, "sa.key")
	write(t, clientCA, admin.config.CAData)
	write(t, key, newKey(t))
	p := &portal{name: "stock kube-apiserver"}
	p.process = start(t, stockProgram, append(append(e.flags("--etcd-servers"), flags...),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port="+port, "--cert-dir="+dir,
		"--client-ca-file="+clientCA, "--authorization-mode=RBAC", "--service-cluster-ip-range=10.43.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file="+key, "--service-account-signing-key-file="+key,
		// Barque's servers keep the endpoints of the service kubernetes, and nobody makes accounts on
		// stock's etcd.
		"--endpoint-reconciler-type=none",
		"--disable-admission-plugins=ServiceAccount")...)
	ca := filepath.Join(dir, "apiserver.crt")
	eventually(t, startTimeout, p.name+" writes its certificate", func(context.Context) error {
		if p.process.ended() {
			t.Fatalf("%s ended:\n%s", p.name, p.process.log())
		}
		_, err := os.Stat(ca)
		return err
	})
	p.config = &rest.Config{
		Host: "https://127.0.0.1:" + port,
		TLSClientConfig: rest.TLSClientConfig{
			CAFile: ca, CertData: admin.config.CertData, KeyData: admin.config.KeyData,
		},
	}
	p.connect(t)
	p.waitReady(t)
	return p
}

// A process is a program that ends with the test.
type process struct {
	cmd  *exec.Cmd
	out  string
	done chan struct{}
}

func start(t *testing.T, program string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(program, args...), out: filepath.Join(t.TempDir(), "log"), done: make(chan struct{})}
	out, err := os.Create(p.out)
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait()
		_ = out.Close()
	}()
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(program), p.log())
		}
	})
	return p
}

// stop ends the process, by force if it doesn't end by itself.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		p.kill()
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// log is the end of what the process printed.
func (p *process) log() string {
	data, err := os.ReadFile(p.out)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-4000):])
}

// freePorts finds ports that follow each other.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
search:
	for range 100 {
		first, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := first.Addr().(*net.TCPAddr).Port
		_ = first.Close()
		ports := make([]int, n)
		for i := range ports {
			ports[i] = port + i
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+i))
			if err != nil {
				continue search
			}
			_ = l.Close()
		}
		return ports
	}
	t.Fatalf("no %d free ports in a row", n)
	return nil
}

// eventually waits until check returns nil.
func eventually(t *testing.T, timeout time.Duration, what string, check func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %v: %v", what, timeout, last)
		case <-tick.C:
		}
	}
}

func write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func newKey(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
}
