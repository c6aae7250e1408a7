package expiry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// Paths of the control. GET on Path, behind the API's authentication and authorization, answers with a Report of the whole
// cluster; on PathOwn, for servers alone, with what the one that is asked knows.
const (
	Path    = "/barque/v1/certificates"
	PathOwn = Path + "/own"
)

const (
	// tellTimeout bounds the question to one server.
	tellTimeout = 3 * time.Second
	// maxReport bounds what one may answer, in bytes: some 5,000 certificates.
	maxReport = 4 << 20
)

// Config is what a Control stands on.
type Config struct {
	// Own is what this server has, and has seen.
	Own func(ctx context.Context) Report
	// Peers are the other servers' URLs by name, and Client speaks to them as a server.
	Peers  func() map[string]string
	Client *http.Client
	// Nodes looks at what nodes show to those who call them.
	Nodes func(ctx context.Context) Report
	// MayAsk tells whether a request comes from a server.
	MayAsk func(r *http.Request) bool
	Log    *slog.Logger
}

// A Control is what administrators see of certificates.
type Control struct{ cfg Config }

// NewControl makes a control.
func NewControl(cfg Config) *Control { return &Control{cfg} }

// Handlers serve the path for administrators.
func (c *Control) Handlers() map[string]http.Handler {
	return map[string]http.Handler{Path: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "only GET works here", http.StatusMethodNotAllowed)
			return
		}
		c.answer(w, c.Collect(r.Context()))
	})}
}

// Own serves PathOwn.
func (c *Control) Own() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !c.cfg.MayAsk(r) {
			http.Error(w, "only servers may ask", http.StatusForbidden)
			return
		}
		c.answer(w, c.cfg.Own(r.Context()))
	})
}

func (c *Control) answer(w http.ResponseWriter, r Report) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(r); err != nil {
		c.cfg.Log.Debug("the certificates were not sent", "error", err)
	}
}

// Collect has all servers tell, and looks at the nodes.
func (c *Control) Collect(ctx context.Context) Report {
	var mu sync.Mutex
	var reports []Report
	add := func(r Report) {
		mu.Lock()
		defer mu.Unlock()
		reports = append(reports, r)
	}
	var wg sync.WaitGroup
	wg.Go(func() { add(c.cfg.Own(ctx)) })
	wg.Go(func() { add(c.cfg.Nodes(ctx)) })
	for name, url := range c.cfg.Peers() {
		wg.Go(func() {
			r, err := ask(ctx, c.cfg.Client, url)
			if err != nil {
				c.cfg.Log.Debug("a server does not tell of its certificates", "server", name, "error", err)
				r = Report{Silent: []string{name}}
			}
			add(r)
		})
	}
	wg.Wait()
	return Combine(reports...)
}

func ask(ctx context.Context, client *http.Client, url string) (r Report, err error) {
	ctx, cancel := context.WithTimeout(ctx, tellTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+PathOwn, nil)
	if err != nil {
		return r, fmt.Errorf("ask a server for its certificates: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return r, fmt.Errorf("ask a server for its certificates: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return r, errors.New("ask a server for its certificates: " + resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxReport)).Decode(&r); err != nil {
		return r, fmt.Errorf("ask a server for its certificates: %w", err)
	}
	return r, nil
}
