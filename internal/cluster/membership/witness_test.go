package membership_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/store/etcd"
)

// ahead is a witness that comes to lead.
type ahead struct{ *fake }

func (ahead) LeaderChanged() <-chan struct{} { return nil }

// A witness that leads passes that on, to a server, and to the one that led before only if no other takes it.
func TestStepAside(t *testing.T) {
	busy := errors.New("it lags behind")
	for what, tt := range map[string]struct {
		before  uint64
		change  func(*fake)
		fails   []error
		calls   []string
		leaders uint64 // who leads in the end
	}{
		"the first, at the start":    {calls: []string{"move to 2"}, leaders: 2},
		"the other one":              {before: 2, calls: []string{"move to 3"}, leaders: 3},
		"the same one after all":     {before: 2, fails: []error{busy}, calls: []string{"move to 3", "move to 2"}, leaders: 2},
		"at the second attempt":      {before: 2, fails: []error{busy, busy}, calls: []string{"move to 3", "move to 2", "move to 3"}, leaders: 3},
		"not a learner":              {before: 3, change: func(f *fake) { f.members[1].Learner = true }, calls: []string{"move to 3"}, leaders: 3},
		"not another witness":        {before: 3, change: func(f *fake) { f.members[1].Witness = "https://b" }, calls: []string{"move to 3"}, leaders: 3},
		"nobody while another leads": {before: 2, change: func(f *fake) { f.id = 9 }, leaders: 1},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := three()
				f.members[0].Witness = "https://a"
				f.leader = tt.before
				if tt.change != nil {
					tt.change(f)
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error, 1)
				go func() { done <- membership.StepAside(ctx, ahead{f}, slog.New(slog.DiscardHandler)) }()
				<-time.After(time.Minute)
				synctest.Wait()
				if len(f.did()) > 0 {
					t.Errorf("before it led it did %v", f.did())
				}
				f.mu.Lock()
				f.leader, f.failures = 1, tt.fails
				f.mu.Unlock()
				<-time.After(time.Minute)
				synctest.Wait()
				if !slices.Equal(f.did(), tt.calls) || f.Leader() != tt.leaders {
					t.Errorf("%v, and %d leads; want %v and %d", f.did(), f.Leader(), tt.calls, tt.leaders)
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A real witness that is made to lead gives that up at once.
func TestAWitnessDoesNotLead(t *testing.T) {
	a, w := start(t, member(t, "a")), (*server)(nil)
	cfg := member(t, "w")
	cfg.Witness = "https://127.0.0.1:6443"
	w = joinAs(t, a, cfg)
	b := joinAs(t, a, member(t, "b"))
	if t.Failed() {
		return
	}
	voters(t, a, 3)
	for _, mb := range b.membership.List() {
		if (mb.Name == "w") != (mb.Witness == cfg.Witness) || mb.Name != "w" && mb.Witness != "" {
			t.Errorf("%+v", mb)
		}
	}
	// The member may lead before anybody looks after it.
	if err := a.member.MoveLeader(t.Context(), w.member.ID()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- membership.StepAside(ctx, w.member, slog.New(slog.DiscardHandler)) }()
	led(t, a, func(id uint64) bool { return id == a.member.ID() || id == b.member.ID() })
	// A server that leads hands that over to the other one, never to the witness.
	first, second := a, b
	if b.member.ID() == a.member.Leader() {
		first, second = b, a
	}
	if err := first.membership.HandOver(t.Context()); err != nil {
		t.Error(err)
	}
	led(t, a, func(id uint64) bool { return id == second.member.ID() })
	// The last server stays: a witness would keep the state, and answer nobody.
	rctx, rcancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer rcancel()
	if err := second.membership.Remove(rctx, first.member.Name()); err != nil {
		t.Fatal(err)
	}
	voters(t, second, 2)
	if err := second.membership.MayRemove(rctx, second.member.Name()); !errors.Is(err, etcd.ErrQuorum) {
		t.Errorf("the last server may go: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
