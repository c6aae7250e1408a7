package fault

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestThrottle: what a process syncs waits for its turn while it is slowed down, and no longer afterwards.
func TestThrottle(t *testing.T) {
	dir := t.TempDir()
	group := filepath.Join("barque-drill-test", filepath.Base(dir))
	_, err := deviceOf(dir)
	if err = errors.Join(err, canThrottle()); err != nil {
		if terr := throttle(os.Getpid(), dir, group, 1); terr == nil {
			t.Errorf("a disk was slowed down where none can be: %v", err)
		}
		return
	}
	f, err := os.Create(filepath.Join(dir, "log"))
	must(t, err)
	defer func() { _ = f.Close() }()
	must(t, unix.Fallocate(int(f.Fd()), 0, 0, 1<<20))
	must(t, f.Sync())
	const times, writes = 5, 10
	sync := func() time.Duration {
		t.Helper()
		began := time.Now()
		for i := range times {
			_, err := f.WriteAt([]byte("entry"), int64(i*4096))
			must(t, err)
			must(t, unix.Fdatasync(int(f.Fd())))
		}
		return time.Since(began)
	}
	t.Cleanup(func() { _ = unix.Rmdir(filepath.Join(blockControl, "barque-drill-test")) })
	must(t, throttle(os.Getpid(), dir, group, writes))
	slow := sync()
	for range 2 { // also when it is as fast as it can be
		must(t, throttle(os.Getpid(), dir, group, 0))
	}
	// The first of each second may go at once.
	if least := (times - 1) * time.Second / writes; slow < least {
		t.Errorf("%d syncs at %d writes a second take %v, want %v at least", times, writes, slow, least)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	must(t, err)
	if strings.Contains(string(own), group) {
		t.Errorf("the process stays in its group: %s", own)
	}
	if _, err := os.Stat(filepath.Join(blockControl, group)); err == nil {
		t.Error("the group stays")
	}
	if err := throttle(os.Getpid(), "/proc", group, writes); err == nil {
		t.Error("what is on no disk was slowed down")
	}
}
