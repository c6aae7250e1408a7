package upgrade

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
)

// running is the program of this process, also when its file is gone.
const running = "/proc/self/exe"

// Config is what an Upgrader stands on.
type Config struct {
	// Dir is the machine's data directory, Program the file that its process was started from; "" if that is gone.
	Dir, Program string
	Name         string // the machine's
	Self         Version
	// Restart ends what the process does in good order, and makes it the program that Program is by then.
	Restart func()
	Log     *slog.Logger
}

// An Upgrader replaces the program of this machine. It may be used by several goroutines; one replacement goes on at a time.
type Upgrader struct {
	cfg Config
	sum func() (string, error) // of the running program

	mu sync.Mutex
}

// New makes an Upgrader.
func New(cfg Config) *Upgrader {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Upgrader{cfg: cfg, sum: sync.OnceValues(func() (string, error) { return SumOf(running) })}
}

// Errors of an Upgrader.
var (
	// ErrBusy: another replacement goes on.
	ErrBusy = errors.New("this machine's program is being replaced already")
	// ErrProgram: what was sent can't be the machine's program.
	ErrProgram = errors.New("the program can't run here")
	// ErrNothing: there is nothing to switch, or to go back to.
	ErrNothing = errors.New("there is no such program on this machine")
)

// A Status is what a machine tells.
type Status struct {
	Machine string  `json:"machine"`
	Running Version `json:"running"`
	// Sum is the SHA-256 of the running program, in hex, Program its file.
	Sum     string `json:"sum"`
	Program string `json:"program"`
	Last    Record `json:"last"`
}

// Status tells what runs, and what came of the last replacement.
func (u *Upgrader) Status() (Status, error) {
	record, err := readRecord(u.cfg.Dir)
	if err != nil {
		return Status{}, err
	}
	sum, err := u.sum()
	if err != nil {
		return Status{}, err
	}
	return Status{Machine: u.cfg.Name, Running: u.cfg.Self, Sum: sum, Program: u.cfg.Program, Last: record}, nil
}

// Receive takes a program in, whose SHA-256 is sum, and keeps it if it may follow the one that runs.
func (u *Upgrader) Receive(ctx context.Context, sum string, body io.Reader) (Version, error) {
	if !u.mu.TryLock() {
		return Version{}, ErrBusy
	}
	defer u.mu.Unlock()
	record, err := u.idle()
	if err != nil {
		return Version{}, err
	}
	hash := sha256.New()
	fill := func(w io.Writer) error {
		if _, err := io.Copy(io.MultiWriter(w, hash), body); err != nil {
			return fmt.Errorf("receive the program: %w", err)
		}
		return nil
	}
	var v Version
	err = put(record.next(), 0o755, fill, func(part string) error {
		if got := hex.EncodeToString(hash.Sum(nil)); got != sum {
			return fmt.Errorf("%w: its SHA-256 is %s, and should be %s: send it again", ErrProgram, got, sum)
		}
		if v, err = VersionOf(ctx, part); err != nil {
			return fmt.Errorf("%w: %w", ErrProgram, err)
		}
		return Allowed(u.cfg.Self, v)
	})
	if errors.Is(err, os.ErrPermission) || errors.Is(err, syscall.EROFS) {
		err = fmt.Errorf("the directory of %s must be writable for an upgrade: %w", record.Program, err)
	}
	if err != nil {
		return Version{}, err
	}
	record.Phase, record.To, record.Sum = Staged, v, sum
	return v, record.write(u.cfg.Dir)
}

// idle returns a record to begin with, unless a replacement goes on.
func (u *Upgrader) idle() (Record, error) {
	last, err := readRecord(u.cfg.Dir)
	if err != nil {
		return Record{}, err
	}
	if last.Phase == Switching {
		return Record{}, ErrBusy
	}
	if u.cfg.Program == "" {
		return Record{}, errors.New("the file that this machine's process was started from was removed, and can't be replaced: restart the process first")
	}
	self, err := processOf(os.Getpid())
	if err != nil {
		return Record{}, fmt.Errorf("find this process: %w", err)
	}
	return Record{From: u.cfg.Self, Program: u.cfg.Program, Args: slices.Clone(os.Args), Process: self}, nil
}

// Switch goes over to the program that was received. It returns when that is decided; the process ends soon after.
func (u *Upgrader) Switch(sum string) error {
	if !u.mu.TryLock() {
		return ErrBusy
	}
	defer u.mu.Unlock()
	record, err := u.idle()
	if err != nil {
		return err
	}
	last, err := readRecord(u.cfg.Dir)
	if err != nil {
		return err
	}
	if last.Phase != Staged || last.Sum != sum {
		return fmt.Errorf("%w: send it first", ErrNothing)
	}
	record.To, record.Sum = last.To, sum
	return u.swap(record, record.next())
}

// Back goes over to the program that ran before.
func (u *Upgrader) Back(ctx context.Context) error {
	if !u.mu.TryLock() {
		return ErrBusy
	}
	defer u.mu.Unlock()
	record, err := u.idle()
	if err != nil {
		return err
	}
	if record.Sum, err = SumOf(record.previous()); err != nil {
		return fmt.Errorf("%w: %w", ErrNothing, err)
	}
	if record.To, err = VersionOf(ctx, record.previous()); err != nil {
		return fmt.Errorf("%s: %w", record.previous(), err)
	}
	if err := rename(record.previous(), record.next()); err != nil {
		return fmt.Errorf("take the program before: %w", err)
	}
	return u.swap(record, record.next())
}

// swap puts the file next in the place of the program. The order of its steps is such that at every moment what is at
// Program runs, and whoever finds the record can go back.
func (u *Upgrader) swap(record Record, next string) error {
	// Machines of a local cluster share one file, which another one may have replaced already.
	shared, err := SumOf(record.Program)
	if err != nil {
		return fmt.Errorf("read the program in place: %w", err)
	}
	if sum, err := SumOf(next); (err != nil || sum != record.Sum) && shared != record.Sum {
		return fmt.Errorf("%w: %s is not what was received: send it again", ErrNothing, next)
	}
	if err := copyProgram(running, record.previous()); err != nil {
		return fmt.Errorf("keep the program that runs: %w", err)
	}
	record.Phase = Switching
	if err := record.write(u.cfg.Dir); err != nil {
		return err
	}
	if err := u.guard(record); err != nil {
		return errors.Join(err, u.giveUp(record, err))
	}
	if shared != record.Sum {
		if err := rename(next, record.Program); err != nil {
			return errors.Join(err, u.giveUp(record, err))
		}
	}
	u.cfg.Log.Info("the program is replaced, and started anew", "from", u.cfg.Self.Barque, "to", record.To.Barque, "program", record.Program)
	u.cfg.Restart()
	return nil
}

func (u *Upgrader) giveUp(record Record, why error) error {
	record.Phase, record.Reason = Reverted, why.Error()
	return record.write(u.cfg.Dir)
}

// Sight is what this process says of itself to a guard.
func (u *Upgrader) Sight(ready bool) (Sight, error) {
	sum, err := u.sum()
	return Sight{PID: os.Getpid(), Program: sum, Ready: ready}, err
}

// Resume goes on with a replacement in the midst of which the machine went down. It is called when the process starts.
func (u *Upgrader) Resume() error {
	record, err := readRecord(u.cfg.Dir)
	if err != nil || record.Phase != Switching || guarded(u.cfg.Dir) {
		return err
	}
	if record.Process, err = processOf(os.Getpid()); err != nil {
		return fmt.Errorf("find this process: %w", err)
	}
	sum, err := u.sum()
	if err != nil {
		return err
	}
	if sum != record.Sum {
		return u.giveUp(record, errors.New("the machine went down before it was switched"))
	}
	if err := record.write(u.cfg.Dir); err != nil {
		return err
	}
	return u.guard(record)
}

// guard starts a process of the old program that looks after the new one. It outlives this process.
func (u *Upgrader) guard(record Record) error {
	cmd := exec.Command(record.previous(), GuardArgs(u.cfg.Dir)...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = os.Stdout, os.Stderr, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start what looks after the new program: %w", err)
	}
	// Should this process still be there when the guard has ended, it is reaped.
	go func() { _ = cmd.Wait() }()
	return nil
}
