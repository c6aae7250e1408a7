package upgrade

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"barque.dev/internal/testkit/sweep"
)

// The test's own program plays the machine: it is copied, and what is appended to the copy is its version. It says what it is
// to whoever connects to a socket in its data directory.
const (
	roleKey     = "BARQUE_UPGRADE_TEST"
	withinKey   = "BARQUE_UPGRADE_TEST_WITHIN"
	marker      = "\nplays:"
	playsWell   = "well"
	playsUnwell = "unwell" // never ready
	playsDead   = "dead"   // ends at once
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(roleKey); dir != "" {
		os.Exit(play(dir))
	}
	os.Exit(sweep.Main(m, func(_ context.Context, place string) error { return endAll(place) }))
}

// endAll ends what runs for a machine: its processes, and guards.
func endAll(dir string) error {
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		return err
	}
	for _, path := range environs {
		data, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(data, []byte(roleKey+"="+dir+"\x00")) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return err
		}
		if p, err := processOf(pid); err == nil && pid != os.Getpid() {
			p.end(0)
		}
	}
	return os.RemoveAll(dir)
}

// play is what a copy of the test's program does.
func play(dir string) int {
	program, err := os.ReadFile(running)
	if err != nil {
		return 1
	}
	name := string(program[bytes.LastIndex(program, []byte(marker))+len(marker):]) // the constant itself is in the program, too
	switch os.Args[1] {
	case "version":
		return sayVersion(name)
	case "upgrade":
		within, err := time.ParseDuration(os.Getenv(withinKey))
		if err != nil {
			return 1
		}
		bounds := Bounds{Within: within, Settled: 300 * time.Millisecond, Missing: time.Second, Look: 10 * time.Millisecond}
		g := Guard{Dir: dir, Look: lookAt(dir), Bounds: bounds, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
		if g.Run(context.Background()) != nil {
			return 1
		}
		return 0
	}
	if strings.HasPrefix(name, playsDead) {
		return 1
	}
	return serve(dir, name)
}

func sayVersion(name string) int {
	v := Version{Barque: name, Kubernetes: "v1.37.1", Etcd: "3.6.0"}
	if strings.Contains(name, "old") {
		v.Kubernetes = "v1.30.0"
	}
	if json.NewEncoder(os.Stdout).Encode(v) != nil {
		return 1
	}
	return 0
}

// serve is the machine's process: it switches when it is told to.
func serve(dir, name string) int {
	sum, err := SumOf(running)
	if err != nil {
		return 1
	}
	program, _ := ProgramFile()
	restart := make(chan struct{})
	u := New(Config{Dir: dir, Program: program, Name: "m", Self: Version{Barque: name, Kubernetes: "v1.37.1", Etcd: "3.6.0"}, Restart: func() { close(restart) }})
	if err := u.Resume(); err != nil {
		return 1
	}
	_ = os.Remove(filepath.Join(dir, "s"))
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		return 1
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = json.NewEncoder(conn).Encode(Sight{PID: os.Getpid(), Program: sum, Ready: !strings.HasPrefix(name, playsUnwell)})
			_ = conn.Close()
		}
	}()
	// An order to switch is a file with the sum.
	for {
		select {
		case <-restart:
			_ = l.Close()
			_ = syscall.Exec(program, os.Args, os.Environ())
			return 1
		case <-time.After(5 * time.Millisecond):
		}
		if data, err := os.ReadFile(filepath.Join(dir, "order")); err == nil {
			_ = os.Remove(filepath.Join(dir, "order"))
			if err := u.Switch(string(data)); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}
	}
}

func lookAt(dir string) func(context.Context) (Sight, error) {
	return func(context.Context) (s Sight, err error) {
		conn, err := net.Dial("unix", filepath.Join(dir, "s"))
		if err != nil {
			return s, err
		}
		defer func() { _ = conn.Close() }()
		return s, json.NewDecoder(conn).Decode(&s)
	}
}

// machine is a process of the program named first, and the file it was started from.
type machine struct {
	dir, program string
	cmd          *exec.Cmd
}

func programOf(t *testing.T, name string) []byte {
	t.Helper()
	own, err := os.ReadFile(running)
	if err != nil {
		t.Fatal(err)
	}
	return append(append(own, marker...), name...)
}

// start starts a machine whose guards wait so long for a new program.
func start(t *testing.T, within time.Duration) *machine {
	t.Helper()
	m := &machine{dir: sweep.Place(t)}
	m.program = filepath.Join(m.dir, "barque")
	if err := os.WriteFile(m.program, programOf(t, playsWell+"-1"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.cmd = exec.Command(m.program, "server")
	m.cmd.Env = append(os.Environ(), roleKey+"="+m.dir, withinKey+"="+within.String())
	m.cmd.Stderr = os.Stderr
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = m.cmd.Wait() }()
	t.Cleanup(func() {
		if err := endAll(m.dir); err != nil {
			t.Error(err)
		}
	})
	m.await(t, "the first program runs", func() bool { s, err := lookAt(m.dir)(t.Context()); return err == nil && s.Ready })
	return m
}

func (m *machine) await(t *testing.T, what string, done func() bool) {
	t.Helper()
	look := time.NewTicker(5 * time.Millisecond)
	defer look.Stop()
	for deadline := time.Now().Add(time.Minute); !done(); <-look.C {
		if time.Now().After(deadline) {
			r, err := readRecord(m.dir)
			t.Fatalf("%s: never; %+v %v", what, r, err)
		}
	}
}

// receive sends the machine a program as its own process would take it in.
func (m *machine) receive(t *testing.T, name string) (string, error) {
	t.Helper()
	program := programOf(t, name)
	hash := sha256.Sum256(program)
	sum := hex.EncodeToString(hash[:])
	u := New(Config{Dir: m.dir, Program: m.program, Self: Version{Barque: playsWell + "-1", Kubernetes: "v1.37.1", Etcd: "3.6.0"}})
	t.Setenv(roleKey, m.dir)
	_, err := u.Receive(t.Context(), sum, bytes.NewReader(program))
	return sum, err
}

func (m *machine) upgradeTo(t *testing.T, name string) Record {
	t.Helper()
	sum, err := m.receive(t, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.dir, "order.new"), []byte(sum), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(m.dir, "order.new"), filepath.Join(m.dir, "order")); err != nil {
		t.Fatal(err)
	}
	var r Record
	m.await(t, "the upgrade ends", func() bool {
		r, err = readRecord(m.dir)
		return err == nil && (r.Phase == Done || r.Phase == Reverted) && r.Sum == sum
	})
	return r
}

// runs waits until a program runs, and returns its process.
func (m *machine) runs(t *testing.T, name string) int {
	t.Helper()
	hash := sha256.Sum256(programOf(t, name))
	var pid int
	m.await(t, name+" runs", func() bool {
		s, err := lookAt(m.dir)(t.Context())
		pid = s.PID
		return err == nil && s.Program == hex.EncodeToString(hash[:])
	})
	return pid
}

func TestUpgrade(t *testing.T) {
	m := start(t, time.Minute)
	if r := m.upgradeTo(t, playsWell+"-2"); r.Phase != Done {
		t.Fatalf("%+v", r)
	}
	if pid := m.runs(t, playsWell+"-2"); pid != m.cmd.Process.Pid {
		t.Errorf("process %d became %d", m.cmd.Process.Pid, pid)
	}
	if sum, err := SumOf(m.program + ".previous"); err != nil || sum == "" {
		t.Errorf("the program before is gone: %v", err)
	}
}

func TestUpgradeRevertsWhatIsNotReady(t *testing.T) {
	m := start(t, time.Second)
	if r := m.upgradeTo(t, playsUnwell); r.Phase != Reverted || !strings.Contains(r.Reason, "not ready") {
		t.Fatalf("%+v", r)
	}
	m.runs(t, playsWell+"-1")
}

func TestUpgradeRevertsWhatDies(t *testing.T) {
	m := start(t, time.Minute)
	if r := m.upgradeTo(t, playsDead); r.Phase != Reverted || !strings.Contains(r.Reason, "nothing has started it again") {
		t.Fatalf("%+v", r)
	}
	m.runs(t, playsWell+"-1")
}

func TestReceiveRefuses(t *testing.T) {
	m := start(t, time.Minute)
	if _, err := m.receive(t, playsWell+"-old"); !errors.Is(err, ErrSkew) {
		t.Errorf("an old version: %v", err)
	}
	u := New(Config{Dir: m.dir, Program: m.program, Self: Version{Kubernetes: "v1.37.1", Etcd: "3.6.0"}})
	script := "#!/bin/sh\necho hello\n"
	hash := sha256.Sum256([]byte(script))
	if _, err := u.Receive(t.Context(), hex.EncodeToString(hash[:]), strings.NewReader(script)); !errors.Is(err, ErrProgram) {
		t.Errorf("something else: %v", err)
	}
	if _, err := u.Receive(t.Context(), strconv.Itoa(7), strings.NewReader(script)); !errors.Is(err, ErrProgram) || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("a damaged one: %v", err)
	}
	if err := u.Switch("7"); !errors.Is(err, ErrNothing) {
		t.Errorf("switch to what never came: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(m.dir, ".barque-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// A machine that went down in the midst of an upgrade, and starts with the new program, has it looked after again.
func TestResume(t *testing.T) {
	m := start(t, time.Second)
	sum, err := m.receive(t, playsUnwell)
	if err != nil {
		t.Fatal(err)
	}
	record, err := readRecord(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	_ = m.cmd.Process.Kill()
	m.await(t, "the process ends", func() bool { return !processIs(m.cmd.Process.Pid) })
	if err := errors.Join(copyProgram(m.program, record.previous()), rename(record.next(), m.program)); err != nil {
		t.Fatal(err)
	}
	record.Phase, record.Sum, record.Args = Switching, sum, m.cmd.Args
	if err := record.write(m.dir); err != nil {
		t.Fatal(err)
	}
	again := exec.Command(m.program, "server")
	again.Env = m.cmd.Env
	if err := again.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = again.Wait() }()
	m.await(t, "it is reverted", func() bool { r, err := readRecord(m.dir); return err == nil && r.Phase == Reverted })
	m.runs(t, playsWell+"-1")
}

func processIs(pid int) bool {
	p, err := processOf(pid)
	return err == nil && p.alive()
}
