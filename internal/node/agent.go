package node

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/cluster/join"
	"barque.dev/internal/cluster/upgrade"
	"barque.dev/internal/pki"
	"barque.dev/internal/run"
	"barque.dev/internal/runtime/kernel"
)

// Agent is a machine that only runs pods.
type Agent struct {
	cfg    AgentConfig
	home   *home
	joined join.AgentJoin
	certs  *requestedCertificates
	worker *worker

	// end stops the services; up: they run.
	end      func(error)
	up       atomic.Bool
	leaving  *leaving
	control  *control
	upgrades *upgrade.Upgrader
}

// RunAgent runs an agent until ctx ends. ready is called once its node is registered. It returns ErrAgain when the
// process has to be replaced by a new one of the same command line.
func RunAgent(ctx context.Context, cfg AgentConfig, ready func()) error {
	a := &Agent{cfg: cfg, leaving: newLeaving()}
	defer a.close()
	ctx, a.end = context.WithCancelCause(ctx)
	defer a.end(nil)
	for _, step := range []func(context.Context) error{a.openHome, a.enter, a.openCertificates, a.openWorker} {
		if err := step(ctx); err != nil {
			if errors.Is(context.Cause(ctx), errSwitch) {
				return ErrAgain
			}
			if ctx.Err() != nil {
				return nil //nolint:nilerr // it was told to stop while it started
			}
			return err
		}
	}
	services := append([]run.Service{run.Func("memory", releaseMemory), run.Func("certificates", a.certs.renew)}, a.worker.services()...)
	err := run.Group(ctx, cfg.Log, func() { a.up.Store(true); ready() }, services...)
	if errors.Is(context.Cause(ctx), errSwitch) {
		return ErrAgain
	}
	if !a.leaving.decided.Load() {
		return err
	}
	if err := a.depart(); err != nil {
		return err
	}
	cfg.Log.Info("this machine has left the cluster", "node", cfg.NodeName)
	return nil
}

func (a *Agent) openHome(context.Context) (err error) {
	if err := kernel.Check(kernel.Features()); err != nil {
		return err
	}
	if a.home, err = openHome(a.cfg.DataDir); err != nil {
		return err
	}
	if err := a.home.checkRole("agent"); err != nil {
		return err
	}
	if err := a.home.checkLeft(); err != nil {
		return err
	}
	if a.upgrades, err = a.home.openUpgrades(a.cfg.NodeName, a.end, a.cfg.Log); err != nil {
		return err
	}
	a.control, err = a.home.openControl(map[string]order{
		orderLeave: a.leaveOrder, orderSight: sightOrder(a.upgrades, a.up.Load), orderCertificates: a.certificatesOrder,
	})
	if err != nil {
		return err
	}
	return checkPorts([]port{{a.cfg.NodeIP, kubeletPort, "the node's API", "run the agent on another machine"}})
}

// enter learns the cluster's facts: at the first start by the token, later from the disk.
func (a *Agent) enter(ctx context.Context) error {
	file := a.home.path("cluster.json")
	known, err := a.home.member()
	if err != nil {
		return err
	}
	if known != "" {
		if token, err := join.ParseToken(a.cfg.Token); err == nil && token.CAHash != "" && token.CAHash != known {
			return fmt.Errorf("%s holds the data of another cluster than the token is for: choose another --data-dir, or remove this one", a.home.dir)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read what is known of the cluster: %w", err)
		}
		return json.Unmarshal(data, &a.joined)
	}
	if a.cfg.Token == "" {
		return errors.New("--token is missing: make one with `barque token create` on a server of the cluster")
	}
	token, err := join.ParseToken(a.cfg.Token)
	if err != nil {
		return fmt.Errorf("--token: %w", err)
	}
	joined, err := join.Agent(ctx, join.Options{URL: a.cfg.Server, Token: token})
	if err != nil {
		return fmt.Errorf("join %s: %w", a.cfg.Server, err)
	}
	a.joined = *joined
	data, err := json.Marshal(joined)
	if err != nil {
		return err
	}
	if err := pki.WriteFile(file, data, 0o600); err != nil {
		return err
	}
	return nil
}

func (a *Agent) openCertificates(ctx context.Context) error {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(a.joined.CA) {
		return errors.New("the cluster's CA that was received at joining is damaged: remove the data directory and join again")
	}
	a.certs = &requestedCertificates{
		dir: a.home.path("pki"), node: a.cfg.NodeName, ip: a.cfg.NodeIP, ca: a.joined.CA, pool: pool, token: a.cfg.Token,
		servers: append([]string{a.cfg.Server}, a.joined.Servers...), log: a.cfg.Log,
	}
	if err := os.MkdirAll(a.certs.dir, 0o700); err != nil {
		return fmt.Errorf("make the directory of certificates: %w", err)
	}
	if err := a.certs.open(ctx); err != nil {
		return err
	}
	return a.home.markMember(a.joined.CAHash)
}

func (a *Agent) openWorker(context.Context) error {
	cfg := workerConfig{
		Common: a.cfg.Common, home: a.home, ip: a.cfg.NodeIP, certs: a.certs, ca: a.joined.CA,
		servers: append([]string{a.cfg.Server}, a.joined.Servers...), clusterDomain: a.joined.ClusterDomain,
		paths: a.upgrades.Handlers(apiserver.LongPaths),
	}
	var err error
	parse := func(list []string, into *netip.Prefix) {
		if len(list) == 0 {
			err = errors.Join(err, errors.New("a range of the cluster is not known"))
			return
		}
		p, e := netip.ParsePrefix(list[0])
		*into, err = p, errors.Join(err, e)
	}
	parse(a.joined.ClusterCIDRs, &cfg.clusterCIDR)
	parse(a.joined.ServiceCIDRs, &cfg.serviceCIDR)
	if len(a.joined.ClusterDNS) > 0 {
		dns, e := netip.ParseAddr(a.joined.ClusterDNS[0])
		cfg.clusterDNS, err = dns, errors.Join(err, e)
	}
	if err != nil {
		return fmt.Errorf("what is known of the cluster: %w", err)
	}
	a.worker, err = newWorker(cfg)
	if err == nil {
		a.certs.client = a.worker.client
	}
	return err
}

func (a *Agent) close() {
	if a.worker != nil {
		a.worker.close()
	}
	a.control.close()
	if a.home != nil {
		a.home.close()
	}
}
