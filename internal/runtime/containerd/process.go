package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// record is what the pid file says about a daemon.
type record struct {
	PID int `json:"pid"`
	// StartTime, in clock ticks since boot, tells the process from another one that got the
	// same pid later.
	StartTime uint64 `json:"startTime"`
	// Boot is the kernel's id of the boot that StartTime counts from.
	Boot string `json:"boot"`
	// Fingerprint stands for the programs, the configuration and the namespaces that the
	// daemon was started with.
	Fingerprint string `json:"fingerprint"`
}

// readRecord reads a pid file; ok is false if there is none, or none that can be understood.
func readRecord(path string) (r record, ok bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return record{}, false
	}
	err = json.Unmarshal(data, &r)
	return r, err == nil && r.PID > 0
}

// write replaces a pid file.
func (r record) write(path string) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.WriteFile(path+".new", append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// bootID returns the kernel's id of the current boot.
func bootID() (string, error) {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// startTime returns when a process started, in clock ticks since boot. A process that has
// ended and only waits to be reaped does not exist any more.
func startTime(pid int) (uint64, error) {
	state, ticks, err := readStat(pid)
	if err != nil {
		return 0, err
	}
	if state == "Z" || state == "X" {
		return 0, fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	return ticks, nil
}

// readStat returns a process's state, as one letter, and when it started, in clock ticks since
// boot.
func readStat(pid int) (state string, start uint64, err error) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err == nil {
		state, start, err = parseStat(string(data))
	}
	if err != nil {
		return "", 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	return state, start, nil
}

// parseStat picks state and start time out of a line of /proc/PID/stat (proc_pid_stat(5)).
func parseStat(line string) (state string, start uint64, err error) {
	// The second field, the name, is in parentheses and may hold anything.
	end := strings.LastIndexByte(line, ')')
	fields := strings.Fields(line[end+1:])
	if end < 0 || len(fields) < 20 {
		return "", 0, errors.New("unknown format")
	}
	start, err = strconv.ParseUint(fields[19], 10, 64)
	return fields[0], start, err
}

// process is a handle on one process, child or not, that cannot come to mean another one.
type process struct {
	pid int
	fd  *os.File
}

// openProcess takes a handle on a process.
func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &process{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// close gives up the handle; the process goes on.
func (p *process) close() { _ = p.fd.Close() }

// wait returns nil when the process has ended, or ctx's error. A child is reaped.
func (p *process) wait(ctx context.Context) error {
	if err := p.fd.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = p.fd.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	// A pidfd becomes readable when the process ends (pidfd_open(2)).
	err = conn.Read(func(fd uintptr) bool {
		set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(set, 0)
		return err == nil && n > 0
	})
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("wait for process %d: %w", p.pid, err)
	}
	// Fails if the process is somebody else's child, who reaps it then.
	_, _ = unix.Wait4(p.pid, nil, unix.WNOHANG, nil)
	return nil
}

// signal sends a signal; a process that has ended already is no error.
func (p *process) signal(s unix.Signal) error {
	conn, err := p.fd.SyscallConn()
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	var sendErr error
	if err := conn.Control(func(fd uintptr) { sendErr = unix.PidfdSendSignal(int(fd), s, nil, 0) }); err != nil {
		return fmt.Errorf("signal process %d: %w", p.pid, err)
	}
	if sendErr != nil && !errors.Is(sendErr, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.pid, sendErr)
	}
	return nil
}

// end asks the process to end and kills it after grace. It returns when it has ended.
func (p *process) end(ctx context.Context, grace time.Duration) error {
	if err := p.signal(unix.SIGTERM); err != nil {
		return err
	}
	limit, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if p.wait(limit) == nil {
		return nil
	}
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	return p.wait(ctx)
}

// find returns a handle on the process that a record means, or nil if it does not run.
func (r record) find() (*process, error) {
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	if r.Boot != boot {
		return nil, nil
	}
	p, err := openProcess(r.PID)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	// Compared after the handle was taken, so that the handle means this very process.
	if start, err := startTime(r.PID); err != nil || start != r.StartTime {
		p.close()
		return nil, nil //nolint:nilerr // a process that cannot be read has ended
	}
	return p, nil
}
