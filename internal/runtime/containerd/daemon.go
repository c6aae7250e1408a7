package containerd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"barque.dev/internal/runtime/bundle"
	"barque.dev/internal/runtime/cgroup"
)

// stopGrace is how long the daemon may take to end by itself.
const stopGrace = 10 * time.Second

// logLimit is how large, in bytes, the daemon's log may become before it is moved away.
const logLimit = 16 << 20

// adoptOrStart returns a handle on the daemon: on the one that runs, if it was started with
// the same programs and configuration, or else on a new one.
func (r *Runtime) adoptOrStart(ctx context.Context, config []byte) (*process, error) {
	print, err := r.fingerprint(config)
	if err != nil {
		return nil, err
	}
	old, known := readRecord(r.data("containerd.pid"))
	if known {
		p, err := old.find()
		if err != nil {
			return nil, err
		}
		if p != nil && old.Fingerprint == print {
			r.cfg.Log.Info("containerd runs already", "pid", p.pid)
			return p, nil
		}
		if p != nil {
			r.cfg.Log.Info("restarting containerd, because its program, configuration or namespaces changed", "pid", p.pid)
			err := p.end(ctx, stopGrace)
			p.close()
			if err != nil {
				return nil, fmt.Errorf("stop containerd: %w", err)
			}
		}
	}
	if err := r.clearDeadState(ctx); err != nil {
		return nil, err
	}
	return r.start(config, print)
}

// fingerprint stands for everything that a running daemon must agree with to be kept: its
// programs, its configuration, and the namespaces that it and host-network pods live in.
func (r *Runtime) fingerprint(config []byte) (string, error) {
	h := sha256.New()
	h.Write(config)
	for _, ns := range []string{"net", "mnt"} {
		id, err := os.Readlink("/proc/thread-self/ns/" + ns)
		if err != nil {
			return "", fmt.Errorf("find out namespace: %w", err)
		}
		fmt.Fprintf(h, "\n%s", id)
	}
	fmt.Fprintf(h, "\n%s", r.cfg.Programs.Version)
	return hex.EncodeToString(h.Sum(nil)), nil
}

// start writes the configuration, starts the daemon and notes in the pid file that it has.
func (r *Runtime) start(config []byte, print string) (*process, error) {
	file := r.data("containerd.toml")
	if err := os.WriteFile(file, config, 0o644); err != nil {
		return nil, fmt.Errorf("write containerd's configuration: %w", err)
	}
	log, err := r.openLog()
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(r.cfg.Programs.Path(bundle.Containerd), "--config", file)
	cmd.Dir = "/"
	cmd.Env = environment(os.Environ(), r.cfg.Programs.Dir)
	cmd.Stdout, cmd.Stderr = log, log
	// A session of its own keeps the terminal's signals away from it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	p, err := r.settle(cmd.Process.Pid, print)
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	// From here on the handle alone is used, whoever's child the daemon is.
	if err := cmd.Process.Release(); err != nil {
		return nil, fmt.Errorf("start containerd: %w", err)
	}
	r.cfg.Log.Info("started containerd", "pid", p.pid)
	return p, nil
}

// settle puts a new daemon into its control group, so that what ends the server's group does
// not end pods, and writes the pid file.
func (r *Runtime) settle(pid int, print string) (*process, error) {
	if err := cgroup.Create(r.daemonGroup(), cgroup.Resources{}); err != nil {
		return nil, err
	}
	if err := cgroup.Add(r.daemonGroup(), pid); err != nil {
		return nil, err
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	// It is our child, so it can be asked even if it has ended already.
	_, ticks, err := readStat(pid)
	if err != nil {
		return nil, err
	}
	now := record{PID: pid, StartTime: ticks, Boot: boot, Fingerprint: print}
	if err := now.write(r.data("containerd.pid")); err != nil {
		return nil, err
	}
	return openProcess(pid)
}

// environment is the daemon's: ours, with the programs found first, and without what a
// service manager meant for us alone.
func environment(ours []string, programs string) []string {
	path := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	var env []string
	for _, e := range ours {
		name, value, _ := strings.Cut(e, "=")
		switch name {
		case "PATH":
			path = value
		case "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID":
		default:
			env = append(env, e)
		}
	}
	return append(env, "PATH="+programs+string(filepath.ListSeparator)+path)
}

// openLog opens the daemon's log to append to, and moves it away first if it is large.
func (r *Runtime) openLog() (*os.File, error) {
	if err := r.trimLog(); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(r.LogFile(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open containerd's log: %w", err)
	}
	return f, nil
}

// trimLog copies a large log away and empties it. The daemon keeps the file open, to append,
// so the file itself has to stay.
func (r *Runtime) trimLog() error {
	info, err := os.Stat(r.LogFile())
	if err != nil || info.Size() < logLimit {
		return nil //nolint:nilerr // no log yet
	}
	in, err := os.Open(r.LogFile())
	if err != nil {
		return fmt.Errorf("move containerd's log away: %w", err)
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(r.LogFile()+".1", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return fmt.Errorf("move containerd's log away: %w", err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Close(), os.Truncate(r.LogFile(), 0)); err != nil {
		return fmt.Errorf("move containerd's log away: %w", err)
	}
	return nil
}

// complaint returns the last thing of weight that the daemon printed after offset, for error
// messages, or nothing.
func (r *Runtime) complaint(offset int64) string {
	f, err := os.Open(r.LogFile())
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	const window = 64 << 10
	from := max(offset, info.Size()-window)
	data, err := io.ReadAll(io.NewSectionReader(f, from, window))
	if err != nil {
		return ""
	}
	return lastComplaint(data)
}

// lastComplaint picks the last line that is no mere information.
func lastComplaint(log []byte) string {
	last := ""
	for line := range bytes.Lines(log) {
		text := strings.TrimSpace(string(line))
		if text == "" || strings.Contains(text, "level=info") || strings.Contains(text, "level=warning") || strings.Contains(text, "level=debug") {
			continue
		}
		last = text
	}
	return last
}

// lock makes sure that one process at a time looks after the daemon. The lock ends with the
// process at the latest.
func (r *Runtime) lock(ctx context.Context, wait bool) (unlock func(), err error) {
	f, err := os.OpenFile(r.data("containerd.lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock containerd's directory: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || !wait {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: another process runs this node: %w", r.cfg.DataDir, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: another process still runs this node: %w", r.cfg.DataDir, context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
