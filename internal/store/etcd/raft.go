package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"sort"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// MemberInfo is one member as the cluster knows it.
type MemberInfo struct {
	ID       uint64
	Name     string // empty until the member has started
	PeerURLs []string
	Learner  bool
	// Witness is where a witness answers, such as https://10.0.0.3:6443; empty for a server, and until it has started.
	Witness string
}

// witnessPath is how a witness is told from a server among what members publish of themselves: for clients, of which it
// has none, it publishes where it answers, with this path.
const witnessPath = "/witness"

// witnessOf finds where a witness answers among its client URLs; "" for a server.
func witnessOf(clientURLs []string) string {
	for _, u := range clientURLs {
		if base, ok := strings.CutSuffix(u, witnessPath); ok {
			return base
		}
	}
	return ""
}

// ID is this member's.
func (m *Member) ID() uint64 { return uint64(m.srv.MemberID()) }

// Name is this member's.
func (m *Member) Name() string { return m.cfg.Name }

// Leader is the leader's ID as far as this member knows, or 0.
func (m *Member) Leader() uint64 { return uint64(m.srv.Leader()) }

// IsLeader tells whether this member believes to lead.
func (m *Member) IsLeader() bool { return m.Leader() == m.ID() }

// IsLearner tells whether this member may not vote yet.
func (m *Member) IsLearner() bool { return m.srv.IsLearner() }

// Term is raft's term of the newest entry that this member applied.
func (m *Member) Term() uint64 { return m.srv.Term() }

// ClusterID tells clusters apart.
func (m *Member) ClusterID() uint64 { return uint64(m.srv.Cluster().ID()) }

// Members lists the members that this one knows of, by ID.
func (m *Member) Members() []MemberInfo { return infos(m.srv.Cluster().Members()) }

func infos(members []*membership.Member) []MemberInfo {
	list := make([]MemberInfo, 0, len(members))
	for _, mb := range members {
		list = append(list, MemberInfo{ID: uint64(mb.ID), Name: mb.Name, PeerURLs: mb.PeerURLs, Learner: mb.IsLearner, Witness: witnessOf(mb.ClientURLs)})
	}
	sort.Slice(list, func(i, j int) bool { return list[i].ID < list[j].ID })
	return list
}

// AddLearner adds a member without a vote and returns all members. The new one starts with
// Existing set.
func (m *Member) AddLearner(ctx context.Context, peerURL string) ([]MemberInfo, error) {
	urls, err := types.NewURLs([]string{peerURL})
	if err != nil {
		return nil, fmt.Errorf("add learner %s: %w", peerURL, err)
	}
	now := time.Now()
	members, err := m.srv.AddMember(ctx, *membership.NewMemberAsLearner("", urls, "", &now))
	if err != nil {
		return nil, fmt.Errorf("add learner %s: %w", peerURL, translate(err))
	}
	return infos(members), nil
}

// Promote gives a learner a vote. The leader refuses while the learner hasn't caught up.
func (m *Member) Promote(ctx context.Context, id uint64) error {
	if _, err := m.srv.PromoteMember(ctx, id); err != nil {
		return fmt.Errorf("promote member %x: %w", id, translate(err))
	}
	return nil
}

// ErrQuorum: a change of membership would leave no quorum of members that can be reached.
var ErrQuorum = errors.New("it would endanger the quorum")

// dialTimeout is how long a member has to accept a connection to count as reachable.
const dialTimeout = 500 * time.Millisecond

// Remove takes a member out of the cluster. It returns ErrQuorum when those that remain and
// respond to this one would be no majority; to find that out takes up to RespondTimeout. Removing one that is gone
// already succeeds.
func (m *Member) Remove(ctx context.Context, id uint64) error {
	members := m.Members()
	alive := m.Responding(ctx)
	if err := CheckRemoval(members, alive, id); err != nil {
		return fmt.Errorf("remove member %x: %w", id, err)
	}
	_, err := m.srv.RemoveMember(ctx, id)
	if err != nil && !m.wasRemoved(id, err) {
		return fmt.Errorf("remove member %x: %w", id, translate(err))
	}
	return nil
}

// wasRemoved tells whether an error of a removal means that it took place. A member that is
// removed stops when the others tell it so, and then has no answer of its own.
func (m *Member) wasRemoved(id uint64, err error) bool {
	stopped := errors.Is(err, raft.ErrStopped) || errors.Is(err, etcderrors.ErrStopped)
	return m.srv.IsIDRemoved(id) || errors.Is(err, membership.ErrIDNotFound) || (stopped && id == m.ID() && !m.closing.Load())
}

// CheckRemoval returns ErrQuorum unless the voters that are left without id have a living majority, with a server among
// them: witnesses alone would keep the state, and answer nobody. A learner may always go.
func CheckRemoval(members []MemberInfo, alive map[uint64]bool, id uint64) error {
	voters, living, servers := 0, 0, 0
	for _, mb := range members {
		if mb.ID == id && mb.Learner {
			return nil // it has no say
		}
		if mb.Learner || mb.ID == id {
			continue
		}
		voters++
		if alive[mb.ID] {
			living++
			if mb.Witness == "" {
				servers++
			}
		}
	}
	if living >= voters/2+1 && servers == 0 {
		return fmt.Errorf("%w: no server that responds would remain, but witnesses alone", ErrQuorum)
	}
	if living < voters/2+1 {
		return fmt.Errorf("%w: of the %d voting members that would remain, %d can be reached", ErrQuorum, voters, living)
	}
	return nil
}

// Reachable tells which members accept connections at a peer URL, within half a second. A member whose process stands still
// is among them, since its kernel accepts for it: so who is missing is gone, and who is here need not be well.
func (m *Member) Reachable(ctx context.Context) map[uint64]bool {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return m.ask(func(u *url.URL) bool {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", u.Host)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
}

// RespondTimeout is how long a member may take to respond.
const RespondTimeout = 2 * time.Second

// versionPath is where every member tells its version to the others.
const versionPath = "/version"

// Responding tells which members' processes answer a question at a peer URL, within RespondTimeout. This one is among them.
// One that is busy for longer, or is starting, is missing.
func (m *Member) Responding(ctx context.Context) map[uint64]bool {
	ctx, cancel := context.WithTimeout(ctx, RespondTimeout)
	defer cancel()
	return m.ask(func(u *url.URL) bool {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.JoinPath(versionPath).String(), nil)
		if err != nil {
			return false
		}
		resp, err := m.peers.RoundTrip(req)
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// ask has answers look at every peer URL of the other members, all at once, and returns those members for which it
// was true once, and this one.
func (m *Member) ask(answers func(*url.URL) bool) map[uint64]bool {
	var mu sync.Mutex
	var wg sync.WaitGroup
	found := map[uint64]bool{m.ID(): true}
	for _, mb := range m.Members() {
		for _, peer := range mb.PeerURLs {
			u, err := url.Parse(peer)
			if err != nil || mb.ID == m.ID() {
				continue
			}
			wg.Go(func() {
				if !answers(u) {
					return
				}
				mu.Lock()
				defer mu.Unlock()
				found[mb.ID] = true
			})
		}
	}
	wg.Wait()
	return found
}

// MoveLeader hands leadership to another voting member. Only the leader can.
func (m *Member) MoveLeader(ctx context.Context, to uint64) error {
	if err := m.srv.MoveLeader(ctx, m.ID(), to); err != nil {
		return fmt.Errorf("move leadership to %x: %w", to, translate(err))
	}
	return nil
}

// Campaign starts raft's ordinary pre-vote campaign now rather than at the election timeout. It
// does nothing on a leader or learner, and can't depose a leader that a quorum still hears.
func (m *Member) Campaign(ctx context.Context) error {
	// raft takes local messages only from its own storage threads.
	return m.srv.Process(ctx, &raftpb.Message{
		Type: raftpb.MsgHup.Enum(),
		From: new(raft.LocalAppendThread),
		To:   new(m.ID()),
	})
}

// ForgetLeader makes this follower grant pre-votes although it heard from the leader lately,
// because it knows by other means that leader is gone. It does nothing when leader isn't the
// leader any more. Hearing from the leader again undoes it.
func (m *Member) ForgetLeader(ctx context.Context, leader uint64) error {
	if leader == 0 || m.Leader() != leader {
		return nil
	}
	return m.srv.Process(ctx, &raftpb.Message{
		Type: raftpb.MsgForgetLeader.Enum(),
		From: new(leader),
		To:   new(m.ID()),
		// Without a term, as a local message: the one known here may lag behind raft's.
	})
}

// InitialCluster is the Config.InitialCluster of a member that joins: what AddLearner returned,
// with the new member, found by its peer URL, under its name.
func InitialCluster(members []MemberInfo, name, peerURL string) map[string]string {
	cluster := make(map[string]string, len(members))
	for _, mb := range members {
		for i, u := range mb.PeerURLs {
			switch {
			case u == peerURL:
				cluster[name] = u
			case mb.Name == "" || i > 0: // not started yet, or one of several addresses
				cluster[fmt.Sprintf("%x-%d", mb.ID, i)] = u
			default:
				cluster[mb.Name] = u
			}
		}
	}
	return cluster
}
