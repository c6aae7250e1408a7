package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"

	"barque.dev/internal/network/namespace"
)

// A side is one of those that are measured.
type side interface {
	name() string
	// start starts the control plane that a row wants with its data below dir, and returns when
	// every API server is ready.
	start(ctx context.Context, dir string, r row) (*plane, error)
}

// plane is a control plane that runs.
type plane struct {
	processes []*process
	urls      []string // of the API servers
	tls       *tls.Config
	// restart starts it again after all processes were killed; on the same data.
	restart func(ctx context.Context) error
	// leader finds the member, from 0, whose loss is the worst: its etcd leads, and so do its
	// scheduler and controllers.
	leader func(ctx context.Context) (int, error)
	// network is where the processes are; the zero value is this program's.
	network namespace.Namespace
	// scheduler is the URL of who schedules, which has metrics.
	scheduler string
	// cleanUps end what is not a process, the last that was added first.
	cleanUps []func() error
}

// program is one that the plane runs.
type program struct {
	name, path string
	args       []string
	dir        string // that its log is in
	member     int    // whose it is, from 0
	// keepsState: what it syncs to disk is the state.
	keepsState bool
}

// process is a program that runs.
type process struct {
	program
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// stopTimeout is what a process gets to end by itself.
const stopTimeout = 20 * time.Second

// launch starts a program that ends with this one.
func (p *plane) launch(what program) error {
	log := filepath.Join(what.dir, what.name+".log")
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	c := &process{program: what, cmd: exec.Command(what.path, what.args...), log: log, done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.network.Do(c.cmd.Start); err != nil {
		return fmt.Errorf("start %s: %w", what.name, err)
	}
	go func() {
		defer close(c.done)
		_ = c.cmd.Wait()
	}()
	p.processes = append(p.processes, c)
	return nil
}

// stop ends all processes as an operator would: those that were started last first.
func (p *plane) stop() error {
	var failures []error
	for i := len(p.processes) - 1; i >= 0; i-- {
		c := p.processes[i]
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-c.done:
		case <-time.After(stopTimeout):
			_ = c.cmd.Process.Kill()
			<-c.done
			failures = append(failures, fmt.Errorf("%s did not end within %v", c.name, stopTimeout))
		}
	}
	p.processes = nil
	for _, cleanUp := range slices.Backward(p.cleanUps) {
		failures = append(failures, cleanUp())
	}
	return errors.Join(failures...)
}

// kill ends all processes at once by SIGKILL.
func (p *plane) kill() { p.killThose(func(*process) bool { return true }) }

// killThose ends the processes that are chosen at once by SIGKILL.
func (p *plane) killThose(chosen func(*process) bool) {
	var left, killed []*process
	for _, c := range p.processes {
		if !chosen(c) {
			left = append(left, c)
			continue
		}
		_ = c.cmd.Process.Kill()
		killed = append(killed, c)
	}
	for _, c := range killed {
		<-c.done
	}
	p.processes = left
}

// startTimeout bounds how long a plane may take until it is ready.
const startTimeout = 2 * time.Minute

// poll calls f until it returns nil, a process of the plane has ended, or time is up.
func (p *plane) poll(ctx context.Context, what string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		if last = f(ctx); last == nil {
			return nil
		}
		for _, c := range p.processes {
			select {
			case <-c.done:
				return fmt.Errorf("%s ended; its log ends with:\n%s", c.name, tail(c.log))
			default:
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", what, ctx.Err(), last)
		case <-tick.C:
		}
	}
}

func tail(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-2000):])
}

// pids are its processes'.
func (p *plane) pids() []int {
	var all []int
	for _, c := range p.processes {
		all = append(all, c.cmd.Process.Pid)
	}
	return all
}

// awaitReady waits until every API server says that it is.
func (p *plane) awaitReady(ctx context.Context) error {
	for _, u := range p.urls {
		client := &http.Client{Timeout: 5 * time.Second, Transport: p.transport(nil)}
		err := p.poll(ctx, u+"/readyz", func(ctx context.Context) error {
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, u+"/readyz", nil)
			if err != nil {
				return err
			}
			resp, err := client.Do(req)
			if err != nil {
				return err
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return errors.New(resp.Status)
			}
			return nil
		})
		client.CloseIdleConnections()
		if err != nil {
			return err
		}
	}
	return nil
}

// transport makes connections of its own; control may set options of their sockets.
func (p *plane) transport(control func(network, address string, c syscall.RawConn) error) *http.Transport {
	dialer := &net.Dialer{Timeout: 5 * time.Second, Control: control}
	return &http.Transport{
		TLSClientConfig: p.tls.Clone(), DisableCompression: true,
		DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
			err = p.network.Do(func() (err error) {
				conn, err = dialer.DialContext(ctx, network, address)
				return err
			})
			return conn, err
		},
	}
}

// metrics asks one of its programs.
func (p *plane) metrics(ctx context.Context, url string) (map[string]*dto.MetricFamily, error) {
	c := &lean{http: &http.Client{Timeout: 5 * time.Second, Transport: p.transport(nil)}, url: url}
	defer c.http.CloseIdleConnections()
	return c.metrics(ctx)
}

// holder is who holds one of the Leases of leadership.
func holder(ctx context.Context, c *lean, name string) (string, error) {
	var lease struct {
		Spec struct {
			HolderIdentity string `json:"holderIdentity"`
		} `json:"spec"`
	}
	if err := c.ask(ctx, "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/"+name, &lease); err != nil {
		return "", err
	}
	if lease.Spec.HolderIdentity == "" {
		return "", fmt.Errorf("nobody holds the lease %s", name)
	}
	return lease.Spec.HolderIdentity, nil
}

// clientTLS is a client's configuration from PEM files.
func clientTLS(ca, cert, key []byte) (*tls.Config, error) {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("authority's certificate: not PEM")
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}, nil
}
