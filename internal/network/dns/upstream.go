package dns

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/cache"
	"github.com/coredns/coredns/plugin/forward"
	"github.com/coredns/coredns/plugin/pkg/proxy"
	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/miekg/dns"
)

// resolverInterval is how often the machine's resolver configuration is looked at.
const resolverInterval = 10 * time.Second

// systemdStub is the address of systemd-resolved's local server, and systemdResolvers the file where
// it writes the real ones; the stub may forward to us.
const (
	systemdStub      = "127.0.0.53"
	systemdResolvers = "/run/systemd/resolve/resolv.conf"
)

// Upstreams reads the servers of a resolv.conf(5), as "address:port". Leaves out skip, our own
// address: a query must not come back to us. No file means no servers.
func Upstreams(path string, skip netip.Addr) []string {
	config, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil
	}
	var servers []string
	for _, s := range config.Servers {
		if s == systemdStub && path != systemdResolvers {
			if real := Upstreams(systemdResolvers, skip); len(real) > 0 {
				return real
			}
		}
		ip, err := netip.ParseAddr(s)
		if err != nil || ip.Unmap() == skip || ip.IsUnspecified() {
			continue
		}
		servers = append(servers, net.JoinHostPort(s, config.Port))
	}
	return servers
}

// resolver forwards what the cluster does not know to the machine's own servers, through a cache. It
// follows the resolver configuration. Without servers it fails at once.
type resolver struct {
	path string
	skip netip.Addr
	log  *slog.Logger

	mu      sync.RWMutex
	servers []string
	chain   plugin.Handler // nil without servers
	stop    func()
}

// Name implements plugin.Handler.
func (r *resolver) Name() string { return "resolver" }

// ServeDNS implements plugin.Handler.
func (r *resolver) ServeDNS(ctx context.Context, w dns.ResponseWriter, m *dns.Msg) (int, error) {
	// Held during the query, so that servers are closed only when nobody uses them.
	r.mu.RLock()
	defer r.mu.RUnlock()
	if r.chain == nil {
		return dns.RcodeServerFailure, nil
	}
	return r.chain.ServeDNS(ctx, w, m)
}

// load reads the configuration and changes the chain if the servers changed.
func (r *resolver) load() {
	servers := Upstreams(r.path, r.skip)
	r.mu.RLock()
	same := slices.Equal(servers, r.servers)
	r.mu.RUnlock()
	if same {
		return
	}
	var chain plugin.Handler
	stop := func() {}
	if len(servers) > 0 {
		f := forward.New()
		for _, s := range servers {
			f.SetProxy(proxy.NewProxy("forward", s, transport.DNS))
		}
		c := cache.New()
		c.Next = f
		chain = c
		stop = func() {
			if err := f.OnShutdown(); err != nil {
				r.log.Debug("close upstream servers", "error", err)
			}
		}
	}
	r.replace(servers, chain, stop)
	r.log.Info("upstream DNS servers", "servers", servers)
}

func (r *resolver) replace(servers []string, chain plugin.Handler, stop func()) {
	r.mu.Lock()
	former := r.stop
	r.servers, r.chain, r.stop = servers, chain, stop
	r.mu.Unlock()
	if former != nil {
		former()
	}
}

// run follows the configuration until ctx ends.
func (r *resolver) run(ctx context.Context) {
	defer r.replace(nil, nil, nil)
	tick := time.NewTicker(resolverInterval)
	defer tick.Stop()
	before, _ := os.ReadFile(r.path)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now, _ := os.ReadFile(r.path); !bytes.Equal(before, now) {
			before = now
			r.load()
		}
	}
}
