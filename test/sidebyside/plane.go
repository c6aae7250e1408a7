package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
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
}

// process is a program that the plane runs.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	// keepsState: what it syncs to disk is the state.
	keepsState bool
}

// stopTimeout is what a process gets to end by itself.
const stopTimeout = 20 * time.Second

// launch starts a program that ends with this one.
func (p *plane) launch(name, dir, program string, keepsState bool, args ...string) (*process, error) {
	log := filepath.Join(dir, name+".log")
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = out.Close() }()
	c := &process{name: name, cmd: exec.Command(program, args...), log: log, done: make(chan struct{}), keepsState: keepsState}
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(c.done)
		_ = c.cmd.Wait()
	}()
	p.processes = append(p.processes, c)
	return c, nil
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
	return errors.Join(failures...)
}

// kill ends all processes at once by SIGKILL.
func (p *plane) kill() {
	for _, c := range p.processes {
		_ = c.cmd.Process.Kill()
	}
	for _, c := range p.processes {
		<-c.done
	}
	p.processes = nil
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
		client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: p.tls}}
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
