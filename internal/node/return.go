package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/cluster/join"
	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/cluster/vip"
	"barque.dev/internal/run"
	"barque.dev/internal/store/etcd"
)

// ErrAgain: the process has to be replaced by a new one of the same command line, since etcd has other data or its file another program.
var ErrAgain = errors.New("the server has to start again")

// next decides what happens when run has ended with err.
func (s *Server) next(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, ErrLeft) && s.leaving.decided.Load():
		s.cfg.Log.Info("this server has left the cluster", "server", s.cfg.NodeName)
		return nil
	case errors.Is(err, errSwitch):
		return ErrAgain
	case errors.Is(err, errRecover):
		return s.recoverNow(ctx)
	case errors.Is(err, etcd.ErrRemoved) && ctx.Err() == nil && s.home != nil && !s.leaving.decided.Load():
		where, err := s.home.aside("removed", time.Now())
		if err != nil {
			return err
		}
		s.cfg.Log.Warn("the cluster went on without this server, which joins it anew; the data that it had stays where it can be looked into",
			"server", s.cfg.NodeName, "data", where)
		return ErrAgain
	}
	return err
}

// lacksData tells whether this server has to get the cluster's state from others.
func (s *Server) lacksData() bool {
	return len(s.cfg.EtcdEndpoints) == 0 && !etcd.HasData(s.home.path("etcd"))
}

const (
	// returnAttempt bounds one attempt to come back by one server, returnPause is between rounds over all of them.
	returnAttempt = 20 * time.Second
	returnPause   = time.Second
	// returnRefusals is how many rounds end the attempt, in which some refuse this server for good and none says otherwise: one
	// that does may just be starting.
	returnRefusals = 5
	// returnSay is how often it is said that none takes this server in.
	returnSay = 30 * time.Second
)

// comeBack joins the cluster anew, by the key that this server has, as long as it takes until another server takes it in.
func (s *Server) comeBack(ctx context.Context) error {
	keeper, err := s.serverCertificate()
	if err != nil {
		return err
	}
	if s.cfg.VIP.IsValid() { // a process that was killed while it held it has left it on this machine
		if err := vip.Clear(s.cfg.VIP); err != nil {
			return err
		}
	}
	entrances := s.entrances()
	if len(entrances) == 0 {
		return fmt.Errorf("etcd's data in %s is gone, and no other server is known from which to get it: put back a backup of it, or remove %s to begin anew",
			s.home.path("etcd"), s.home.dir)
	}
	request := join.ServerRequest{Name: s.cfg.NodeName, PeerURL: s.peerURL(), Version: apiserver.KubernetesVersion, Reads: []string{join.ReadsEncryption}}
	joined, err := enterBy(ctx, entrances, s.cfg.Log, func(ctx context.Context, url string) (*join.ServerJoin, error) {
		return join.Server(ctx, join.Options{URL: url, CA: s.pki.Cluster.PEM(), Certificate: keeper.GetClientCertificate}, request)
	})
	if err != nil {
		return err
	}
	return s.keepMembers(joined.Members)
}

// enterBy tries the entrances, one after the other and again and again, until one takes this server in. It gives up when
// rounds on end brought only refusals for good from those that answered: one of them alone may be mistaken, since it is cut off, or
// its clock is wrong.
func enterBy(ctx context.Context, entrances []string, log *slog.Logger, try func(ctx context.Context, url string) (*join.ServerJoin, error)) (*join.ServerJoin, error) {
	said, refusals := time.Time{}, 0
	for {
		var refused error
		later := false
		for _, url := range entrances {
			attempt, cancel := context.WithTimeout(ctx, returnAttempt)
			joined, err := try(attempt, url)
			cancel()
			if err == nil {
				log.Info("this server joins the cluster anew", "by", url)
				return joined, nil
			}
			switch {
			case join.Refused(err, join.CodeConflict), join.Refused(err, join.CodeUnknownToken):
				refused = fmt.Errorf("come back to the cluster by %s: %w", url, err)
			case !errors.Is(err, join.ErrUnreachable):
				later = true
			}
			if time.Since(said) > returnSay {
				log.Warn("no server takes this one in yet", "server", url, "error", err)
			}
		}
		if time.Since(said) > returnSay {
			said = time.Now()
		}
		if refusals++; refused == nil || later {
			refusals = 0
		}
		if refusals >= returnRefusals {
			return nil, refused
		}
		if !run.Pause(ctx, returnPause) {
			return nil, ctx.Err()
		}
	}
}

// entrances are the other servers, as far as is known, and where one of them may be.
func (s *Server) entrances() []string {
	own := s.ownURL()
	var urls []string
	add := func(url string) {
		if url != "" && url != own && !slices.Contains(urls, url) {
			urls = append(urls, url)
		}
	}
	for _, url := range s.others {
		add(url)
	}
	add(s.cfg.Join)
	add(s.entrance())
	return urls
}

// mayReturn refuses a server that comes by its key after an administrator removed it, or after another machine took
// its place.
func (s *Server) mayReturn(ctx context.Context, req join.ServerRequest) error {
	name := req.Name
	if s.membership == nil {
		return nil
	}
	// A server that was cut off must not refuse for what was so before.
	if err := s.catchUp(ctx); err != nil {
		return fmt.Errorf("%w: %w", join.ErrTryAgain, err)
	}
	for _, m := range s.membership.List() {
		if m.Name == name && !slices.Contains(m.PeerURLs, req.PeerURL) {
			return fmt.Errorf("%w: another machine, at %s, has taken the place of server %s: end this one for good, or remove its data directory and let it join with a token and another name",
				join.ErrConflict, m.PeerURLs, name)
		}
	}
	when, removed, err := s.listed(ctx, removedServers, name)
	if err != nil {
		return fmt.Errorf("%w: %w", join.ErrTryAgain, err)
	}
	if removed {
		return fmt.Errorf("%w: server %s was removed from the cluster by an administrator at %s: to take it in again, remove its data directory and join with a token",
			join.ErrConflict, name, when)
	}
	return nil
}

// removeDead removes servers that are gone for good, while this one leads.
func (s *Server) removeDead(ctx context.Context) error {
	return s.membership.RemoveDead(ctx, membership.WatchConfig{
		Bounds: s.removalBounds(), Ask: s.askServer, Removing: s.noteLost,
		Removed: func(ctx context.Context, name string) { s.tidy(ctx, name) },
	})
}

func (s *Server) removalBounds() membership.Bounds {
	if s.cfg.RemoveDeadAfter == 0 {
		return membership.Bounds{}
	}
	return membership.Bounds{Remove: s.cfg.RemoveDeadAfter, Replace: s.cfg.ReplaceDeadAfter}
}

// askServer has another server tell whom it reaches.
func (s *Server) askServer(ctx context.Context, m etcd.MemberInfo) ([]uint64, error) {
	for _, p := range s.jury() {
		if p.Name == m.Name {
			return membership.AskOver(ctx, s.peerClient, p.URL)
		}
	}
	return nil, errors.New("its address is not known")
}

// serversControl is what administrators see and do of the servers.
func (s *Server) serversControl() *membership.Control {
	return membership.NewControl(membership.ControlConfig{
		Membership: s.membership, Bounds: s.removalBounds(), Banned: s.ban, Allowed: s.allow, Lost: s.lost, Removed: s.afterRemoval,
		MayAsk: func(r *http.Request) bool { return s.returning(r) != "" }, Log: s.cfg.Log,
	})
}

// tidy takes away what a removed server left: clients and other servers must not look for it any more.
func (s *Server) tidy(ctx context.Context, name string) {
	lease := s.identityLease(name)
	if err := s.client.Delete(ctx, lease); ctrlclient.IgnoreNotFound(err) != nil {
		s.cfg.Log.Warn("the identity of a server that was removed stays", "server", name, "error", err)
	}
}

// afterRemoval tidies up after a server that an administrator removed, and says what is left to do. Its node goes too if
// the cluster knows for sure that nothing runs there any more.
func (s *Server) afterRemoval(ctx context.Context, name string) []string {
	s.tidy(ctx, name)
	var node corev1.Node
	if err := s.client.Get(ctx, ctrlclient.ObjectKey{Name: name}, &node); err != nil {
		return nil //nolint:nilerr // it was no node
	}
	lost := slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
	if lost {
		if err := s.deleteNode(ctx, name); err == nil {
			return nil
		}
	}
	return []string{fmt.Sprintf("its node stays, since pods may still run there: once its machine is off, run `kubectl delete node %s`", name)}
}
