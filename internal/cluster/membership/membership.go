// Package membership looks after who belongs to the etcd cluster of the servers.
//
// A new server is added as a learner, which receives everything and decides nothing; the leader
// gives it a vote once it has caught up, unless [MaxVoters] have one. The others stand by: they serve like all
// servers, and one of them gets a vote as soon as a voter leaves or is removed.
//
// A server that is gone for good is removed on request, or by the leader once no server has reached it for
// a grace, if those that remain have a living majority. The grace is shorter where another stands by.
package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"barque.dev/internal/run"
	"barque.dev/internal/store/etcd"
)

// Member is what membership needs of [etcd.Member].
type Member interface {
	ID() uint64
	Leader() uint64
	Members() []etcd.MemberInfo
	Reachable(ctx context.Context) map[uint64]bool
	Responding(ctx context.Context) map[uint64]bool
	AddLearner(ctx context.Context, peerURL string) ([]etcd.MemberInfo, error)
	Promote(ctx context.Context, id uint64) error
	Remove(ctx context.Context, id uint64) error
	MoveLeader(ctx context.Context, to uint64) error
}

var _ Member = (*etcd.Member)(nil)

// Errors that callers tell apart.
var (
	// ErrNameTaken: a living member has the name.
	ErrNameTaken = errors.New("another server of the cluster has this name")
	// ErrAddressTaken: a member of another name has the peer URL.
	ErrAddressTaken = errors.New("another server of the cluster has this address")
	// ErrUnknown: no member has the name.
	ErrUnknown = errors.New("no such server in the cluster")
)

// Config is what membership needs.
type Config struct {
	Member Member
	Log    *slog.Logger
}

// Membership serves changes of membership. Its methods are safe for concurrent use.
type Membership struct {
	member Member
	log    *slog.Logger
}

const (
	// promoteEvery is how often the leader tries to promote learners, while there are any.
	promoteEvery = 200 * time.Millisecond
	// lookEvery is how often it looks for some.
	lookEvery = time.Second
	// attemptTimeout bounds one proposal: raft ignores a change of membership, without a word,
	// while another one is under way.
	attemptTimeout = time.Second
	retryPause     = 50 * time.Millisecond
	// removalTimeout bounds one attempt to remove a member, which begins with asking the others.
	removalTimeout = attemptTimeout + etcd.RespondTimeout
	// neverStarted is after which a learner that never showed up is removed.
	neverStarted = 10 * time.Minute
)

// New returns a Membership; Run should be running on every server.
func New(cfg Config) *Membership {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Membership{member: cfg.Member, log: cfg.Log}
}

// List lists the members as this server knows them, by ID.
func (m *Membership) List() []etcd.MemberInfo { return m.member.Members() }

// Run gives votes to learners that have caught up, while there is room, whenever this server leads, until ctx ends.
func (m *Membership) Run(ctx context.Context) error {
	waiting := make(map[uint64]time.Time) // learners that haven't started, and since when
	for {
		pause := lookEvery
		if m.member.Leader() == m.member.ID() {
			members := m.member.Members()
			m.forget(ctx, absent(members, waiting, time.Now()))
			list := promotions(members, func() map[uint64]bool { return m.member.Responding(ctx) })
			if len(list) > 0 {
				pause = promoteEvery
				m.promoteOne(ctx, list)
			}
		} else {
			clear(waiting)
		}
		if !run.Pause(ctx, pause) {
			return nil
		}
	}
}

// forget removes learners that never came.
func (m *Membership) forget(ctx context.Context, ids []uint64) {
	for _, id := range ids {
		m.log.Warn("a server that was to join never came; it is removed", "member", fmt.Sprintf("%x", id))
		if err := m.member.Remove(ctx, id); err != nil {
			m.log.Warn("remove member", "error", err)
		}
	}
}

// absent says which learners never came; waiting carries what it has to remember.
func absent(members []etcd.MemberInfo, waiting map[uint64]time.Time, now time.Time) (missing []uint64) {
	present := make(map[uint64]bool, len(members))
	for _, mb := range members {
		if !mb.Learner || mb.Name != "" {
			continue
		}
		present[mb.ID] = true
		switch since, known := waiting[mb.ID]; {
		case !known:
			waiting[mb.ID] = now
		case now.Sub(since) > neverStarted:
			missing = append(missing, mb.ID)
		}
	}
	for id := range waiting {
		if !present[id] {
			delete(waiting, id)
		}
	}
	return missing
}

// promoteOne gives a vote to the first of the learners that has caught up. Then it has to be looked anew, and also when
// nobody knows what became of an attempt: two could get the same vote.
func (m *Membership) promoteOne(ctx context.Context, ids []uint64) {
	for _, id := range ids {
		actx, cancel := context.WithTimeout(ctx, attemptTimeout)
		err := m.member.Promote(actx, id)
		unknown := actx.Err() != nil
		cancel()
		if err == nil {
			m.log.Info("a server has become a voting member", "member", fmt.Sprintf("%x", id))
			return
		}
		m.log.Debug("a learner is not promoted yet", "member", fmt.Sprintf("%x", id), "error", err)
		if unknown {
			return
		}
	}
}

// AddLearner adds the server name, whose etcd will be at peerURL and has no data yet, and returns
// all members, for its etcd.Config: see [etcd.InitialCluster]. Called again for the same server it
// does nothing more. A dead member of that name is replaced; a living one is ErrNameTaken.
func (m *Membership) AddLearner(ctx context.Context, name, peerURL string) ([]etcd.MemberInfo, error) {
	for {
		members := m.member.Members()
		decision, old, err := admit(members, func() map[uint64]bool { return m.member.Reachable(ctx) }, name, peerURL)
		if err != nil {
			return nil, fmt.Errorf("add server %s at %s: %w", name, peerURL, err)
		}
		switch decision {
		case present:
			return members, nil
		case replace:
			m.log.Info("a server comes back without its data; its old member is removed", "server", name)
			err = m.remove(ctx, old)
		case add:
			actx, cancel := context.WithTimeout(ctx, attemptTimeout)
			members, err = m.member.AddLearner(actx, peerURL)
			cancel()
			if err == nil {
				m.log.Info("a server joins", "server", name, "peer", peerURL)
				return members, nil
			}
		}
		if errors.Is(err, etcd.ErrQuorum) {
			return nil, fmt.Errorf("add server %s at %s: %w", name, peerURL, err)
		}
		if !run.Pause(ctx, retryPause) {
			return nil, fmt.Errorf("add server %s at %s: %w", name, peerURL, errors.Join(err, ctx.Err()))
		}
	}
}

// decision is what to do for a server that wants to join.
type decision int

const (
	add     decision = iota
	present          // it is a member that hasn't started: it asks again
	replace          // it was a member, and lost its data: remove that one first
)

// admit decides about a server that wants to join. reachable is asked only if need be.
func admit(members []etcd.MemberInfo, reachable func() map[uint64]bool, name, peerURL string) (decision, uint64, error) {
	for _, mb := range members {
		here := false
		for _, u := range mb.PeerURLs {
			here = here || u == peerURL
		}
		switch {
		case here && mb.Name == "":
			return present, mb.ID, nil
		case mb.Name == name:
			// A server that joins doesn't listen yet: whoever answers is another.
			if reachable()[mb.ID] {
				return add, 0, ErrNameTaken
			}
			return replace, mb.ID, nil
		case here:
			return add, 0, fmt.Errorf("%w: %s", ErrAddressTaken, mb.Name)
		}
	}
	return add, 0, nil
}

// Remove takes a server out of the cluster, by name. It returns ErrUnknown, or etcd.ErrQuorum when
// those that remain would have no living majority. A server that leads and is to be removed hands
// leadership over first.
func (m *Membership) Remove(ctx context.Context, name string) error {
	id, ok := m.find(name)
	if !ok {
		return fmt.Errorf("remove server %s: %w", name, ErrUnknown)
	}
	if id == m.member.ID() && id == m.member.Leader() {
		if err := m.handOver(ctx, m.member.Members()); err != nil {
			return fmt.Errorf("remove server %s: %w", name, err)
		}
	}
	for {
		err := m.remove(ctx, id)
		if err == nil {
			m.log.Info("a server was removed", "server", name)
			return nil
		}
		if errors.Is(err, etcd.ErrQuorum) || !run.Pause(ctx, retryPause) {
			return fmt.Errorf("remove server %s: %w", name, err)
		}
	}
}

// remove is one attempt to remove a member.
func (m *Membership) remove(ctx context.Context, id uint64) error {
	ctx, cancel := context.WithTimeout(ctx, removalTimeout)
	defer cancel()
	return m.member.Remove(ctx, id)
}

// MayRemove returns what Remove would refuse with, as far as that can be told now.
func (m *Membership) MayRemove(ctx context.Context, name string) error {
	id, ok := m.find(name)
	if !ok {
		return fmt.Errorf("remove server %s: %w", name, ErrUnknown)
	}
	if err := etcd.CheckRemoval(m.member.Members(), m.member.Responding(ctx), id); err != nil {
		return fmt.Errorf("remove server %s: %w", name, err)
	}
	return nil
}

// find finds a member by its name.
func (m *Membership) find(name string) (id uint64, ok bool) {
	members := m.member.Members()
	at := slices.IndexFunc(members, func(mb etcd.MemberInfo) bool { return mb.Name == name })
	if at < 0 {
		return 0, false
	}
	return members[at].ID, true
}

// mayLead tells whether a member may lead: it votes, and is no witness.
func mayLead(mb etcd.MemberInfo) bool { return !mb.Learner && mb.Witness == "" }

// HandOver moves leadership to another server that votes, if this server leads and there is one. It returns
// etcd.ErrQuorum when none responds.
func (m *Membership) HandOver(ctx context.Context) error {
	members := m.member.Members()
	another := slices.ContainsFunc(members, func(mb etcd.MemberInfo) bool { return mayLead(mb) && mb.ID != m.member.ID() })
	if m.member.ID() != m.member.Leader() || !another {
		return nil
	}
	return m.handOver(ctx, members)
}

// handOver moves leadership to another server that votes and responds.
func (m *Membership) handOver(ctx context.Context, members []etcd.MemberInfo) error {
	well := m.member.Responding(ctx)
	err := error(etcd.ErrQuorum)
	for _, mb := range members {
		if !mayLead(mb) || mb.ID == m.member.ID() || !well[mb.ID] {
			continue
		}
		actx, cancel := context.WithTimeout(ctx, attemptTimeout)
		err = m.member.MoveLeader(actx, mb.ID)
		cancel()
		if err == nil {
			return nil
		}
	}
	return err
}
