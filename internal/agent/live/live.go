// Package live keeps the agent's live connections to the servers, and decides when the node is cut
// off.
//
// The agent holds one long request to each server, GET /barque/v1/nodes/<name>/live. The server
// answers with a stream of short lines, at least one each beat; each line is a sign of life. The
// node counts as connected while any server gave one within the bound. When none did, whoever
// listens is told before the bound is over, so that pods that must not run twice are stopped before
// the cluster may replace them; the first sign of life after that ends the state.
package live

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
)

// DefaultBound is how long a node may be without any server before it counts as cut off.
const DefaultBound = 2500 * time.Millisecond

// Server is one server, reached by a client of its own so that connections do not share fate.
type Server struct {
	// URL is the server's base, such as https://10.0.0.1:6443.
	URL    string
	Client *http.Client
}

// Config configures a Monitor.
type Config struct {
	NodeName string
	// Servers returns the servers as they are now; it is asked again every beat.
	Servers func() []Server
	// Bound is how long the node may be without a sign of life. 0 is DefaultBound.
	Bound time.Duration
	// Margin is how long before the bound Lost is called: the time stopping pods takes. 0 is a
	// fifth of the bound.
	Margin time.Duration
	// Lost is called when the node is cut off, Found when a server answers again. They are
	// called one at a time and must not block.
	Lost, Found func()
	Log         *slog.Logger
}

// Monitor keeps the connections. Make it with New.
type Monitor struct {
	Config

	mu   sync.Mutex
	last time.Time // of the last sign of life, monotonic
	lost bool
	sign chan struct{}
}

// New returns a monitor that begins as connected.
func New(c Config) (*Monitor, error) {
	if c.NodeName == "" || c.Servers == nil || c.Lost == nil || c.Found == nil {
		return nil, errors.New("live connection: node name, servers and both callbacks are required")
	}
	if c.Bound == 0 {
		c.Bound = DefaultBound
	}
	if c.Margin == 0 {
		c.Margin = c.Bound / 5
	}
	if c.Margin >= c.Bound {
		return nil, fmt.Errorf("live connection: margin %s is not below the bound %s", c.Margin, c.Bound)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Monitor{Config: c, last: time.Now(), sign: make(chan struct{}, 1)}, nil
}

// Run keeps the connections until ctx ends.
func (m *Monitor) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	m.mu.Lock()
	m.last = time.Now()
	m.mu.Unlock()
	streams := map[string]context.CancelFunc{}
	defer func() {
		for _, cancel := range streams {
			cancel()
		}
	}()
	check := time.NewTimer(0)
	defer check.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.sign:
		case <-check.C:
		}
		m.follow(ctx, streams, &all)
		check.Reset(min(m.judge(time.Now()), m.beat()))
	}
}

// beat is how often a sign of life should come: several fit in the bound.
func (m *Monitor) beat() time.Duration { return m.Bound / 5 }

// follow keeps one stream for each server there is now.
func (m *Monitor) follow(ctx context.Context, streams map[string]context.CancelFunc, all *sync.WaitGroup) {
	wanted := map[string]bool{}
	for _, s := range m.Servers() {
		wanted[s.URL] = true
		if streams[s.URL] != nil {
			continue
		}
		one, cancel := context.WithCancel(ctx)
		streams[s.URL] = cancel
		all.Add(1)
		go func() {
			defer all.Done()
			m.stream(one, s)
		}()
	}
	for u, cancel := range streams {
		if !wanted[u] {
			cancel()
			delete(streams, u)
		}
	}
}

// judge decides whether the node is cut off, tells on a change, and returns when to judge again.
func (m *Monitor) judge(at time.Time) time.Duration {
	m.mu.Lock()
	limit := m.last.Add(m.Bound - m.Margin)
	lost := !at.Before(limit)
	changed := lost != m.lost
	m.lost = lost
	silent := at.Sub(m.last)
	m.mu.Unlock()
	if changed && lost {
		m.Log.Warn("no server can be reached", "node", m.NodeName, "silent", silent, "bound", m.Bound)
		m.Lost()
	} else if changed {
		m.Log.Info("a server can be reached again", "node", m.NodeName)
		m.Found()
	}
	if lost {
		return m.Bound // the next sign of life wakes
	}
	return max(limit.Sub(at), time.Millisecond)
}

// alive records a sign of life.
func (m *Monitor) alive() {
	m.mu.Lock()
	m.last = time.Now()
	wake := m.lost
	m.mu.Unlock()
	if wake {
		select {
		case m.sign <- struct{}{}:
		default:
		}
	}
}

// Connected tells whether any server gave a sign of life in time.
func (m *Monitor) Connected() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return !m.lost
}

// The delays between attempts to reach one server.
const (
	reconnectMin = 50 * time.Millisecond
	reconnectMax = time.Second
)

// stream holds the request to one server until ctx ends, again and again.
func (m *Monitor) stream(ctx context.Context, s Server) {
	delay := reconnectMin
	for ctx.Err() == nil {
		got, err := m.hold(ctx, s)
		if ctx.Err() != nil {
			return
		}
		if got {
			delay = reconnectMin
		}
		m.Log.Debug("live connection ended", "server", s.URL, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
		delay = min(2*delay, reconnectMax)
	}
}

// hold makes one request and reads it until it ends. got tells whether the server gave a sign.
func (m *Monitor) hold(ctx context.Context, s Server) (got bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A connection that says nothing for the bound is as good as none: try a new one.
	idle := time.AfterFunc(m.Bound, cancel)
	defer idle.Stop()
	target := strings.TrimSuffix(s.URL, "/") + "/barque/v1/nodes/" + url.PathEscape(m.NodeName) + "/live?beat=" + m.beat().String()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return false, fmt.Errorf("live connection to %s: %w", s.URL, err)
	}
	reply, err := s.Client.Do(request)
	if err != nil {
		return false, fmt.Errorf("live connection to %s: %w", s.URL, err)
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		return false, fmt.Errorf("live connection to %s: %s", s.URL, reply.Status)
	}
	lines := bufio.NewScanner(reply.Body)
	for lines.Scan() {
		got = true
		idle.Reset(m.Bound)
		m.alive()
	}
	return got, lines.Err()
}
