package upgrade

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"barque.dev/internal/run"
)

// GuardArgs are the arguments of a guard's process, for the machine with the data directory.
func GuardArgs(dir string) []string { return []string{"upgrade", "guard", dir} }

// A Sight is what a machine's process says of itself.
type Sight struct {
	PID int `json:"pid"`
	// Program is the SHA-256 of its program, in hex.
	Program string `json:"program"`
	// Ready: all that it does has started.
	Ready bool `json:"ready"`
}

// Bounds are the times of a guard.
type Bounds struct {
	// Within is how long the new program has to become ready, the end of the old one included.
	Within time.Duration
	// Settled is for how long it has to stay ready.
	Settled time.Duration
	// Missing is for how long there may be no process: its supervisor should have started it again.
	Missing time.Duration
	// Look is the time between two looks.
	Look time.Duration
}

// DefaultBounds are generous: a server may have requests to finish, and a large log of etcd to read.
var DefaultBounds = Bounds{Within: 3 * time.Minute, Settled: 5 * time.Second, Missing: 10 * time.Second, Look: 250 * time.Millisecond}

// maxLives is how many processes of the new program a guard watches die.
const maxLives = 4

// A Guard looks after a machine whose program is being replaced.
type Guard struct {
	// Dir is the machine's data directory.
	Dir string
	// Look asks the machine's process; an error when there is none, or it says nothing yet.
	Look   func(ctx context.Context) (Sight, error)
	Bounds Bounds
	Log    *slog.Logger
}

// Run returns when the new program does its work, or the old one runs again. The error says why it was taken back.
func (g Guard) Run(ctx context.Context) error {
	lock, err := takeLock(g.Dir)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	record, err := readRecord(g.Dir)
	if err != nil {
		return err
	}
	if record.Phase != Switching {
		return fmt.Errorf("look after %s: nothing is being replaced there", g.Dir)
	}
	failure := g.watch(ctx, record)
	if failure == nil {
		g.Log.Info("the new program does its work", "version", record.To.Barque)
		record.Phase = Done
		return record.write(g.Dir)
	}
	if ctx.Err() != nil {
		return failure // the machine goes down; its next start goes on
	}
	g.Log.Error("the new program does not do: the old one takes its place again", "version", record.To.Barque, "err", failure)
	record.Phase, record.Reason = Reverted, failure.Error()
	return errors.Join(failure, g.revert(ctx, record))
}

// watch waits until the new program is well; an error says why that is not to be expected any more.
func (g Guard) watch(ctx context.Context, record Record) error {
	begin := time.Now()
	missing, well := begin, time.Time{}
	lives := map[int]bool{}
	last := errors.New("it was not seen")
	for {
		now := time.Now()
		sight, err := g.Look(ctx)
		switch {
		case err != nil:
			well, last = time.Time{}, err
		case sight.Program != record.Sum:
			well, last = time.Time{}, errors.New("the old program still runs")
		default:
			lives[sight.PID] = true
			if !sight.Ready {
				well, last = time.Time{}, errors.New("it is not ready")
			} else if well.IsZero() {
				well = now
			}
		}
		if err == nil || record.Process.alive() {
			missing = now
		}
		switch {
		case !well.IsZero() && now.Sub(well) >= g.Bounds.Settled:
			return nil
		case now.Sub(missing) > g.Bounds.Missing:
			return fmt.Errorf("its process ended, and nothing has started it again for %v (%w)", g.Bounds.Missing, last)
		case len(lives) > maxLives:
			return fmt.Errorf("its process ended %d times", maxLives)
		case now.Sub(begin) > g.Bounds.Within:
			return fmt.Errorf("it was not ready within %v (%w)", g.Bounds.Within, last)
		}
		if !run.Pause(ctx, g.Bounds.Look) {
			return ctx.Err()
		}
	}
}

// revert puts the old program back and has it run.
func (g Guard) revert(ctx context.Context, record Record) error {
	if err := copyProgram(record.previous(), record.Program); err != nil {
		return fmt.Errorf("put %s back: %w", record.previous(), err)
	}
	if err := record.write(g.Dir); err != nil {
		return err
	}
	g.end(ctx, record)
	// A supervisor, if there is one, starts it.
	begin := time.Now()
	for time.Since(begin) < g.Bounds.Missing {
		if sight, err := g.Look(ctx); err == nil && sight.Program != record.Sum {
			return nil
		}
		if !run.Pause(ctx, g.Bounds.Look) {
			return ctx.Err()
		}
	}
	cmd := exec.Command(record.Program, record.Args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = os.Stdout, os.Stderr, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s again: %w", record.Program, err)
	}
	return nil
}

// endWithin is how long a process of the new program may take to end in good order.
const endWithin = 20 * time.Second

// end ends the process of the new program: the one that the old one became, or the one that was started since.
func (g Guard) end(ctx context.Context, record Record) {
	if sight, err := g.Look(ctx); err == nil {
		if sight.Program != record.Sum {
			return // it is the old one by now
		}
		if p, err := processOf(sight.PID); err == nil {
			p.end(endWithin)
		}
	}
	record.Process.end(endWithin)
}

const lockFile = "upgrade.lock"

// takeLock makes this process the machine's only guard.
func takeLock(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("look after %s: %w", dir, err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("look after %s: another process does so already", dir)
	}
	return lock, nil
}

// guarded tells whether a guard looks after the machine.
func guarded(dir string) bool {
	lock, err := takeLock(dir)
	if err == nil {
		_ = lock.Close()
	}
	return err != nil
}
