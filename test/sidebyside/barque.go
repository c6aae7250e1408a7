package main

import (
	"context"
	"fmt"
	"path/filepath"

	at "barque.dev/test/plane"
	"barque.dev/test/proc"
)

// barque is our side: `barque server --disable agent`, one process a member.
type barque struct{ program string }

func (barque) name() string { return "Barque" }

// memberName is a member's name as a node, by its number from 0.
func memberName(i int) string { return fmt.Sprintf("barque-%d", i+1) }

func (b barque) start(ctx context.Context, dir string, r row) (*plane, error) {
	p := &plane{}
	if r.node {
		if err := p.isolate(); err != nil {
			return p, err
		}
	}
	var members []at.Program
	var token string
	for i := range r.members {
		m, url, err := b.member(dir, i, r)
		if err != nil {
			return p, err
		}
		members = append(members, m)
		if r.node {
			p.cleanUps = append(p.cleanUps, func() error { return endContainers(filepath.Join(dir, m.Name, "agent")) })
		}
		if i > 0 {
			m.Args = append(m.Args[:len(m.Args):len(m.Args)], "--join="+p.urls[0], "--token="+token)
		}
		if err := p.Launch(m); err != nil {
			return p, err
		}
		p.urls = append(p.urls, url)
		if i > 0 {
			continue
		}
		data := filepath.Join(dir, m.Name)
		if err := p.adopt(ctx, filepath.Join(data, "kubeconfig")); err != nil {
			return p, err
		}
		if err := p.awaitReady(ctx); err != nil {
			return p, err
		}
		if r.members > 1 {
			if token, err = at.JoinToken(ctx, b.program, filepath.Join(data, "kubeconfig")); err != nil {
				return p, err
			}
		}
	}
	p.scheduler = p.urls[0]
	p.leader = func(ctx context.Context) (int, error) { return b.leader(ctx, p) }
	p.restart = func(ctx context.Context) error {
		for _, m := range members {
			if err := p.Launch(m); err != nil {
				return err
			}
		}
		return p.awaitReady(ctx)
	}
	return p, p.awaitReady(ctx)
}

// member is one server, and its URL.
func (b barque) member(dir string, i int, r row) (at.Program, string, error) {
	name, address := memberName(i), "127.0.0.1"
	free, err := proc.Ports(4) // the one after the peers' is the detector's
	if err != nil {
		return at.Program{}, "", err
	}
	args := []string{
		"server", "--log-level=warn", "--node-name=" + name, "--data-dir=" + filepath.Join(dir, name),
		"--https-port=" + free[0], "--etcd-peer-port=" + free[1], "--etcd-client-port=" + free[3],
	}
	if r.node {
		address = nodeAddress
		args = append(args, "--cgroup-root="+nodeGroup())
	} else {
		args = append(args, "--disable=agent", "--bind-address="+address)
	}
	args = append(args, "--advertise-address="+address)
	if r.schedules || r.elects {
		// The nodes are made up: nobody renews their leases, and no server is to look for them.
		args = append(args, "--node-monitor-grace-period=1h", "--fence-after=30m")
	}
	if r.schedules {
		args = append(args, "--cluster-cidr=10.64.0.0/10") // as many as there are nodes
	}
	return at.Program{Name: name, Path: b.program, Args: args, Dir: dir, Member: i, KeepsState: true}, "https://" + address + ":" + free[0], nil
}

// leader is the member that holds the leases of leadership.
func (b barque) leader(ctx context.Context, p *plane) (int, error) {
	l := newLoader(p, 1)
	defer l.close()
	name, err := holder(ctx, l.clients[0], "kube-controller-manager")
	if err != nil {
		return 0, err
	}
	for i := range p.urls {
		if memberName(i) == name {
			return i, nil
		}
	}
	return 0, fmt.Errorf("%s leads, which is no member", name)
}

// adopt takes the administrator's certificate from a kubeconfig that is about to be written.
func (p *plane) adopt(ctx context.Context, kubeconfig string) error {
	config, err := p.Adopt(ctx, kubeconfig)
	if err != nil {
		return err
	}
	p.tls, err = at.ClientTLS(config.CAData, config.CertData, config.KeyData)
	return err
}
