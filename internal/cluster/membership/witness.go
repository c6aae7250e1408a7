package membership

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"barque.dev/internal/run"
	"barque.dev/internal/store/etcd"
)

// A Leader is what stepping aside needs of [etcd.Member].
type Leader interface {
	ID() uint64
	Leader() uint64
	LeaderChanged() <-chan struct{}
	Members() []etcd.MemberInfo
	MoveLeader(ctx context.Context, to uint64) error
}

var _ Leader = (*etcd.Member)(nil)

const (
	// aheadPoll is how often a witness looks whether it leads, beside being told of new leaders.
	aheadPoll = 100 * time.Millisecond
	// passTimeout bounds one attempt to pass leadership on. Meanwhile nothing can be written; raft gives up at about that time.
	passTimeout = time.Second
)

// StepAside has a witness pass leadership on to a server whenever it comes to lead, until ctx ends. That has to be possible: the only
// server that is left may lack what the witness has, and can be elected by nobody until the witness has told it.
func StepAside(ctx context.Context, m Leader, log *slog.Logger) error {
	before := uint64(0) // who led last, of the others
	for {
		changed := m.LeaderChanged()
		switch leader := m.Leader(); leader {
		case m.ID():
			passOn(ctx, m, before, log)
		case 0:
		default:
			before = leader
		}
		if m.Leader() == m.ID() { // it could not
			changed = nil
		}
		t := time.NewTimer(aheadPoll)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-t.C:
		}
		t.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// passOn tries the servers in turn until another one leads.
func passOn(ctx context.Context, m Leader, before uint64, log *slog.Logger) {
	for _, id := range successors(m.Members(), before) {
		actx, cancel := context.WithTimeout(ctx, passTimeout)
		err := m.MoveLeader(actx, id)
		cancel()
		if err == nil {
			log.Info("this witness passed leadership on", "to", fmt.Sprintf("%x", id))
			return
		}
		if m.Leader() != m.ID() || !run.Pause(ctx, retryPause) {
			return
		}
		log.Warn("a server does not take leadership from this witness yet", "member", fmt.Sprintf("%x", id), "error", err)
	}
}

// successors are the servers that may lead, by ID. Who led before is the last: a witness leads since that one is gone.
func successors(members []etcd.MemberInfo, before uint64) (list []uint64) {
	last := false
	for _, mb := range members {
		switch {
		case !mayLead(mb):
		case mb.ID == before:
			last = true
		default:
			list = append(list, mb.ID)
		}
	}
	if last {
		list = append(list, before)
	}
	return list
}
