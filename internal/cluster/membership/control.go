package membership

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"barque.dev/internal/store/etcd"
)

// Paths of the control. The first two are behind the API's authentication and authorization: GET on the first answers with
// a List, POST on the second takes a Removal and answers with a Removed. PathReached is for servers alone, and answers with
// the IDs that Reached lists.
const (
	PathServers = "/barque/v1/servers"
	PathRemove  = PathServers + "/remove"
	PathReached = PathServers + "/reached"
)

// A List is the cluster's servers.
type List struct {
	Servers []Server `json:"servers"`
	// Spare is how many more of the servers that answer may be lost; negative without a quorum.
	Spare int `json:"spare"`
	// Grace is after which a silent server is removed by itself; 0 for never. Replace is after which a silent voter is, when
	// another server stands by.
	Grace   time.Duration `json:"grace"`
	Replace time.Duration `json:"replace,omitempty"`
}

// A Server is one of them.
type Server struct {
	Name    string `json:"name"` // empty until it has started
	ID      string `json:"id"`
	Peer    string `json:"peer"`
	Leader  bool   `json:"leader"`
	Learner bool   `json:"learner"`
	// Witness is where a witness answers; empty for a server.
	Witness string `json:"witness,omitempty"`
	// Answers tells whether its process answers the server that was asked.
	Answers bool `json:"answers"`
}

// A Removal asks for one to be taken out of the cluster.
type Removal struct {
	Name string `json:"name"`
	// Force takes out one that answers too.
	Force bool `json:"force"`
}

// Removed is what came of it.
type Removed struct {
	// Notes are what is left to do, a sentence each.
	Notes []string `json:"notes,omitempty"`
}

// ErrAnswers: the server that is to be removed is alive.
var ErrAnswers = errors.New("it answers")

// ControlConfig is what a Control stands on.
type ControlConfig struct {
	Membership *Membership
	// Bounds are those of WatchConfig; the zero value if silent servers are not removed.
	Bounds Bounds
	// Banned is called before a removal: the server must not come back by itself. Allowed takes that back when the server
	// was not removed.
	Banned  func(ctx context.Context, name string) error
	Allowed func(ctx context.Context, name string) error
	// Lost tells whether a name that no member has is that of a server which may come back: it was removed by itself, or
	// nobody knows what became of the attempt to remove it.
	Lost func(ctx context.Context, name string) (bool, error)
	// Removed is called after it; it tidies up, and returns what is left to do.
	Removed func(ctx context.Context, name string) []string
	// MayAsk tells whether a request comes from a server.
	MayAsk func(r *http.Request) bool
	Log    *slog.Logger
}

// A Control is what administrators see and do of membership.
type Control struct{ cfg ControlConfig }

// NewControl makes a control.
func NewControl(cfg ControlConfig) *Control {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Control{cfg}
}

// Handlers serve the paths for administrators.
func (c *Control) Handlers() map[string]http.Handler {
	return map[string]http.Handler{PathServers: http.HandlerFunc(c.list), PathRemove: http.HandlerFunc(c.remove)}
}

// Reached serves PathReached.
func (c *Control) Reached() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !c.cfg.MayAsk(r) {
			http.Error(w, "only servers may ask", http.StatusForbidden)
			return
		}
		c.answer(w, c.cfg.Membership.Reached(r.Context()))
	})
}

func (c *Control) list(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "only GET works here", http.StatusMethodNotAllowed)
		return
	}
	m := c.cfg.Membership.member
	alive, members := m.Responding(r.Context()), m.Members()
	list := List{Spare: Spare(members, alive), Grace: c.cfg.Bounds.Remove, Replace: c.cfg.Bounds.Replace}
	for _, mb := range members {
		list.Servers = append(list.Servers, Server{
			Name: mb.Name, ID: fmt.Sprintf("%x", mb.ID), Peer: strings.Join(mb.PeerURLs, ","), Leader: mb.ID == m.Leader(), Learner: mb.Learner, Witness: mb.Witness,
			Answers: alive[mb.ID],
		})
	}
	slices.SortFunc(list.Servers, func(a, b Server) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	c.answer(w, list)
}

// Spare is how many more of the voters that are alive the cluster can lose; negative without a quorum.
func Spare(members []etcd.MemberInfo, alive map[uint64]bool) int {
	voters, living := 0, 0
	for _, mb := range members {
		if mb.Learner {
			continue
		}
		voters++
		if alive[mb.ID] {
			living++
		}
	}
	return living - (voters/2 + 1)
}

// maxRemoval bounds a Removal in bytes.
const maxRemoval = 4 << 10

func (c *Control) remove(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "only POST works here", http.StatusMethodNotAllowed)
		return
	}
	var what Removal
	if err := json.NewDecoder(io.LimitReader(r.Body, maxRemoval)).Decode(&what); err != nil || what.Name == "" {
		http.Error(w, "name the server to remove", http.StatusBadRequest)
		return
	}
	notes, err := c.take(r.Context(), what)
	if err != nil {
		http.Error(w, c.advise(err), codeOf(err))
		return
	}
	c.answer(w, Removed{Notes: notes})
}

// take takes a server out of the cluster.
func (c *Control) take(ctx context.Context, what Removal) ([]string, error) {
	m := c.cfg.Membership
	id, ok := m.find(what.Name)
	if !ok {
		return c.shutOut(ctx, what.Name)
	}
	if !what.Force && m.member.Responding(ctx)[id] {
		return nil, fmt.Errorf("remove server %s: %w", what.Name, ErrAnswers)
	}
	if err := m.MayRemove(ctx, what.Name); err != nil {
		return nil, err
	}
	if err := c.cfg.Banned(ctx, what.Name); err != nil {
		return nil, fmt.Errorf("remove server %s: %w", what.Name, err)
	}
	err := m.Remove(ctx, what.Name)
	if _, still := m.find(what.Name); err != nil && still {
		return nil, c.takeBack(ctx, what.Name, err)
	}
	return c.cfg.Removed(ctx, what.Name), nil
}

// shutOut keeps a server away that is no member any more, but could become one again by its key.
func (c *Control) shutOut(ctx context.Context, name string) ([]string, error) {
	lost, err := c.cfg.Lost(ctx, name)
	switch {
	case err != nil:
		return nil, fmt.Errorf("remove server %s: %w", name, err)
	case !lost:
		return nil, fmt.Errorf("remove server %s: %w", name, ErrUnknown)
	}
	if err := c.cfg.Banned(ctx, name); err != nil {
		return nil, fmt.Errorf("remove server %s: %w", name, err)
	}
	return c.cfg.Removed(ctx, name), nil
}

// takeBackTimeout bounds what is done after whoever asked may have gone.
const takeBackTimeout = 5 * time.Second

// takeBack lets a server be a member on as before, since removing it failed for the reason.
func (c *Control) takeBack(ctx context.Context, name string, reason error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeBackTimeout)
	defer cancel()
	if err := c.cfg.Allowed(ctx, name); err != nil {
		return fmt.Errorf("%w; and it could not be noted that it stays, so that it would not come back by itself if its data were lost: remove it again (%w)", reason, err)
	}
	return reason
}

// advise is an error with what to do about it.
func (c *Control) advise(err error) string {
	switch {
	case errors.Is(err, ErrAnswers):
		return err.Error() + ": run `barque leave` on it, which drains it first, or remove it with --force if it can't be helped any more"
	case errors.Is(err, etcd.ErrQuorum):
		return err.Error() + "; " + QuorumAdvice
	case errors.Is(err, ErrUnknown):
		var names []string
		for _, mb := range c.cfg.Membership.List() {
			names = append(names, mb.Name)
		}
		return err.Error() + ": there are " + strings.Join(names, ", ")
	}
	return err.Error()
}

// QuorumAdvice says what to do about etcd.ErrQuorum.
const QuorumAdvice = "start the servers that are down, or add others, first"

func codeOf(err error) int {
	switch {
	case errors.Is(err, ErrUnknown):
		return http.StatusNotFound
	case errors.Is(err, ErrAnswers), errors.Is(err, etcd.ErrQuorum):
		return http.StatusConflict
	}
	return http.StatusServiceUnavailable
}

func (c *Control) answer(w http.ResponseWriter, what any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(what); err != nil {
		c.cfg.Log.Debug("the servers were not sent", "error", err)
	}
}

// AskOver has another server, whose API is at url, tell whom it reaches. The client shows a server's certificate.
func AskOver(ctx context.Context, client *http.Client, url string) ([]uint64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+PathReached, nil)
	if err != nil {
		return nil, fmt.Errorf("ask whom a server reaches: %w", err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask whom a server reaches: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask whom a server reaches: %s", resp.Status)
	}
	var ids []uint64
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxRemoval)).Decode(&ids); err != nil {
		return nil, fmt.Errorf("ask whom a server reaches: %w", err)
	}
	return ids, nil
}
