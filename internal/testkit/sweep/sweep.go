// Package sweep cleans up after tests even when they are killed: what they start may outlive
// them (a containerd and its pods are made to).
package sweep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

const (
	// env makes a test binary a sweeper instead of a test. Its value is the directory to sweep.
	env = "BARQUE_TEST_SWEEP"
	// patience bounds the sweeping.
	patience = time.Minute
	places   = "places"
)

// Main runs the tests of a package, for its TestMain, and returns the exit code. Beside them runs
// a second process of the same binary, which waits for their end, however it comes. It then calls
// remove for every place (see [Place]) that is still there, and removes the temporary directory
// that the tests had. A place that is left is a failure: tests clean up after themselves unless
// they are killed.
func Main(m *testing.M, remove func(ctx context.Context, place string) error) int {
	if dir := os.Getenv(env); dir != "" {
		return sweep(dir, remove)
	}
	code, err := guarded(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// Place makes a directory that is swept should the test not remove it.
func Place(tb testing.TB) string {
	tb.Helper()
	parent := filepath.Join(os.TempDir(), places)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		tb.Fatal(err)
	}
	// The name is short, since sockets are below it and their paths are limited.
	dir, err := os.MkdirTemp(parent, "p")
	if err != nil {
		tb.Fatal(err)
	}
	return dir
}

func guarded(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "barque-test-")
	if err != nil {
		return 0, err
	}
	program, err := os.Executable()
	if err != nil {
		return 0, err
	}
	sweeper := exec.Command(program)
	sweeper.Env = append(os.Environ(), env+"="+dir)
	sweeper.Stdout, sweeper.Stderr = os.Stdout, os.Stderr
	sweeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // what kills the tests' group spares it
	end, err := sweeper.StdinPipe()
	if err != nil {
		return 0, err
	}
	if err := sweeper.Start(); err != nil {
		return 0, err
	}
	if err := os.Setenv("TMPDIR", dir); err != nil {
		return 0, err
	}
	code := m.Run()
	if err := end.Close(); err != nil {
		return 0, err
	}
	return code, sweeper.Wait()
}

func sweep(dir string, remove func(ctx context.Context, place string) error) int {
	_, _ = io.Copy(io.Discard, os.Stdin)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	left, _ := filepath.Glob(filepath.Join(dir, places, "*"))
	var errs []error
	for _, place := range left {
		errs = append(errs, fmt.Errorf("%s was left", place), remove(ctx, place))
	}
	if err := errors.Join(append(errs, os.RemoveAll(dir))...); err != nil {
		fmt.Fprintln(os.Stderr, "swept up:", err)
		return 1
	}
	return 0
}
