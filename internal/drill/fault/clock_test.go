package fault

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"
)

// tellEnv has the test program be a process that tells the time.
const tellEnv = "BARQUE_TEST_TELL_TIME"

func TestMain(m *testing.M) {
	if os.Getenv(tellEnv) != "" {
		tellTime()
		return
	}
	os.Exit(m.Run())
}

// tellTime answers each line with the wall clock, and the time since the process began by the one that goes on. Other threads
// read the clock all the while.
func tellTime() {
	began := time.Now()
	for range 3 {
		go func() {
			for {
				_ = time.Now()
				runtime.Gosched()
			}
		}()
	}
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		fmt.Println(time.Now().UnixNano(), int64(time.Since(began)))
	}
}

// TestShiftClock: a process' wall clock jumps ahead and back while it reads it, the time that goes on does not, and afterwards
// all is as it was.
func TestShiftClock(t *testing.T) {
	if err := canShiftClocks(); err != nil {
		if serr := shiftClock(os.Getpid(), time.Hour); serr == nil {
			t.Errorf("a clock was shifted where none can be: %v", err)
		}
		return
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), tellEnv+"=1", "GOMAXPROCS=2")
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = in.Close() }()
	answers := bufio.NewScanner(out)
	pid := cmd.Process.Pid
	ask := func() (off, since time.Duration) {
		t.Helper()
		before := time.Now()
		_, err := in.Write([]byte("\n"))
		must(t, err)
		if !answers.Scan() {
			t.Fatalf("the process has ended: %v", answers.Err())
		}
		var wall int64
		_, err = fmt.Sscan(answers.Text(), &wall, &since)
		must(t, err)
		off = time.Unix(0, wall).Sub(before)
		return off, since
	}
	_, last := ask()
	for _, by := range []time.Duration{0, time.Hour, -time.Hour, 48 * time.Hour, 0, time.Hour, 0} {
		must(t, shiftClock(pid, by))
		off, since := ask()
		if took := off - by; took < 0 || took > time.Minute {
			t.Errorf("shifted by %v, the clock is off by %v", by, off)
		}
		if since < last || since > last+time.Minute {
			t.Errorf("shifted by %v, %v have passed since %v", by, since, last)
		}
		last = since
	}
	must(t, in.Close())
	must(t, cmd.Wait())
	must(t, shiftClock(pid, 0)) // of a process that has ended nothing is shifted
	if err := shiftClock(pid, time.Hour); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("the clock of no process: %v", err)
	}
}
