// Package testkit is what tests of several packages share. Nothing but tests, and the packages
// that serve them, imports it.
package testkit

import (
	"errors"
	"testing"
	"time"
)

// interval is the time between two looks of [Poll]. It is short against everything that a test
// waits for, and long against a look.
const interval = time.Millisecond

// Poll asks check again and again until it returns nil, at least once and for no longer than
// within, and returns what it said last. It is for conditions that nothing announces, such as
// the kernel's state or what a server answers; where there is a channel, wait on that.
func Poll(within time.Duration, check func() error) error {
	err := check()
	if err == nil {
		return nil
	}
	tick, end := time.NewTicker(interval), time.NewTimer(within)
	defer tick.Stop()
	defer end.Stop()
	for {
		select {
		case <-tick.C:
			if err = check(); err == nil {
				return nil
			}
		case <-end.C:
			return err
		}
	}
}

// Eventually fails the test at once if check doesn't return nil within the time.
func Eventually(tb testing.TB, within time.Duration, what string, check func() error) {
	tb.Helper()
	if err := Poll(within, check); err != nil {
		tb.Fatalf("not within %v: %s: %v", within, what, err)
	}
}

var errFalse = errors.New("it does not hold")

// Holds is a check for [Poll] from a condition.
func Holds(condition func() bool) func() error {
	return func() error {
		if condition() {
			return nil
		}
		return errFalse
	}
}
