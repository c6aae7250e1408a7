// Package plane starts control planes for what compares them: Barque's, and stock Kubernetes' of the release
// that Barque serves, beside each other on this machine.
package plane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"barque.dev/internal/network/namespace"
)

// Program is one that a control plane runs.
type Program struct {
	Name, Path string
	Args       []string
	Dir        string // that its log is in
	Member     int    // whose it is, from 0
	// KeepsState: what it syncs to disk is the state.
	KeepsState bool
}

// Process is a program that runs.
type Process struct {
	Program
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// PID is the process' number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Programs are those of one control plane that run. The zero value has none. It is for one goroutine at a time.
type Programs struct {
	Running []*Process
	// Network is where they are; the zero value is this program's.
	Network namespace.Namespace
}

// Launch starts a program that ends with this one.
func (p *Programs) Launch(what Program) error {
	log := filepath.Join(what.Dir, what.Name+".log")
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	c := &Process{Program: what, cmd: exec.Command(what.Path, what.Args...), log: log, done: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.Network.Do(c.cmd.Start); err != nil {
		return fmt.Errorf("start %s: %w", what.Name, err)
	}
	go func() {
		defer close(c.done)
		_ = c.cmd.Wait()
	}()
	p.Running = append(p.Running, c)
	return nil
}

// stopTimeout is what a process gets to end by itself.
const stopTimeout = 20 * time.Second

// Stop ends all as an operator would: those that were started last first.
func (p *Programs) Stop() error {
	var failures []error
	for _, c := range slices.Backward(p.Running) {
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-c.done:
		case <-time.After(stopTimeout):
			failures = append(failures, c.abandon())
		}
	}
	p.Running = nil
	return errors.Join(failures...)
}

// abandon ends a process that did not end when asked, and tells where its log is kept: the stacks of all
// its goroutines are in it, for SIGQUIT makes a Go program write them.
func (p *Process) abandon() error {
	_ = p.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	kept := filepath.Join(os.TempDir(), fmt.Sprintf("barque-stuck-%s-%d.log", p.Name, p.PID()))
	return errors.Join(fmt.Errorf("%s did not end within %v; its log is %s", p.Name, stopTimeout, kept), os.Rename(p.log, kept))
}

// Kill ends the processes that are chosen at once by SIGKILL.
func (p *Programs) Kill(chosen func(*Process) bool) {
	var left, killed []*Process
	for _, c := range p.Running {
		if !chosen(c) {
			left = append(left, c)
			continue
		}
		_ = c.cmd.Process.Kill()
		killed = append(killed, c)
	}
	for _, c := range killed {
		<-c.done
	}
	p.Running = left
}

// startTimeout bounds how long a plane may take until it is ready.
const startTimeout = 2 * time.Minute

// Poll calls f until it returns nil, one of the processes has ended, or time is up.
func (p *Programs) Poll(ctx context.Context, what string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		if last = f(ctx); last == nil {
			return nil
		}
		if err := p.Ended(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w: %w", what, ctx.Err(), last)
		case <-tick.C:
		}
	}
}

// Ended is an error if one of the processes has ended by itself, with the end of its log.
func (p *Programs) Ended() error {
	for _, c := range p.Running {
		select {
		case <-c.done:
			return fmt.Errorf("%s ended; its log ends with:\n%s", c.Name, tail(c.log))
		default:
		}
	}
	return nil
}

func tail(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-2000):])
}

// PIDs are the processes' numbers.
func (p *Programs) PIDs() []int {
	var all []int
	for _, c := range p.Running {
		all = append(all, c.PID())
	}
	return all
}
