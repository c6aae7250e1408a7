// Package liveness knows, on every server, which nodes live: each agent holds a connection to
// each server and sends a beat over it, so silence is noticed in a second rather than after a
// lease of forty.
//
// The server sends each beat back. So an agent knows when a server heard it last, by its own clock;
// while most servers did so lately, no majority of them can take it for silent.
//
// Silence alone condemns nobody. [Tracker.Ask] asks the other servers what they hear, and every
// server tries to reach the silent machine itself. A machine whose kernel answers, even by
// refusing, is not lost; its agent may only be restarting.
package liveness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

const (
	// Beat is how often an agent sends a line, which the server sends back.
	Beat = 500 * time.Millisecond
	// Silent is how long an agent may send nothing before its connection is given up.
	Silent = 3 * Beat
	// ReachTimeout bounds one attempt to reach a machine.
	ReachTimeout = 500 * time.Millisecond
	// tellTimeout is how much longer another server may take to tell what it found.
	tellTimeout = 250 * time.Millisecond

	// Path is what Handler serves: below it, by node, agents connect (live), and servers ask
	// each other (reach).
	Path = "/barque/v1/nodes/"
)

// A Peer is another server.
type Peer struct {
	Name string
	// URL is where its API is, such as "https://192.0.2.1:6443".
	URL string
}

// Config is what a Tracker needs.
type Config struct {
	// Peers lists the other servers, as they are now.
	Peers func() []Peer
	// Client speaks to them, as a server.
	Client *http.Client
	// MayBeat tells whether the request comes from the node; MayAsk whether it comes from a
	// server.
	MayBeat func(r *http.Request, node string) bool
	MayAsk  func(r *http.Request) bool
	Log     *slog.Logger
}

// Tracker notes when nodes were last heard. It is safe for concurrent use.
type Tracker struct {
	cfg Config

	mu      sync.Mutex
	seen    map[string]time.Time
	open    map[string]int // connections by node
	changed func(node string)
}

// NewTracker makes a tracker that has heard nobody yet.
func NewTracker(cfg Config) *Tracker {
	return &Tracker{cfg: cfg, seen: map[string]time.Time{}, open: map[string]int{}}
}

// Handler serves Path.
func (t *Tracker) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+Path+"{node}/live", t.serveLive)
	mux.HandleFunc("GET "+Path+"{node}/reach", t.serveReach)
	return mux
}

// LastHeard is when this server last heard the node; the zero time for never.
func (t *Tracker) LastHeard(node string) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.seen[node]
}

// Connected tells whether the node's agent holds a connection to this server now.
func (t *Tracker) Connected(node string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.open[node] > 0
}

// Notify sets the function that is called when a node's last connection ends or its first
// begins; nil for none. It must not block.
func (t *Tracker) Notify(changed func(node string)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changed = changed
}

func (t *Tracker) heard(node string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen[node] = time.Now()
}

func (t *Tracker) connections(node string, delta int) {
	t.mu.Lock()
	t.open[node] += delta
	n, changed := t.open[node], t.changed
	if n == 0 {
		delete(t.open, node)
	}
	t.mu.Unlock()
	if changed != nil && (n == 0 || n == 1 && delta > 0) {
		changed(node)
	}
}

// serveLive holds an agent's connection: beats come in the request's body, and go back in the
// response's. It ends when the agent is silent, so that the end is told.
func (t *Tracker) serveLive(w http.ResponseWriter, r *http.Request) {
	node := r.PathValue("node")
	if !t.cfg.MayBeat(r, node) {
		http.Error(w, "only the node itself may do this", http.StatusForbidden)
		return
	}
	control := http.NewResponseController(w)
	_ = control.SetWriteDeadline(time.Time{})
	_ = control.EnableFullDuplex() // HTTP/1 needs it, HTTP/2 has it
	w.WriteHeader(http.StatusOK)
	if control.Flush() != nil {
		return
	}
	t.connections(node, 1)
	defer t.connections(node, -1)
	buf := make([]byte, 256)
	for r.Context().Err() == nil {
		if control.SetReadDeadline(time.Now().Add(Silent)) != nil {
			return
		}
		n, err := r.Body.Read(buf)
		if err != nil {
			return
		}
		t.heard(node)
		if _, err := w.Write(buf[:n]); err != nil || control.Flush() != nil {
			return
		}
	}
}

// A report is one server's knowledge of a node.
type report struct {
	// Heard is how long ago the server heard the node; negative for never.
	HeardMillis int64 `json:"heardMillis"`
	// Answers tells whether the machine's kernel answered just now.
	Answers bool `json:"answers"`
}

func (t *Tracker) serveReach(w http.ResponseWriter, r *http.Request) {
	if !t.cfg.MayAsk(r) {
		http.Error(w, "only servers may ask", http.StatusForbidden)
		return
	}
	addr, err := netip.ParseAddrPort(r.URL.Query().Get("address"))
	if err != nil {
		http.Error(w, "address: "+err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(t.look(r.Context(), r.PathValue("node"), addr))
}

func (t *Tracker) look(ctx context.Context, node string, addr netip.AddrPort) report {
	rep := report{HeardMillis: -1, Answers: answers(ctx, addr)}
	if last := t.LastHeard(node); !last.IsZero() {
		rep.HeardMillis = time.Since(last).Milliseconds()
	}
	return rep
}

// answers tells whether the machine at addr answers a connection attempt in any way.
func answers(ctx context.Context, addr netip.AddrPort) bool {
	return knock(ctx, addr, ReachTimeout) != Mute
}

// Reply is what becomes of an attempt to connect.
type Reply int

const (
	// Mute: nothing answered in time.
	Mute Reply = iota
	// Refused: the machine's kernel says that nobody listens there.
	Refused
	// Accepted: somebody listens there, or did until a moment ago.
	Accepted
)

// knockTimeout is enough for a kernel on the same network, however busy its processes are.
const knockTimeout = 500 * time.Millisecond

// Knock tries to connect to another server, and tells what becomes of it within half a second.
func (t *Tracker) Knock(ctx context.Context, addr netip.AddrPort) Reply {
	return knock(ctx, addr, knockTimeout)
}

func knock(ctx context.Context, addr netip.AddrPort, timeout time.Duration) Reply {
	conn, err := (&net.Dialer{Timeout: timeout}).DialContext(ctx, "tcp", addr.String())
	switch {
	case err == nil:
		_ = conn.Close()
		return Accepted
	case errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET):
		return Refused
	}
	return Mute
}

// Opinion is what the servers together know of a node.
type Opinion struct {
	// Servers is how many there are, Asked how many told what they know, this one included.
	Servers, Asked int
	// Answering is how many of them the machine answers.
	Answering int
	// Silence is for how long none of them has heard the node; negative if none ever has.
	Silence time.Duration
}

// Ask collects what every server knows of the node, whose agent listens at addr.
func (t *Tracker) Ask(ctx context.Context, node string, addr netip.AddrPort) Opinion {
	peers := t.cfg.Peers()
	reports := make([]*report, len(peers)+1)
	var wg sync.WaitGroup
	wg.Go(func() {
		r := t.look(ctx, node, addr)
		reports[len(peers)] = &r
	})
	for i, p := range peers {
		wg.Go(func() {
			r, err := t.askPeer(ctx, p, node, addr)
			if err != nil {
				t.cfg.Log.Debug("ask a server about a node", "server", p.Name, "node", node, "error", err)
				return
			}
			reports[i] = r
		})
	}
	wg.Wait()
	return combine(reports)
}

// combine is Ask's verdict over the reports; nil is a server that did not tell.
func combine(reports []*report) Opinion {
	o := Opinion{Servers: len(reports), Silence: -1}
	for _, r := range reports {
		if r == nil {
			continue
		}
		o.Asked++
		if r.Answers {
			o.Answering++
		}
		heard := time.Duration(r.HeardMillis) * time.Millisecond
		if r.HeardMillis >= 0 && (o.Silence < 0 || heard < o.Silence) {
			o.Silence = heard
		}
	}
	return o
}

func (t *Tracker) askPeer(ctx context.Context, p Peer, node string, addr netip.AddrPort) (*report, error) {
	ctx, cancel := context.WithTimeout(ctx, ReachTimeout+tellTimeout)
	defer cancel()
	url := fmt.Sprintf("%s%s%s/reach?address=%s", p.URL, Path, node, addr)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := t.cfg.Client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	var r report
	return &r, json.NewDecoder(io.LimitReader(resp.Body, 1<<10)).Decode(&r)
}
