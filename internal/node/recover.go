package node

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"barque.dev/internal/store/etcd"
)

// errRecover: the server was told to make a cluster of what it has.
var errRecover = errors.New("told to recover")

// RecoverPlan is what a recovery by a server would mean.
type RecoverPlan struct {
	// Server is the one that goes on, with all that is in its log.
	Server string
	// Log is where that ends: of the servers that are left, the one whose log ends last has the most.
	Log etcd.LogEnd
	// Revision is one that it has at least.
	Revision int64
	// LastWrite is when it last heard of a change, or of an election.
	LastWrite time.Time
	// Dropped are the members that the cluster loses.
	Dropped []RecoverMember
	// Begun: a recovery of this server was interrupted; it can only go on.
	Begun bool
	// Runs tells whether the server's process runs, Quorum whether it knows of a leader: then there is nothing to recover.
	Runs, Quorum bool
}

// RecoverMember is a member that a recovery drops.
type RecoverMember struct {
	Name, Peer string
	// Answers tells whether something listens at its address; Votes whether it counts for the quorum.
	Answers, Votes bool
}

// Majority tells whether most servers answer: they can elect a leader by themselves.
func (p *RecoverPlan) Majority() bool {
	voters, living := 1, 1
	for _, m := range p.Dropped {
		if m.Votes {
			voters++
			if m.Answers {
				living++
			}
		}
	}
	return living > voters/2
}

// PlanRecovery tells what a recovery by the server with the data directory, which may run or not, would mean.
func PlanRecovery(ctx context.Context, dir string) (*RecoverPlan, error) {
	plan := &RecoverPlan{}
	result, err := tell(ctx, dir, orderPlan, nil, func(string) {})
	if !errors.Is(err, ErrNotRunning) {
		if err == nil {
			err = json.Unmarshal(result, plan)
		}
		return plan, err
	}
	h := &home{dir: dir}
	if plan.Server, err = h.serverName(); err != nil {
		return nil, err
	}
	held, err := etcd.Inspect(h.path("etcd"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s holds no data of etcd: recover on a server that has some, or restore a backup", dir)
	}
	if err != nil {
		return nil, err
	}
	plan.Log, plan.Revision, plan.LastWrite = held.End, held.Revision, held.LastWrite
	plan.Begun = etcd.Recovering(h.path("etcd"))
	plan.drop(ctx, held.Members)
	return plan, nil
}

// Recover makes a cluster of one server out of the state that the server with the data directory has. A process that runs
// does it itself, and goes on; without one it is done here, and the server can be started. log is for what etcd says.
func Recover(ctx context.Context, dir string, log *slog.Logger, heard func(string)) error {
	_, err := tell(ctx, dir, orderRecover, nil, heard)
	if !errors.Is(err, ErrNotRunning) {
		if err != nil {
			return err
		}
		return awaitRecovered(ctx, dir)
	}
	h, err := openHome(dir)
	if err != nil {
		return err
	}
	defer h.close()
	h.keep()
	revision, err := h.recover(ctx, log)
	if err != nil {
		return err
	}
	// A witness has all that servers have. From here on it is one.
	if err := h.setRole("server"); err != nil {
		return err
	}
	heard(fmt.Sprintf("the data is that of a cluster of this server alone now, at revision %d: start it as a server", revision))
	return nil
}

// recoverPoll is how often it is asked whether a server has recovered.
const recoverPoll = 500 * time.Millisecond

// awaitRecovered waits until the server leads itself.
func awaitRecovered(ctx context.Context, dir string) error {
	for {
		var plan RecoverPlan
		result, err := tell(ctx, dir, orderPlan, nil, func(string) {})
		if err == nil {
			err = json.Unmarshal(result, &plan)
		}
		if err == nil && plan.Quorum {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server with the data directory %s did not come up again: its log says why (%w)", dir, errors.Join(ctx.Err(), err))
		case <-time.After(recoverPoll):
		}
	}
}

// serverName is the name of the server whose data directory it is.
func (h *home) serverName() (string, error) {
	data, err := os.ReadFile(h.path("certs", "server-client.crt"))
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s is not the data directory of a server: name the one that the server was started with by --data-dir", h.dir)
	}
	if err != nil {
		return "", fmt.Errorf("find the server's name: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return "", fmt.Errorf("find the server's name: %s is damaged", h.path("certs", "server-client.crt"))
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("find the server's name: %w", err)
	}
	return strings.TrimPrefix(cert.Subject.CommonName, serverPrefix), nil
}

// recover is the recovery itself; nobody else uses the directory.
func (h *home) recover(ctx context.Context, log *slog.Logger) (int64, error) {
	name, err := h.serverName()
	if err != nil {
		return 0, err
	}
	return etcd.Recover(ctx, name, h.path("etcd"), etcd.Config{Log: log})
}

// drop lists whom a recovery drops of the members, and looks who answers.
func (p *RecoverPlan) drop(ctx context.Context, members []etcd.MemberInfo) {
	for _, m := range members {
		if m.Name != p.Server {
			p.Dropped = append(p.Dropped, RecoverMember{Name: m.Name, Peer: strings.Join(m.PeerURLs, ","), Votes: !m.Learner})
		}
	}
	var wg sync.WaitGroup
	for i := range p.Dropped {
		wg.Go(func() { p.Dropped[i].Answers = accepts(ctx, p.Dropped[i].Peer) })
	}
	wg.Wait()
}

// acceptTimeout is enough for a machine on the same network.
const acceptTimeout = time.Second

// accepts tells whether something listens at one of the URLs.
func accepts(ctx context.Context, peers string) bool {
	return slices.ContainsFunc(strings.Split(peers, ","), func(peer string) bool {
		u, err := url.Parse(peer)
		if err != nil {
			return false
		}
		conn, err := (&net.Dialer{Timeout: acceptTimeout}).DialContext(ctx, "tcp", u.Host)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
}

// planOrder tells `barque recover` how things are.
func (s *Server) planOrder(ctx context.Context, _ json.RawMessage, _ say) (any, error) {
	if err := s.mayRecover(); err != nil {
		return nil, err
	}
	end, err := s.member.LogEnd()
	if err != nil {
		return nil, err
	}
	p := &RecoverPlan{
		Server: s.cfg.NodeName, Log: end, Revision: s.member.Server().KV().Rev(), LastWrite: etcd.LastWrite(s.home.path("etcd")),
		Runs: true, Quorum: s.member.HasLeader(),
	}
	p.drop(ctx, s.member.Members())
	return p, nil
}

func (s *Server) mayRecover() error {
	switch {
	case s.cfg.Witness:
		return errors.New("this is a witness, which can't go on without servers: recover one of those; if they are all lost, stop the witness and try again")
	case len(s.cfg.EtcdEndpoints) > 0:
		return errors.New("this cluster's etcd runs outside of it: recover that one")
	case !s.opened.Load():
		return errors.New("this server is still starting: wait a moment, or stop it and try again")
	}
	return nil
}

// recoverOrder stops this server; [Server.next] does the rest.
func (s *Server) recoverOrder(_ context.Context, _ json.RawMessage, say say) (any, error) {
	if err := s.mayRecover(); err != nil {
		return nil, err
	}
	if s.member.HasLeader() {
		return nil, errors.New("the cluster has a quorum: there is nothing to recover")
	}
	say("server %s stops, and starts again as a cluster of its own", s.cfg.NodeName)
	s.end(errRecover)
	return nil, nil
}

// recoverNow is the recovery of a server whose services have stopped for it.
func (s *Server) recoverNow(ctx context.Context) error {
	h, err := openHome(s.cfg.DataDir)
	if err != nil {
		return err
	}
	defer h.close()
	revision, err := h.recover(ctx, s.cfg.Log)
	if err != nil {
		return fmt.Errorf("recover the cluster: %w", err)
	}
	s.cfg.Log.Warn("the cluster was recovered: it is this server alone now, and the others join anew", "server", s.cfg.NodeName, "revision", revision)
	return ErrAgain
}
