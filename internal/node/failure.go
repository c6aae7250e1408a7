package node

import (
	"errors"
	"fmt"

	"barque.dev/internal/store/etcd"
)

// fail takes note of why the embedded etcd can't go on.
func (s *Server) fail(err error) {
	select {
	case s.failed <- err:
	default: // the first reason is the reason
	}
}

// orFailure does what do does, unless something fails before that is done: then it returns at once, and do is left as it
// is. Nothing can be stopped in its turn when etcd stands still: whoever writes waits in vain, and the other servers take
// over as soon as this process is gone.
func orFailure(failed <-chan error, do func() error) error {
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		return err
	case err := <-failed:
		return fmt.Errorf("etcd: %w", err)
	}
}

// adviseOnEtcd says beside an error what to do when it tells that etcd, whose data is below dir, can't go on.
func adviseOnEtcd(err error, dir string) error {
	again := "remove " + dir + ", and start this server again under the same name, with --join and a token"
	advice := ""
	switch {
	case errors.Is(err, etcd.ErrDiskFull):
		advice = "make room on the disk of " + dir + " and start this server again: what it missed meanwhile it gets from the others"
	case errors.Is(err, etcd.ErrDisk):
		advice = "the kernel's log (dmesg) says more of the disk of " + dir + "; once it is well, start this server again; if its data is gone, " + again
	case errors.Is(err, etcd.ErrDamaged):
		advice = "if the other servers are well, " + again + ": it gets everything from them; if there are none, stop all and restore the newest snapshot with `barque snapshot restore`"
	case errors.Is(err, etcd.ErrRemoved):
		advice = "the cluster goes on without this server; to take it in again, " + again
	default:
		return err
	}
	return fmt.Errorf("%w: %s", err, advice)
}
