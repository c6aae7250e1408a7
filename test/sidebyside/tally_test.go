package main

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestAwait: who waits for pods knows when all are bound, when nobody is left to bind them, and when to give up.
func TestAwait(t *testing.T) {
	dead := errors.New("kube-scheduler ended")
	for name, tt := range map[string]struct {
		bound   []string
		ended   error
		without int
		err     error
		after   time.Duration
	}{
		"all are bound":           {bound: []string{"000001", "000002"}},
		"one is not":              {bound: []string{"000002"}, without: 1, after: patience},
		"and nobody will bind it": {bound: []string{"000002"}, ended: dead, err: dead, after: time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tally := newTally()
				for _, pod := range tt.bound {
					tally.bound[pod] = true
				}
				began := time.Now()
				without, err := tally.await(t.Context(), 1, 2, func() error { return tt.ended })
				if without != tt.without || !errors.Is(err, tt.err) || time.Since(began) != tt.after {
					t.Errorf("%d without, %v after %v; want %d, %v after %v", without, err, time.Since(began), tt.without, tt.err, tt.after)
				}
			})
		})
	}
}
