package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"barque.dev/internal/local"
	"barque.dev/test/proc"
)

// processesWith lists the processes whose command line names path.
func processesWith(path string) map[int]string {
	found := map[int]string{}
	entries, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, e := range entries {
		data, err := os.ReadFile(e)
		if err != nil || !strings.Contains(string(data), path) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(e)))
		if err == nil {
			found[pid] = strings.ReplaceAll(string(data), "\x00", " ")
		}
	}
	return found
}

// server is a control plane alone: `barque server --disable agent`.
type server struct {
	dir   string
	url   string
	cmd   *exec.Cmd
	ended chan struct{}
}

// startServer starts one and waits until /readyz answers 200; it returns how long that took.
func (b *bench) startServer(ctx context.Context, dir string, flags ...string) (*server, time.Duration, error) {
	free, err := proc.Ports(3) // the one after the peers' is the detector's
	if err != nil {
		return nil, 0, err
	}
	peer, api := free[0], free[2]
	log, err := os.OpenFile(dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = log.Close() }()
	s := &server{dir: dir, url: "https://127.0.0.1:" + api, ended: make(chan struct{})}
	s.cmd = exec.Command(b.program, append([]string{"server", "--disable", "agent", "--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1",
		"--data-dir", dir, "--https-port", api, "--etcd-peer-port", peer, "--log-level", "warn"}, flags...)...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, 0, err
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	if err := s.waitReady(ctx); err != nil {
		s.stop()
		said, _ := os.ReadFile(dir + ".log") // as far as it can be read
		return nil, 0, fmt.Errorf("%w; its log ends with: %s", err, said[max(0, len(said)-2000):])
	}
	return s, time.Since(started), nil
}

func (s *server) waitReady(ctx context.Context) error {
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // nothing is sent, and the CA does not exist yet
	}}
	defer client.CloseIdleConnections()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	for {
		if resp, err := client.Get(s.url + "/readyz"); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ended:
			return errors.New("the server ended before it was ready")
		case <-limit.C:
			return errors.New("the server was not ready within a minute")
		case <-tick.C:
		}
	}
}

// stop ends the server as an operator would.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(20 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.ended
	}
}

// tempDir is short, since sockets are below it, and named after this process.
func tempDir() (string, error) {
	return os.MkdirTemp("/tmp", fmt.Sprintf("bqbench-%d-", os.Getpid()))
}

// cleanUp removes what earlier runs that were killed left behind.
func cleanUp(ctx context.Context) error {
	old, _ := filepath.Glob("/tmp/bqbench-*")
	for _, dir := range old {
		pid, _, _ := strings.Cut(strings.TrimPrefix(dir, "/tmp/bqbench-"), "-")
		if exists("/proc/" + pid) {
			continue
		}
		if exists(filepath.Join(dir, "cluster.yaml")) {
			if err := local.Down(ctx, dir, func(string, ...any) {}); err != nil {
				return fmt.Errorf("clean up after an earlier run: %w", err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}
