// Package balance lets a client of the API survive any server: its requests go to one of all
// servers, by health, and to another one at once when that fails.
//
// A client keeps to one server while it is healthy, so that one HTTP/2 connection carries all
// its requests; which one that is follows from a hash of the client's name, so that clients
// spread evenly over the servers and come back to theirs when it returns. A server that cannot
// be reached, breaks a connection or is not ready is left alone until it answers /readyz again.
// A request goes to the next server only when that cannot do harm: when it was not sent at all,
// or when it only reads.
//
// The list of servers is learned from the cluster and kept on disk, so that a client which
// starts when the servers it was once told of are gone still finds the others.
package balance

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"
)

const (
	// serverName stands in the certificate of every API server, whatever its addresses.
	serverName = "kubernetes.default.svc"

	defaultDialTimeout   = 2 * time.Second
	defaultProbeInterval = time.Second
	// An idle connection is pinged after pingAfter and given up when no answer comes within
	// pingTimeout, so that a machine that vanished without a word is noticed.
	pingAfter   = 2 * time.Second
	pingTimeout = 2 * time.Second
	idleTimeout = 90 * time.Second
)

// Config of a Balancer.
type Config struct {
	// Name seeds which server is this client's own, such as the node's name.
	Name string
	// Servers are where to start: URLs or host:port. What File holds is used as well.
	Servers []string
	// Prefer, unless empty, is the server to use whenever it is healthy, such as the one in
	// the same process.
	Prefer string
	// File keeps the last known servers; empty keeps them in memory only.
	File string
	// TLS holds the cluster's CA and the client's certificate, which may change (see
	// reconnect.New). Its ServerName is set. nil means plain HTTP, for tests.
	TLS *tls.Config
	// DialTimeout bounds a connection attempt to one server; 0 means 2 s.
	DialTimeout time.Duration
	// ProbeInterval is how often an unhealthy server is tried; 0 means 1 s.
	ProbeInterval time.Duration
	Log           *slog.Logger
}

// A Balancer spreads requests. It is an http.RoundTripper and safe for concurrent use.
type Balancer struct {
	config Config

	mu      sync.Mutex
	servers []*server // in the order of preference
	// suspect wakes Run when a server became unhealthy or may be.
	suspect chan struct{}
}

// New makes a balancer. At least one server must be known, from the configuration or the file.
func New(config Config) (*Balancer, error) {
	if config.DialTimeout == 0 {
		config.DialTimeout = defaultDialTimeout
	}
	if config.ProbeInterval == 0 {
		config.ProbeInterval = defaultProbeInterval
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	if config.TLS != nil {
		config.TLS = config.TLS.Clone()
		config.TLS.ServerName = serverName
	}
	known, err := readList(config.File)
	if err != nil {
		return nil, err
	}
	b := &Balancer{config: config, suspect: make(chan struct{}, 1)}
	var addresses []string
	for _, s := range slices.Concat(config.Servers, known) {
		address, err := addressOf(s)
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, address)
	}
	if config.Prefer != "" {
		if b.config.Prefer, err = addressOf(config.Prefer); err != nil {
			return nil, err
		}
		addresses = append(addresses, b.config.Prefer)
	}
	if len(addresses) == 0 {
		return nil, errors.New("balance over servers: none is known; name one")
	}
	b.set(addresses)
	return b, nil
}

// addressOf reads a URL or host:port; the port is 6443 unless given.
func addressOf(text string) (string, error) {
	host := text
	if strings.Contains(text, "://") {
		u, err := url.Parse(text)
		if err != nil || u.Host == "" {
			return "", fmt.Errorf("balance over servers: %q is not the address of a server", text)
		}
		host = u.Host
	}
	if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return netip.AddrPortFrom(a, 6443).String(), nil
	}
	if name, port, err := net.SplitHostPort(host); err == nil && name != "" && port != "" {
		return host, nil
	}
	if host == "" || strings.ContainsAny(host, ":/ ") {
		return "", fmt.Errorf("balance over servers: %q is not the address of a server", text)
	}
	return net.JoinHostPort(host, "6443"), nil
}

// Set replaces the list of servers. An empty list is ignored: a cluster always has a server.
// Connections to servers that are still in the list go on.
func (b *Balancer) Set(servers []string) error {
	var addresses []string
	for _, s := range servers {
		address, err := addressOf(s)
		if err != nil {
			return err
		}
		addresses = append(addresses, address)
	}
	if len(addresses) == 0 {
		return nil
	}
	if b.set(addresses) {
		b.config.Log.Info("servers changed", "servers", addresses)
	} else if kept, err := readList(b.config.File); err == nil && slices.Equal(kept, addresses) {
		return nil
	}
	return writeList(b.config.File, addresses)
}

// set installs the list and tells whether it differs from the former.
func (b *Balancer) set(addresses []string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.config.Prefer != "" && !slices.Contains(addresses, b.config.Prefer) {
		addresses = append(slices.Clone(addresses), b.config.Prefer)
	}
	addresses = order(addresses, b.config.Name, b.config.Prefer)
	old := map[string]*server{}
	for _, s := range b.servers {
		old[s.address] = s
	}
	servers := make([]*server, 0, len(addresses))
	changed := len(addresses) != len(old)
	for _, address := range addresses {
		s := old[address]
		if s == nil {
			s, changed = newServer(address, b.config), true
		}
		delete(old, address)
		servers = append(servers, s)
	}
	b.servers = servers
	for _, s := range old {
		s.transport.CloseIdleConnections()
	}
	return changed
}

// order sorts addresses by preference: the preferred one, then by a hash of client and server
// (rendezvous hashing), so that losing a server moves only its own clients. Repeated addresses
// are dropped.
func order(addresses []string, name, prefer string) []string {
	weight := func(address string) uint64 {
		if address == prefer {
			return 0
		}
		h := fnv.New64a()
		_, _ = h.Write([]byte(name + "\x00" + address))
		// A final mix: FNV alone leaves names that differ in their last letters close.
		v := h.Sum64()
		v ^= v >> 33
		v *= 0xff51afd7ed558ccd
		v ^= v >> 33
		return max(v, 1)
	}
	out := slices.Clone(addresses)
	slices.SortFunc(out, func(x, y string) int {
		switch a, b := weight(x), weight(y); {
		case a < b:
			return -1
		case a > b:
			return 1
		}
		return strings.Compare(x, y)
	})
	return slices.Compact(out)
}

// candidates returns all servers, healthy ones first, each group by preference. Unhealthy
// servers are tried when nothing else is left.
func (b *Balancer) candidates() []*server {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]*server, 0, len(b.servers))
	for _, s := range b.servers {
		if s.healthy.Load() {
			out = append(out, s)
		}
	}
	for _, s := range b.servers {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// Status is what is known of one server.
type Status struct {
	Address string
	Healthy bool
}

// Status returns the servers by preference.
func (b *Balancer) Status() []Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Status, 0, len(b.servers))
	for _, s := range b.servers {
		out = append(out, Status{s.address, s.healthy.Load()})
	}
	return out
}

// RESTConfig returns a client-go configuration whose requests are balanced. Change what does
// not concern transport (QPS, content type, user agent) as needed.
func (b *Balancer) RESTConfig() *rest.Config {
	scheme := "https"
	if b.config.TLS == nil {
		scheme = "http"
	}
	return &rest.Config{Host: scheme + "://" + serverName, Transport: b}
}

// DialContext opens a plain connection to a server, whatever the address asked for: for
// protocols other than HTTP.
func (b *Balancer) DialContext(ctx context.Context, network, _ string) (net.Conn, error) {
	var failures []error
	for _, s := range b.candidates() {
		conn, err := s.dial(ctx, network, s.address)
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil {
			return nil, err
		}
		failures = append(failures, err)
		b.failed(s, err)
	}
	return nil, fmt.Errorf("dial any server: %w", errors.Join(failures...))
}

// failed marks a server as unhealthy and has Run try it until it is well.
func (b *Balancer) failed(s *server, err error) {
	if s.healthy.Swap(false) {
		b.config.Log.Warn("server failed", "server", s.address, "error", err)
		s.transport.CloseIdleConnections()
	}
	b.wake()
}

// doubted has Run look after a server that may have a problem.
func (b *Balancer) doubted(s *server) {
	s.doubt.Store(true)
	b.wake()
}

func (b *Balancer) wake() {
	select {
	case b.suspect <- struct{}{}:
	default:
	}
}

// CloseIdleConnections closes the connections that carry no request.
func (b *Balancer) CloseIdleConnections() {
	for _, s := range b.candidates() {
		s.transport.CloseIdleConnections()
	}
}

// Run tries unhealthy servers until they are well, and closes idle connections when ctx ends.
// Requests work without it, but then a server that failed once is used only when all others
// fail.
func (b *Balancer) Run(ctx context.Context) error {
	defer b.CloseIdleConnections()
	timer := time.NewTimer(b.config.ProbeInterval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-b.suspect:
		case <-timer.C:
		}
		if b.probe(ctx) {
			timer.Reset(b.config.ProbeInterval)
		} else {
			timer.Stop()
		}
	}
}

// probe asks all servers that are unhealthy or in doubt, at once, and tells whether any is
// unhealthy still.
func (b *Balancer) probe(ctx context.Context) (again bool) {
	ctx, cancel := context.WithTimeout(ctx, b.config.DialTimeout)
	defer cancel()
	var wg sync.WaitGroup
	servers := b.candidates()
	for _, s := range servers {
		if s.healthy.Load() && !s.doubt.Swap(false) {
			continue
		}
		wg.Go(func() {
			err := s.ready(ctx)
			switch was := s.healthy.Swap(err == nil); {
			case err == nil && !was:
				b.config.Log.Info("server is back", "server", s.address)
			case err != nil && was:
				b.config.Log.Warn("server is not ready", "server", s.address, "error", err)
				s.transport.CloseIdleConnections()
			}
		})
	}
	wg.Wait()
	return slices.ContainsFunc(servers, func(s *server) bool { return !s.healthy.Load() })
}

var _ http.RoundTripper = (*Balancer)(nil)

func readList(file string) ([]string, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read list of servers: %w", err)
	}
	var list []string
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("read list of servers %s: %w; delete the file if the servers are named otherwise", file, err)
	}
	return list, nil
}

// writeList replaces the file at once.
func writeList(file string, list []string) error {
	if file == "" {
		return nil
	}
	text, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("encode list of servers: %w", err)
	}
	next := filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".new")
	if err := os.WriteFile(next, text, 0o600); err != nil {
		return fmt.Errorf("write list of servers: %w", err)
	}
	if err := os.Rename(next, file); err != nil {
		return fmt.Errorf("write list of servers: %w", err)
	}
	return nil
}
