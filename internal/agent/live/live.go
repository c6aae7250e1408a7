// Package live keeps the agent's live connections to the servers, and decides when the node is cut
// off.
//
// The agent holds one long request to each server, POST /barque/v1/nodes/<name>/live. Each beat it
// writes a line into the request's body, and the server writes the line back into the response's:
// so the server knows that the agent lives, and the agent that this server heard it, at a time of
// the agent's own clock (the line tells when it was sent). The node counts as connected while most
// servers have heard it within the bound. The cluster calls a node lost only when most servers tell
// that they have not; two majorities share a server, so a node that counts as connected is not lost.
// When too few servers heard it, whoever listens is told before the bound is over, so that pods that
// must not run twice are stopped before the cluster may replace them; the sign of life that makes it
// a majority again ends the state.
package live

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// DefaultBound is how long a node may be without most servers before it counts as cut off.
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
	// Bound is how long the node may be without most servers. 0 is DefaultBound.
	Bound time.Duration
	// Margin is how long before the bound Lost is called: the time stopping pods takes. 0 is a
	// fifth of the bound.
	Margin time.Duration
	// Lost is called when the node is cut off, Found when most servers answer again. They
	// are called one at a time and must not block.
	Lost, Found func()
	Log         *slog.Logger
}

// Monitor keeps the connections. Make it with New.
type Monitor struct {
	Config

	start time.Time // beats tell the time since

	mu    sync.Mutex
	heard map[string]time.Time // by server: when the last beat was sent that it answered
	lost  bool
	sign  chan struct{}
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
	return &Monitor{Config: c, start: time.Now(), heard: map[string]time.Time{}, sign: make(chan struct{}, 1)}, nil
}

// Run keeps the connections until ctx ends.
func (m *Monitor) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
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

// follow keeps one stream for each server there is now. A server that is new counts as heard just
// now, until it had the time to answer.
func (m *Monitor) follow(ctx context.Context, streams map[string]context.CancelFunc, all *sync.WaitGroup) {
	wanted := map[string]bool{}
	for _, s := range m.Servers() {
		wanted[s.URL] = true
		if streams[s.URL] != nil {
			continue
		}
		m.answered(s.URL, time.Now())
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
	m.mu.Lock()
	defer m.mu.Unlock()
	for u := range m.heard {
		if !wanted[u] {
			delete(m.heard, u)
		}
	}
}

// since is when most of the servers had heard the node; start when there are none.
func since(start time.Time, heard map[string]time.Time) time.Time {
	times := make([]time.Time, 0, len(heard))
	for _, t := range heard {
		times = append(times, t)
	}
	if len(times) == 0 {
		return start
	}
	slices.SortFunc(times, time.Time.Compare)
	majority := len(times)/2 + 1
	return times[len(times)-majority]
}

// judge decides whether the node is cut off, tells on a change, and returns when to judge again.
func (m *Monitor) judge(at time.Time) time.Duration {
	m.mu.Lock()
	last := since(m.start, m.heard)
	limit := last.Add(m.Bound - m.Margin)
	lost := !at.Before(limit)
	changed := lost != m.lost
	m.lost = lost
	m.mu.Unlock()
	if changed && lost {
		m.Log.Warn("most servers can't be reached", "node", m.NodeName, "silent", at.Sub(last), "bound", m.Bound)
		m.Lost()
	} else if changed {
		m.Log.Info("most servers can be reached again", "node", m.NodeName)
		m.Found()
	}
	if lost {
		return m.Bound // the next sign of life wakes
	}
	return max(limit.Sub(at), time.Millisecond)
}

// answered records that the server has heard what was sent at the time.
func (m *Monitor) answered(server string, sent time.Time) {
	m.mu.Lock()
	if sent.After(m.heard[server]) {
		m.heard[server] = sent
	}
	wake := m.lost
	m.mu.Unlock()
	if wake {
		select {
		case m.sign <- struct{}{}:
		default:
		}
	}
}

// Connected tells whether most servers heard the node in time.
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

// hold makes one request, beats and reads the answers until it ends. got tells whether the server
// gave any.
func (m *Monitor) hold(ctx context.Context, s Server) (got bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A connection that says nothing for the bound is as good as none: try a new one.
	idle := time.AfterFunc(m.Bound, cancel)
	defer idle.Stop()

	body, beats := io.Pipe()
	var writing sync.WaitGroup
	defer writing.Wait()
	defer body.Close() // ends a write
	defer cancel()
	writing.Go(func() { m.send(ctx, beats) })

	target := strings.TrimSuffix(s.URL, "/") + "/barque/v1/nodes/" + url.PathEscape(m.NodeName) + "/live"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, target, body)
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
		sent, err := strconv.ParseInt(lines.Text(), 10, 64)
		if at := m.start.Add(time.Duration(sent)); err == nil && !at.After(time.Now()) {
			got = true
			idle.Reset(m.Bound)
			m.answered(s.URL, at)
		}
	}
	return got, lines.Err()
}

// send writes a beat at once and then one each interval, until ctx ends or nobody reads any more.
func (m *Monitor) send(ctx context.Context, beats *io.PipeWriter) {
	defer beats.Close()
	tick := time.NewTicker(m.beat())
	defer tick.Stop()
	for {
		if _, err := fmt.Fprintln(beats, int64(time.Since(m.start))); err != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
