package upgrade

import (
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A process is named for ever by its number and when it started, in clock ticks since boot (proc_pid_stat(5)): a number alone may
// be another's later. Both stay when it becomes another program.
type process struct {
	PID   int    `json:"pid"`
	Start string `json:"start"`
}

// processOf is the process that has the number now.
func processOf(pid int) (process, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	// The command's name, the second field, may hold spaces and parentheses.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	const start, behind = 22, 3 // the field's number, and that of the first one behind the name
	if len(fields) <= start-behind {
		return process{}, fmt.Errorf("read /proc/%d/stat: it is too short", pid)
	}
	return process{PID: pid, Start: fields[start-behind]}, nil
}

// open returns a handle on the process (pidfd_open(2)); false if it has ended.
func (p process) open() (handle int, alive bool) {
	handle, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return -1, false
	}
	// The handle holds whoever has the number now.
	if now, err := processOf(p.PID); err != nil || now != p || ended(handle, 0) {
		_ = unix.Close(handle)
		return -1, false
	}
	return handle, true
}

func (p process) alive() bool {
	handle, alive := p.open()
	if alive {
		_ = unix.Close(handle)
	}
	return alive
}

// end ends the process: it is asked to, and made to after a while.
func (p process) end(within time.Duration) {
	handle, alive := p.open()
	if !alive {
		return
	}
	defer func() { _ = unix.Close(handle) }()
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if unix.PidfdSendSignal(handle, signal, nil, 0) != nil || ended(handle, within) {
			return
		}
	}
}

// ended waits until the process has ended, at most for as long.
func ended(handle int, within time.Duration) bool {
	deadline := time.Now().Add(within)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(handle), Events: unix.POLLIN}}, int(max(0, time.Until(deadline).Milliseconds())))
		if err != unix.EINTR { //nolint:errorlint // what the system said
			return err == nil && n > 0
		}
	}
}
