package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// syncCounter counts the system calls fdatasync and fsync of some processes, all threads.
type syncCounter struct{ fds []int }

// tracing is where the kernel shows its tracepoints.
const tracing = "/sys/kernel/tracing"

// tracepoints are the numbers of those that are counted.
func tracepoints() (ids []uint64, err error) {
	// Where nobody has mounted what shows them, it is there for as long as this takes.
	if _, err := os.Stat(filepath.Join(tracing, "events")); os.IsNotExist(err) {
		if err := unix.Mount("tracefs", tracing, "tracefs", 0, ""); err != nil {
			return nil, fmt.Errorf("mount %s, by which system calls are counted: %w", tracing, err)
		}
		defer func() { err = errors.Join(err, unix.Unmount(tracing, 0)) }()
	}
	for _, call := range []string{"sys_enter_fdatasync", "sys_enter_fsync"} {
		data, err := os.ReadFile(filepath.Join(tracing, "events", "syscalls", call, "id"))
		if err != nil {
			return nil, fmt.Errorf("counting system calls takes root and a kernel that traces them: %w", err)
		}
		id, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("id of tracepoint %s: %w", call, err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// countSyncs begins to count. Threads that start later are counted with those that started them.
func countSyncs(pids []int) (*syncCounter, error) {
	ids, err := tracepoints()
	if err != nil {
		return nil, err
	}
	c := &syncCounter{}
	for _, id := range ids {
		for _, pid := range pids {
			if err := c.open(pid, id); err != nil {
				c.close()
				return nil, err
			}
		}
	}
	return c, nil
}

// open counts one tracepoint in every thread of a process.
func (c *syncCounter) open(pid int, id uint64) error {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*", pid))
	if err != nil {
		return err
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(filepath.Base(t))
		if err != nil {
			return err
		}
		attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_TRACEPOINT, Config: id, Bits: unix.PerfBitInherit}
		attr.Size = uint32(unsafe.Sizeof(attr))
		fd, err := unix.PerfEventOpen(&attr, tid, -1, -1, unix.PERF_FLAG_FD_CLOEXEC)
		if err == unix.ESRCH { //nolint:errorlint // the system call's own
			continue // the thread ended meanwhile
		}
		if err != nil {
			return fmt.Errorf("count system calls of thread %d: %w", tid, err)
		}
		c.fds = append(c.fds, fd)
	}
	return nil
}

// read returns what was counted so far.
func (c *syncCounter) read() (uint64, error) {
	var sum uint64
	for _, fd := range c.fds {
		var buf [8]byte
		if _, err := unix.Read(fd, buf[:]); err != nil {
			return 0, fmt.Errorf("read the count of system calls: %w", err)
		}
		sum += binary.NativeEndian.Uint64(buf[:])
	}
	return sum, nil
}

func (c *syncCounter) close() {
	for _, fd := range c.fds {
		_ = unix.Close(fd)
	}
}
