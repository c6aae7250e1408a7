package testkit

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestPoll(t *testing.T) {
	never := errors.New("never")
	for name, test := range map[string]struct {
		holdsAfter, within time.Duration
		err                error
		took               time.Duration
	}{
		"at once, with no time":  {0, 0, nil, 0},
		"later":                  {9 * time.Millisecond, time.Second, nil, 9 * time.Millisecond},
		"never: the last answer": {time.Hour, time.Second, never, time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				err := Poll(test.within, func() error {
					if time.Since(start) >= test.holdsAfter {
						return nil
					}
					return never
				})
				if !errors.Is(err, test.err) || time.Since(start) != test.took {
					t.Errorf("%v after %v, want %v after %v", err, time.Since(start), test.err, test.took)
				}
			})
		})
	}
}

// recorder is a test that is expected to fail.
type recorder struct {
	testing.TB
	failed bool
}

func (r *recorder) Helper()               {}
func (r *recorder) Fatalf(string, ...any) { r.failed = true }

func TestEventually(t *testing.T) {
	for _, holds := range []bool{true, false} {
		r := &recorder{TB: t}
		Eventually(r, time.Millisecond, "the condition", Holds(func() bool { return holds }))
		if r.failed == holds {
			t.Errorf("condition %t, test failed %t", holds, r.failed)
		}
	}
}
