package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"barque.dev/internal/cluster/join"
	"barque.dev/internal/pki"
	"barque.dev/internal/runtime/containerd"
)

// Kubeconfig is the administrator's, pointing at the virtual IP.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.Dir, "kubeconfig") }

// writeKubeconfig copies that of a server, which every server writes alike, and renews while it runs: the newest is good the
// longest.
func (c *Cluster) writeKubeconfig() error {
	newest, written := "", time.Time{}
	for _, m := range c.Machines {
		path := filepath.Join(m.DataDir(), "kubeconfig")
		info, err := os.Stat(path)
		if err == nil && m.Role == RoleServer && m.joined() && !m.Left() && info.ModTime().After(written) {
			newest, written = path, info.ModTime()
		}
	}
	if newest == "" {
		return errors.New("no server has written a kubeconfig yet")
	}
	data, err := os.ReadFile(newest)
	if err != nil {
		return fmt.Errorf("read a server's kubeconfig: %w", err)
	}
	if have, err := os.ReadFile(c.Kubeconfig()); err == nil && bytes.Equal(have, data) {
		return nil
	}
	if err := pki.WriteFile(c.Kubeconfig(), data, 0o600); err != nil {
		return fmt.Errorf("write the kubeconfig: %w", err)
	}
	return nil
}

// Config speaks to the API at the virtual IP. The kubeconfig follows the servers'.
func (c *Cluster) Config() (*rest.Config, error) {
	_ = c.writeKubeconfig() // the one that is there may still do
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %w", c.Kubeconfig(), err)
	}
	return config, nil
}

// Client speaks to the API at the virtual IP.
func (c *Cluster) Client() (kubernetes.Interface, error) {
	config, err := c.Config()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}

// MachineConfig speaks to the API of one server, at its own address.
func (c *Cluster) MachineConfig(m *Machine) (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(m.DataDir(), "kubeconfig"))
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig of %s: %w", m.Name, err)
	}
	config.Host = "https://" + netip.AddrPortFrom(m.IP, apiPort).String()
	config.Timeout = 2 * time.Second
	return config, nil
}

// probe asks one server whether it is ready.
func (c *Cluster) probe(ctx context.Context, m *Machine) error {
	config, err := c.MachineConfig(m)
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	_, err = client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	return err
}

// memberTimeout bounds the wait for a server that others can join through.
const memberTimeout = 30 * time.Second

// awaitMember waits until a server that was a member before, which may just have been started, is ready, or none
// runs, or for a while: whoever needs one finds out what is wrong.
func (c *Cluster) awaitMember(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, memberTimeout)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		running := false
		for _, m := range c.Machines {
			if m.Role != RoleServer || !m.joined() || !m.Running() {
				continue
			}
			running = true
			if c.probe(ctx, m) == nil {
				return
			}
		}
		if !running {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ServersReady tells which server that should run does not say that it is ready, which it does only
// while it has a quorum; nil if all do.
func (c *Cluster) ServersReady(ctx context.Context) error {
	for _, m := range c.Machines {
		if m.Role != RoleServer {
			continue
		}
		if err := c.probe(ctx, m); err != nil {
			return fmt.Errorf("%s is not ready: %w", m.Name, err)
		}
	}
	return nil
}

// createToken makes a token for the machines that `up` starts.
func (c *Cluster) createToken(ctx context.Context) (token string, err error) {
	err = c.throughAny(func(client kubernetes.Interface, config *rest.Config) error {
		hash, err := join.HashOfPEM(config.CAData)
		if err != nil {
			return err
		}
		made, err := join.Create(ctx, client, join.CreateOptions{
			CAHash: hash, Usages: []join.Usage{join.UsageServer, join.UsageAgent}, TTL: tokenLife, Description: "made by barque up",
		}, time.Now())
		token = made.String()
		return err
	})
	if err != nil {
		return "", fmt.Errorf("create a token for the machines to come: %w", err)
	}
	return token, nil
}

// revokeToken takes a token back once nobody needs it, whether `up` succeeds or not.
func (c *Cluster) revokeToken(ctx context.Context, token string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), revokeTimeout)
	defer cancel()
	err := c.throughAny(func(client kubernetes.Interface, _ *rest.Config) error { return join.Delete(ctx, client, token) })
	if err != nil {
		return fmt.Errorf("revoke the token that machines joined with, which ends by itself within %v: %w", tokenLife, err)
	}
	return nil
}

// throughAny does something through one server after the other until it succeeds.
func (c *Cluster) throughAny(do func(kubernetes.Interface, *rest.Config) error) error {
	err := errors.New("no server runs")
	var errs []error
	for _, m := range c.Machines {
		if m.Role != RoleServer || !m.Running() {
			continue
		}
		var config *rest.Config
		var client kubernetes.Interface
		if config, err = c.MachineConfig(m); err == nil {
			if client, err = kubernetes.NewForConfig(config); err == nil {
				err = do(client, config)
			}
		}
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", m.Name, err))
	}
	if len(errs) == 0 {
		return err
	}
	return errors.Join(errs...)
}

const (
	// tokenLife is more than machines need to start; a `barque up` that is killed leaves its token
	// for so long.
	tokenLife     = 10 * time.Minute
	revokeTimeout = 5 * time.Second
)

// WaitNodes waits until every machine is a Ready node.
func (c *Cluster) WaitNodes(ctx context.Context, progress func(string, ...any)) error {
	seen := map[string]bool{}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		var nodes *corev1.NodeList
		client, err := c.Client()
		if err == nil {
			nodes, err = client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		}
		if err == nil {
			for i := range nodes.Items {
				n := &nodes.Items[i]
				if ready(n) && !seen[n.Name] {
					seen[n.Name] = true
					progress("node %s is Ready%s", n.Name, whyNoPods(n))
				}
			}
		}
		missing := c.missing(seen)
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nodes %v are not Ready: look into %s (%w)", missing, filepath.Join(c.Dir, missing[0]+".log"), errors.Join(err, ctx.Err()))
		case <-tick.C:
		}
	}
}

// whyNoPods says why a node that is ready gets no pods all the same; "" when it does.
func whyNoPods(n *corev1.Node) string {
	for _, cond := range n.Status.Conditions {
		if isPressure(cond) {
			return ", but gets no pods: " + cond.Message
		}
	}
	return ""
}

func (c *Cluster) missing(seen map[string]bool) (names []string) {
	for _, m := range c.Machines {
		if !seen[m.Name] && !m.Left() {
			names = append(names, m.Name)
		}
	}
	return names
}

func ready(n *corev1.Node) bool {
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			return cond.Status == corev1.ConditionTrue
		}
	}
	return false
}

// containerd is the machine's.
func (m *Machine) containerd() (*containerd.Runtime, error) {
	rt, err := containerd.New(containerd.Config{
		DataDir: filepath.Join(m.DataDir(), "agent"), CgroupRoot: m.cgroup(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, fmt.Errorf("find %s's containerd: %w", m.Name, err)
	}
	return rt, nil
}

// ContainerdSocket is where the machine's containerd listens.
func (m *Machine) ContainerdSocket() (string, error) {
	rt, err := m.containerd()
	if err != nil {
		return "", err
	}
	return rt.Socket(), nil
}

// clean removes what is left of the machine's containers, once its processes are gone.
func (m *Machine) clean(ctx context.Context) error {
	rt, err := m.containerd()
	if err != nil {
		return err
	}
	return errors.Join(rt.Clean(ctx), detachBelow(m.DataDir()))
}
