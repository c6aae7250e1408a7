package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"barque.dev/internal/network/namespace"
	"barque.dev/internal/network/source"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/transport"
	"github.com/coredns/coredns/plugin/pkg/upstream"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Config is what a Server needs. All fields but Namespace are required.
type Config struct {
	Namespace namespace.Namespace
	// Address is the cluster's DNS address. Run gives it to the loopback device.
	Address netip.Addr
	// Domain is the cluster domain, such as "cluster.local".
	Domain string
	// ResolvConf is the path of the machine's resolver configuration.
	ResolvConf string
	Source     *source.Source
	Log        *slog.Logger
}

// Server is the node's DNS server. See the package comment.
type Server struct {
	cfg      Config
	resolver *resolver
	server   *dnsserver.Server
}

// New makes a server; nothing is listened on before Run.
func New(cfg Config) (*Server, error) {
	domain := dns.Fqdn(dns.CanonicalName(cfg.Domain))
	if _, ok := dns.IsDomainName(domain); !ok || domain == "." {
		return nil, fmt.Errorf("cluster domain %q is not a domain name", cfg.Domain)
	}
	r := &resolver{path: cfg.ResolvConf, skip: cfg.Address, log: cfg.Log}
	c := &cluster{
		backend: &backend{source: cfg.Source, zone: domain, server: cfg.Address, lookup: upstream.New()},
		zones:   plugin.Zones{domain, "in-addr.arpa.", "ip6.arpa."},
		next:    r,
		log:     cfg.Log,
	}
	addr := transport.DNS + "://" + netip.AddrPortFrom(cfg.Address, 53).String()
	server, err := dnsserver.NewServer(addr, []*dnsserver.Config{{
		Zone:        ".",
		ListenHosts: []string{cfg.Address.String()},
		Port:        "53",
		Transport:   transport.DNS,
		Plugin:      []plugin.Plugin{func(plugin.Handler) plugin.Handler { return c }},
	}})
	if err != nil {
		return nil, fmt.Errorf("make DNS server: %w", err)
	}
	return &Server{cfg: cfg, resolver: r, server: server}, nil
}

// Run answers until ctx ends. ready is called when queries are answered and the source has listed
// everything; queries that come earlier are answered as far as is known, and with SERVFAIL
// where it is not. Run can be called once.
func (s *Server) Run(ctx context.Context, ready func()) error {
	if err := s.takeAddress(); err != nil {
		return err
	}
	s.resolver.load()
	var tcp net.Listener
	var udp net.PacketConn
	err := s.cfg.Namespace.Do(func() error {
		var err error
		address := netip.AddrPortFrom(s.cfg.Address, 53).String()
		if tcp, err = net.Listen("tcp", address); err != nil {
			return fmt.Errorf("listen for DNS: %w", err)
		}
		if udp, err = net.ListenPacket("udp", address); err != nil {
			return errors.Join(fmt.Errorf("listen for DNS: %w", err), tcp.Close())
		}
		return nil
	})
	if err != nil {
		s.resolver.replace(nil, nil, nil)
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return ignoreClosed(ctx, s.server.Serve(tcp)) })
	group.Go(func() error { return ignoreClosed(ctx, s.server.ServePacket(udp)) })
	group.Go(func() error { s.resolver.run(ctx); return nil })
	group.Go(func() error {
		if s.cfg.Source.Wait(ctx) == nil {
			ready()
		}
		<-ctx.Done()
		err := s.server.Stop()
		// Also when the server had not begun to use them.
		return errors.Join(err, closed(tcp.Close()), closed(udp.Close()))
	})
	return group.Wait()
}

func closed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func ignoreClosed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	if err == nil {
		return errors.New("DNS server stopped")
	}
	return fmt.Errorf("serve DNS: %w", err)
}

// takeAddress gives the DNS address to the loopback device.
func (s *Server) takeAddress() error {
	h, err := s.cfg.Namespace.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback device: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback device up: %w", err)
	}
	if err := h.AddrReplace(lo, address(s.cfg.Address)); err != nil {
		return fmt.Errorf("give DNS address %s to the loopback device: %w", s.cfg.Address, err)
	}
	return nil
}

func address(ip netip.Addr) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(ip.BitLen(), ip.BitLen())}}
}

// Remove takes the DNS address off the loopback device again.
func Remove(ns namespace.Namespace, ip netip.Addr) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.AddrDel(lo, address(ip))
	}
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove DNS address %s from the loopback device: %w", ip, err)
	}
	return nil
}
