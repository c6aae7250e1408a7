package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/cluster/drain"
	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/network"
	"barque.dev/internal/store/etcd"
)

// leavePath, with the node's name behind it, is where an agent that has left takes its node off the list.
const leavePath = "/barque/v1/leave/"

// ErrLeft: the machine has left the cluster, and does not come back by itself.
var ErrLeft = errors.New("this machine has left the cluster")

// LeaveRequest says how a machine leaves.
type LeaveRequest struct {
	// Drain is how long the pods may take to go elsewhere.
	Drain time.Duration `json:"drain"`
	// Bare evicts pods too that no controller will make again.
	Bare bool `json:"bare"`
}

// Leave has the machine with the data directory leave its cluster: its pods go elsewhere, then its duties, then it is no member
// and no node any more, and its process ends. heard gets a line for each step. ErrNotRunning is wrapped when it doesn't run, and
// ErrLeft when it has left already.
func Leave(ctx context.Context, dir string, r LeaveRequest, heard func(string)) error {
	if err := (&home{dir: dir}).checkLeft(); err != nil {
		return err
	}
	_, err := tell(ctx, dir, orderLeave, r, heard)
	return err
}

// leaving is a machine's departure. The order is given once; what remains to be done when the services have stopped
// is done there, and ends it.
type leaving struct {
	busy    atomic.Bool // an order is being carried out
	decided atomic.Bool // the point of no return: the process ends
	broken  atomic.Bool // it went wrong after that
	say     say         // set before decided
	ended   chan error  // how it ended; holds one
}

func newLeaving() *leaving { return &leaving{ended: make(chan error, 1)} }

// begin is the order: ready drains and checks, and stop stops the services of the process.
func (l *leaving) begin(ctx context.Context, in json.RawMessage, say say, ready func(context.Context, LeaveRequest, say) error, stop func(error)) (any, error) {
	var r LeaveRequest
	if err := json.Unmarshal(in, &r); err != nil {
		return nil, fmt.Errorf("the order to leave can't be read: %w", err)
	}
	if !l.busy.CompareAndSwap(false, true) {
		return nil, errors.New("this machine is about to leave already: wait for that to end")
	}
	if err := ready(ctx, r, say); err != nil {
		l.busy.Store(false)
		return nil, err
	}
	l.say = say
	l.decided.Store(true)
	stop(ErrLeft)
	// From here on it is not up to whoever asked.
	return nil, <-l.ended
}

// failed tells whether the departure went wrong. It is asked when the services have stopped.
func (l *leaving) failed() bool { return l.broken.Load() }

// finish notes how the departure ended.
func (l *leaving) finish(err error) {
	l.broken.Store(err != nil)
	l.ended <- err
}

// leaveOrder is what `barque leave` has a server do.
func (s *Server) leaveOrder(ctx context.Context, in json.RawMessage, say say) (any, error) {
	if !s.up.Load() {
		return nil, errors.New("this server is still starting: try again when it is ready")
	}
	return s.leaving.begin(ctx, in, say, s.readyToLeave, s.end)
}

// readyToLeave drains this server's node, unless the cluster could not do without the server.
func (s *Server) readyToLeave(ctx context.Context, r LeaveRequest, say say) error {
	if err := s.mayLeave(ctx); err != nil {
		return err
	}
	if s.worker != nil {
		if err := s.worker.drain(ctx, r, say); err != nil {
			return err
		}
	}
	return s.mayLeave(ctx)
}

// mayLeave refuses when those that stay would be no cluster.
func (s *Server) mayLeave(ctx context.Context) error {
	if s.membership == nil {
		return nil // somebody else looks after etcd
	}
	name := s.cfg.NodeName
	others := 0
	for _, m := range s.membership.List() {
		if m.ID != s.member.ID() && !m.Learner && m.Witness == "" {
			others++
		}
	}
	if others == 0 && !s.member.IsLearner() {
		return fmt.Errorf("server %s holds the cluster's only vote, and without it the cluster and all its state would end: let another server join and wait until "+
			"`barque server list` shows it as a voter; to give the cluster up, stop this process and remove %s", name, s.home.dir)
	}
	if err := s.healthy(); err != nil {
		return fmt.Errorf("server %s can't leave now, since the cluster has no quorum: start the servers that are down; if they are lost for good, see `barque recover --help` (%w)", name, err)
	}
	if err := s.membership.MayRemove(ctx, name); err != nil {
		return fmt.Errorf("%w; %s", err, membership.QuorumAdvice)
	}
	return nil
}

const (
	// clearTimeout bounds the end of the pods that are left.
	clearTimeout = time.Minute
	// partTimeout bounds the last changes in the cluster.
	partTimeout = 20 * time.Second
)

// depart takes this server out of the cluster, if it was told to leave: when it serves nobody any more, and before its
// store ends.
func (s *Server) depart(ctx context.Context) error {
	<-ctx.Done()
	if !s.leaving.decided.Load() {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	if !s.cfg.Witness {
		s.leaving.say("requests, leadership and virtual IP went to other servers")
	}
	s.worker.clear(ctx, s.leaving.say)
	err := s.part(ctx)
	if err != nil {
		err = fmt.Errorf("server %s has stopped, but is still a member: %w; start it and let it leave again, or run `barque server remove %s` on another one",
			s.cfg.NodeName, err, s.cfg.NodeName)
	}
	s.leaving.finish(err)
	return err
}

// part ends membership. That the machine has left is noted first: should it crash in between, it must not come back by itself.
func (s *Server) part(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	if err := s.deleteNode(ctx, s.cfg.NodeName); err != nil {
		return err
	}
	if err := s.home.markLeft(time.Now()); err != nil {
		return err
	}
	if s.membership != nil {
		if err := s.membership.Remove(ctx, s.cfg.NodeName); err != nil {
			return errors.Join(err, s.home.unmarkLeft())
		}
	}
	s.leaving.say("server %s is no member any more", s.cfg.NodeName)
	return nil
}

func (s *Server) deleteNode(ctx context.Context, name string) error {
	if s.client == nil { // a witness is no node
		return nil
	}
	err := s.client.Delete(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
	if ctrlclient.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete node %s: %w", name, err)
	}
	return nil
}

// serveLeave takes a node off the list that says itself that it has left.
func (s *Server) serveLeave(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, leavePath)
	switch {
	case r.Method != http.MethodPost:
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "only POST works here", http.StatusMethodNotAllowed)
	case !s.isNode(r, name):
		http.Error(w, "only the node itself may do this", http.StatusForbidden)
	default:
		if err := s.deleteNode(r.Context(), name); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
	}
}

// leaveOrder is what `barque leave` has an agent do.
func (a *Agent) leaveOrder(ctx context.Context, in json.RawMessage, say say) (any, error) {
	if !a.up.Load() {
		return nil, errors.New("this agent is still starting: try again when it is ready")
	}
	return a.leaving.begin(ctx, in, say, a.worker.drain, a.end)
}

// depart is the end of an agent that was told to leave: its services have stopped.
func (a *Agent) depart() error {
	ctx := context.Background()
	a.worker.clear(ctx, a.leaving.say)
	err := a.part(ctx)
	if err != nil {
		err = fmt.Errorf("the agent has stopped, but its node could not be removed: %w; start it and let it leave again, or run `kubectl delete node %s`", err, a.cfg.NodeName)
	}
	a.leaving.finish(err)
	return err
}

func (a *Agent) part(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	if err := a.worker.client.CoreV1().RESTClient().Post().AbsPath(leavePath + a.cfg.NodeName).Do(ctx).Error(); err != nil {
		return fmt.Errorf("delete node %s: %w", a.cfg.NodeName, err)
	}
	a.leaving.say("node %s is removed", a.cfg.NodeName)
	return a.home.markLeft(time.Now())
}

// drain has the machine's pods go elsewhere.
func (w *worker) drain(ctx context.Context, r LeaveRequest, say say) error {
	ctx, cancel := context.WithTimeout(ctx, r.Drain)
	defer cancel()
	err := drain.Drain(ctx, drain.Config{Client: w.client, Node: w.cfg.NodeName, Bare: r.Bare, Say: say})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, drain.ErrBare):
		return fmt.Errorf("%w: delete them, or add --force, and they are gone for good; nothing was changed", err)
	}
	return fmt.Errorf("%w; the node stays cordoned: give it longer with --timeout, or, to stay after all, run `kubectl uncordon %s`", err, w.cfg.NodeName)
}

// clear ends the pods that stay on a machine which leaves, and takes away what the kernel has for them. What can't be done is
// told: it ends with the machine's next restart.
func (w *worker) clear(ctx context.Context, say say) {
	if w == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, clearTimeout)
	defer cancel()
	err := network.Cleanup(w.networkConfig())
	if w.containerd != nil {
		err = errors.Join(w.containerd.Stop(ctx), err)
	}
	if err != nil {
		say("not all that pods left on this machine could be removed: %v", err)
		return
	}
	say("the machine's own pods have ended")
}

// The data directory of a machine that has left says so, and when.
const leftFile = "left"

// checkLeft refuses the data directory of a machine that has left.
func (h *home) checkLeft() error {
	data, err := os.ReadFile(h.path(leftFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read whether this machine has left: %w", err)
	}
	return fmt.Errorf("%w at %s, and does not come back by itself: to take it in again, remove %s (`barque leave --purge --data-dir %s`), and join with a token",
		ErrLeft, strings.TrimSpace(string(data)), h.dir, h.dir)
}

func (h *home) markLeft(now time.Time) error {
	if err := os.WriteFile(h.path(leftFile), []byte(now.UTC().Format(time.RFC3339)+"\n"), 0o600); err != nil {
		return fmt.Errorf("note that this machine has left: %w", err)
	}
	return nil
}

func (h *home) unmarkLeft() error { return os.Remove(h.path(leftFile)) }

// isRemoved tells whether err, or what the member says, means that the cluster goes on without this server.
func (s *Server) isRemoved(err error) bool {
	return errors.Is(err, etcd.ErrRemoved) || s.member != nil && s.member.Removed()
}

// aside moves etcd's data away, so that it can be looked into, and returns where to.
func (h *home) aside(why string, now time.Time) (string, error) {
	to := h.path("etcd." + why + "-" + now.UTC().Format("20060102T150405Z"))
	if err := os.Rename(h.path("etcd"), to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("move the data of etcd aside: %w", err)
	}
	return filepath.Clean(to), nil
}
