package membership_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/store/etcd"
)

// call asks a control, and returns the code and the answer.
func call(c *membership.Control, method, path, body string) (int, string) {
	w := httptest.NewRecorder()
	c.Handlers()[path].ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(body)))
	return w.Code, w.Body.String()
}

func TestControlLists(t *testing.T) {
	f := three()
	f.alive = map[uint64]bool{1: true, 2: true}
	f.members = append(f.members, etcd.MemberInfo{ID: 4, PeerURLs: []string{"http://d"}, Learner: true})
	c := membership.NewControl(membership.ControlConfig{Membership: membership.New(membership.Config{Member: f}), Bounds: membership.Bounds{Remove: time.Hour, Replace: time.Minute}})
	code, body := call(c, http.MethodGet, membership.PathServers, "")
	var list membership.List
	if err := json.Unmarshal([]byte(body), &list); err != nil || code != http.StatusOK {
		t.Fatal(code, err)
	}
	want := membership.List{Grace: time.Hour, Replace: time.Minute, Servers: []membership.Server{
		{ID: "4", Peer: "http://d", Learner: true}, {Name: "a", ID: "1", Peer: "http://a", Leader: true, Answers: true},
		{Name: "b", ID: "2", Peer: "http://b", Answers: true}, {Name: "c", ID: "3", Peer: "http://c"},
	}}
	if !slices.Equal(list.Servers, want.Servers) || list.Grace != want.Grace || list.Replace != want.Replace || list.Spare != 0 {
		t.Errorf("%+v", list)
	}
	if code, _ := call(c, http.MethodDelete, membership.PathServers, ""); code != http.StatusMethodNotAllowed {
		t.Errorf("DELETE: %d", code)
	}
}

func TestControlRemoves(t *testing.T) {
	errBusy := errors.New("another change is under way")
	for name, tt := range map[string]struct {
		body   string
		alive  []uint64
		frozen uint64
		banErr error
		fails  []error // the next changes
		lost   string  // who may come back
		code   int
		says   string
		done   string // what was done, in order
	}{
		"a dead one":               {body: `{"name":"c"}`, alive: []uint64{1, 2}, code: 200, says: "look after it", done: "ban c, remove 3, tidy c"},
		"a living one":             {body: `{"name":"c"}`, alive: []uint64{1, 2, 3}, code: 409, says: "run `barque leave` on it"},
		"a frozen one":             {body: `{"name":"c"}`, alive: []uint64{1, 2, 3}, frozen: 3, code: 200, done: "ban c, remove 3, tidy c"},
		"a living one, by force":   {body: `{"name":"c","force":true}`, alive: []uint64{1, 2, 3}, code: 200, done: "ban c, remove 3, tidy c"},
		"when the others are few":  {body: `{"name":"c"}`, alive: []uint64{1}, code: 409, says: "start the servers that are down"},
		"when another is frozen":   {body: `{"name":"c"}`, alive: []uint64{1, 2}, frozen: 2, code: 409, says: "start the servers that are down"},
		"nobody":                   {body: `{"name":"x"}`, alive: []uint64{1, 2, 3}, code: 404, says: "there are a, b, c"},
		"one that was lost before": {body: `{"name":"x"}`, alive: []uint64{1, 2, 3}, lost: "x", code: 200, says: "look after it", done: "ban x, tidy x"},
		"one that was lost, when that can't be noted": {body: `{"name":"x"}`, alive: []uint64{1, 2, 3}, lost: "x", banErr: errors.New("no quorum"), code: 503, says: "no quorum"},
		"no name":                  {body: `{}`, alive: []uint64{1, 2, 3}, code: 400, says: "name the server"},
		"nonsense":                 {body: `{`, alive: []uint64{1, 2, 3}, code: 400, says: "name the server"},
		"when that can't be noted": {body: `{"name":"c"}`, alive: []uint64{1, 2}, banErr: errors.New("no quorum"), code: 503, says: "no quorum"},
		"when the quorum goes meanwhile": {
			body: `{"name":"c"}`, alive: []uint64{1, 2}, fails: []error{fmt.Errorf("no: %w", etcd.ErrQuorum)}, code: 409, says: "start the servers that are down",
			done: "ban c, remove 3, allow c",
		},
		"at the second attempt": {body: `{"name":"c"}`, alive: []uint64{1, 2}, fails: []error{errBusy}, code: 200, done: "ban c, remove 3, remove 3, tidy c"},
	} {
		t.Run(name, func(t *testing.T) {
			f := three()
			f.alive, f.frozen, f.failures = map[uint64]bool{}, map[uint64]bool{tt.frozen: true}, tt.fails
			for _, id := range tt.alive {
				f.alive[id] = true
			}
			var done []string
			c := membership.NewControl(membership.ControlConfig{
				Membership: membership.New(membership.Config{Member: f}),
				Banned: func(_ context.Context, name string) error {
					if tt.banErr == nil {
						done = append(done, "ban "+name)
					}
					return tt.banErr
				},
				Allowed: func(_ context.Context, name string) error {
					done = append(append(done, f.did()...), "allow "+name)
					return nil
				},
				Lost: func(_ context.Context, name string) (bool, error) { return name == tt.lost, nil },
				Removed: func(_ context.Context, name string) []string {
					done = append(append(done, f.did()...), "tidy "+name)
					return []string{"look after it"}
				},
			})
			code, body := call(c, http.MethodPost, membership.PathRemove, tt.body)
			if code != tt.code || !strings.Contains(body, tt.says) || strings.Join(done, ", ") != tt.done {
				t.Errorf("%d %q after %v, want %d %q after %s", code, body, done, tt.code, tt.says, tt.done)
			}
			if tt.done == "" && len(f.did()) > 0 {
				t.Errorf("it did %v", f.did())
			}
		})
	}
}

// Whoever asks for a removal may go before it fails: the server's right to come back is given back all the same.
func TestControlGivesBackTheRightToReturn(t *testing.T) {
	f := three()
	f.alive = map[uint64]bool{1: true, 2: true}
	for range 10000 {
		f.failures = append(f.failures, errors.New("another change is under way"))
	}
	allowed := ""
	ctx, cancel := context.WithCancel(t.Context())
	c := membership.NewControl(membership.ControlConfig{
		Membership: membership.New(membership.Config{Member: f}),
		Banned:     func(context.Context, string) error { cancel(); return nil },
		Allowed:    func(ctx context.Context, name string) error { allowed = name; return ctx.Err() },
	})
	w := httptest.NewRecorder()
	c.Handlers()[membership.PathRemove].ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodPost, membership.PathRemove, strings.NewReader(`{"name":"c"}`)))
	if w.Code != http.StatusServiceUnavailable || allowed != "c" || strings.Contains(w.Body.String(), "could not be noted") {
		t.Errorf("%d %s, allowed %q", w.Code, w.Body, allowed)
	}
}

// A server that asks over HTTP learns whom the other reaches; whoever is no server does not.
func TestAskOver(t *testing.T) {
	f := three()
	may := true
	c := membership.NewControl(membership.ControlConfig{
		Membership: membership.New(membership.Config{Member: f}), MayAsk: func(*http.Request) bool { return may },
	})
	server := httptest.NewServer(c.Reached())
	t.Cleanup(server.Close)
	got, err := membership.AskOver(t.Context(), server.Client(), server.URL)
	if err != nil || !slices.Equal(got, []uint64{1, 2, 3}) {
		t.Errorf("%v, %v", got, err)
	}
	may = false
	if got, err := membership.AskOver(t.Context(), server.Client(), server.URL); err == nil {
		t.Errorf("a stranger learns %v", got)
	}
	server.CloseClientConnections()
}

// The leader removes a server after the grace, one at a time, and only while others say so too. Its clock is synctest's.
func TestRemoveDead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const grace = time.Hour
		f := three()
		f.members = append(f.members, etcd.MemberInfo{ID: 4, Name: "d", PeerURLs: []string{"http://d"}}, etcd.MemberInfo{ID: 5, Name: "e", PeerURLs: []string{"http://e"}})
		f.leader = 2
		f.alive = map[uint64]bool{1: true, 2: true, 3: true}
		deaf := false
		ask := func(_ context.Context, m etcd.MemberInfo) ([]uint64, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			if deaf || !f.alive[m.ID] {
				return nil, fmt.Errorf("%s does not answer", m.Name)
			}
			return []uint64{m.ID}, nil
		}
		var noted, tidied []string
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- membership.New(membership.Config{Member: f}).RemoveDead(ctx, membership.WatchConfig{
				Bounds: membership.Bounds{Remove: grace}, Ask: ask, Removed: func(_ context.Context, name string) { tidied = append(tidied, name) },
				Removing: func(_ context.Context, name string) error {
					noted = append(noted, name)
					if len(noted) == 1 {
						return errors.New("it can't be noted")
					}
					return nil
				},
			})
		}()
		after := func(d time.Duration, what string, want ...string) {
			t.Helper()
			<-time.After(d)
			synctest.Wait()
			if got := f.did(); !slices.Equal(got, want) {
				t.Errorf("%s: it did %v, want %v", what, got, want)
			}
		}
		set := func(change func()) { f.mu.Lock(); change(); f.mu.Unlock() }
		after(3*grace, "following")
		set(func() { f.leader = 1 })
		after(grace-time.Minute, "before the grace has passed")
		set(func() { f.alive = map[uint64]bool{1: true, 2: true, 3: true, 4: true, 5: true} })
		after(time.Minute, "when they are back")
		set(func() { f.alive = map[uint64]bool{1: true, 2: true, 3: true} })
		after(grace-time.Minute, "the grace began anew")
		set(func() { deaf = true })
		after(grace, "when nobody else says so")
		set(func() { deaf = false })
		after(2*time.Minute, "when it can't be noted")
		after(grace, "one", "remove 4")
		after(grace-5*time.Minute, "the other one has its time", "remove 4")
		after(10*time.Minute, "then the other one", "remove 4", "remove 5")
		after(3*grace, "and those that live stay", "remove 4", "remove 5")
		cancel()
		if err := <-done; err != nil || !slices.Equal(tidied, []string{"d", "e"}) || !slices.Equal(noted, []string{"d", "d", "e"}) {
			t.Errorf("%v, noted %v, tidied up after %v", err, noted, tidied)
		}
	})
}
