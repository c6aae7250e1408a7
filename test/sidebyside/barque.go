package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"barque.dev/test/proc"
)

// barque is our side: `barque server --disable agent`, one process a member.
type barque struct{ program string }

func (barque) name() string { return "Barque" }

func (b barque) start(ctx context.Context, dir string, r row) (*plane, error) {
	p := &plane{}
	var launches []func() error
	var token string
	for i := range r.members {
		name := fmt.Sprintf("barque-%d", i+1)
		data := filepath.Join(dir, name)
		free, err := proc.Ports(4) // the one after the peers' is the detector's
		if err != nil {
			return p, err
		}
		args := []string{
			"server", "--disable=agent", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--log-level=warn",
			"--node-name=" + name, "--data-dir=" + data, "--https-port=" + free[0], "--etcd-peer-port=" + free[1], "--etcd-client-port=" + free[3],
		}
		if r.schedules {
			args = append(args, "--node-monitor-grace-period=1h") // the nodes are made up: nobody renews their leases
		}
		launches = append(launches, func() error {
			_, err := p.launch(name, dir, b.program, true, args...)
			return err
		})
		first := args
		if i > 0 {
			first = append(args[:len(args):len(args)], "--join="+p.urls[0], "--token="+token)
		}
		if _, err := p.launch(name, dir, b.program, true, first...); err != nil {
			return p, err
		}
		p.urls = append(p.urls, "https://127.0.0.1:"+free[0])
		if i == 0 {
			if err := p.adopt(ctx, filepath.Join(data, "kubeconfig")); err != nil {
				return p, err
			}
			if r.members > 1 {
				if err := p.awaitReady(ctx); err != nil {
					return p, err
				}
				if token, err = b.token(ctx, data); err != nil {
					return p, err
				}
			}
		}
	}
	p.restart = func(ctx context.Context) error {
		for _, launch := range launches {
			if err := launch(); err != nil {
				return err
			}
		}
		return p.awaitReady(ctx)
	}
	return p, p.awaitReady(ctx)
}

// adopt takes the administrator's certificate from a kubeconfig that is about to be written.
func (p *plane) adopt(ctx context.Context, kubeconfig string) error {
	return p.poll(ctx, "read "+kubeconfig, func(context.Context) error {
		config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
		if err != nil {
			return err
		}
		if err := rest.LoadTLSFiles(config); err != nil {
			return err
		}
		p.tls, err = clientTLS(config.CAData, config.CertData, config.KeyData)
		return err
	})
}

// token asks the first server for a token that others join with.
func (b barque) token(ctx context.Context, data string) (string, error) {
	out, err := exec.CommandContext(ctx, b.program, "token", "create", "--kubeconfig="+filepath.Join(data, "kubeconfig"), "--ttl=10m").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("create a token: %w: %s", err, out)
	}
	found := regexp.MustCompile(`--token[ =](\S+)`).FindSubmatch(out)
	if found == nil {
		return "", fmt.Errorf("create a token: it printed %q", out)
	}
	return string(found[1]), nil
}
