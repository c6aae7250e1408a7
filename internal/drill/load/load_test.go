package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"barque.dev/internal/drill/history"
	"barque.dev/internal/testkit"
)

func TestOutcome(t *testing.T) {
	for name, c := range map[string]struct {
		got  answer
		want history.Outcome
	}{
		"made":              {answer{code: 201, sent: true}, history.OK},
		"there already":     {answer{code: 409, sent: true, body: []byte(`{"reason":"AlreadyExists"}`)}, history.Exists},
		"another revision":  {answer{code: 409, sent: true, body: []byte(`{"reason":"Conflict"}`)}, history.Conflict},
		"not there":         {answer{code: 404, sent: true}, history.Absent},
		"too many requests": {answer{code: 429, sent: true}, history.Refused},
		"no quorum":         {answer{code: 503, sent: true}, history.Unknown},
		"timeout":           {answer{code: 504, sent: true}, history.Unknown},
		"no connection":     {answer{err: errors.New("refused")}, history.Refused},
		"no answer":         {answer{sent: true, err: errors.New("EOF")}, history.Unknown},
	} {
		if got := c.got.outcome(); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestEvent(t *testing.T) {
	ours := `{"metadata":{"name":"x","resourceVersion":"7"},"data":{"value":"v"}}`
	theirs := `{"metadata":{"name":"kube-root-ca.crt","resourceVersion":"8"},"data":{"ca.crt":"v"}}`
	for name, c := range map[string]struct {
		kind, data string
		want       history.Event
		says       string
	}{
		"added":     {"ADDED", ours, history.Event{Type: history.Added, Key: "x", Value: "v", Revision: 7}, ""},
		"modified":  {"MODIFIED", ours, history.Event{Type: history.Modified, Key: "x", Value: "v", Revision: 7}, ""},
		"deleted":   {"DELETED", ours, history.Event{Type: history.Deleted, Key: "x", Value: "v", Revision: 7}, ""},
		"bookmark":  {"BOOKMARK", `{"metadata":{"resourceVersion":"9"}}`, history.Event{Type: history.Bookmark, Revision: 9}, ""},
		"theirs":    {"ADDED", theirs, history.Event{Type: history.Bookmark, Revision: 8}, ""},
		"gone":      {"ERROR", `{"code":410}`, history.Event{}, errGone.Error()},
		"failed":    {"ERROR", `{"code":500,"message":"it broke"}`, history.Event{}, "it broke"},
		"new type":  {"MOVED", ours, history.Event{}, "MOVED"},
		"no number": {"ADDED", `{"metadata":{"resourceVersion":"x"}}`, history.Event{}, "resourceVersion"},
	} {
		got, err := event(c.kind, []byte(c.data))
		if c.says != "" {
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s: %v, want an error that says %q", name, err, c.says)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
}

// TestObjects: clients meet on few objects, whose number of operations and of unknown outcomes is bounded, and
// every value is written once.
func TestObjects(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	objects := &Objects{}
	ops, unknown, values, kinds := map[string]int{}, map[string]int{}, map[string]bool{}, map[history.Kind]int{}
	for i := range 5000 {
		op := objects.next(random, fmt.Sprint("c", i%3))
		ops[op.Key]++
		kinds[op.Kind]++
		if op.Value != "" {
			if values[op.Value] {
				t.Fatalf("%s is written twice", op.Value)
			}
			values[op.Value] = true
		}
		if op.Kind == history.Update && op.If == 0 {
			t.Fatalf("%+v is not conditional", op)
		}
		op.Outcome = history.OK
		if op.Revision = int64(i + 1); op.Kind == history.Delete {
			op.Revision = 0
		}
		if i%50 == 0 && op.Kind != history.Get {
			op.Outcome = history.Unknown
			unknown[op.Key]++
		}
		objects.learn(&op)
	}
	for key, n := range ops {
		if n > maxOps || unknown[key] > maxUnknown+1 {
			t.Errorf("%s had %d operations, %d without an answer", key, n, unknown[key])
		}
	}
	for _, kind := range []history.Kind{history.Create, history.Update, history.Delete, history.Get} {
		if kinds[kind] < 100 {
			t.Errorf("%d of %s in 5000", kinds[kind], kind)
		}
	}
}

// server is an API server with a few ConfigMaps' worth of behaviour.
type server struct {
	mu      sync.Mutex
	lists   int
	watches []string // the revisions that were asked for
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.URL.Query().Get("watch") == "" {
		s.lists++
		_, _ = fmt.Fprintf(w, `{"metadata":{"resourceVersion":"%d"},"items":[
			{"metadata":{"name":"x","resourceVersion":"5"},"data":{"value":"a"}},{"metadata":{"name":"kube-root-ca.crt","resourceVersion":"3"}}]}`, 10*s.lists)
		return
	}
	s.watches = append(s.watches, r.URL.Query().Get("resourceVersion"))
	switch len(s.watches) {
	case 1: // two events, and the connection ends
		for i := range 2 {
			_, _ = fmt.Fprintf(w, `{"type":"MODIFIED","object":{"metadata":{"name":"x","resourceVersion":"%d"},"data":{"value":"v%d"}}}`+"\n", 11+i, i)
		}
	case 2:
		http.Error(w, "not now", http.StatusServiceUnavailable)
	case 3:
		_, _ = fmt.Fprintln(w, `{"type":"ERROR","object":{"code":410}}`)
	default:
		_, _ = fmt.Fprintln(w, `{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"25"}}}`)
	}
}

func connect(t *testing.T, h http.Handler, answered func(string, bool)) *API {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	a := Connect(Endpoint{Name: "vip", URL: s.URL, TLS: s.Client().Transport.(*http.Transport).TLSClientConfig,
		Answered: answered, Servers: map[string]string{"127.0.0.1": "server-2"}}, "ns")
	t.Cleanup(a.Close)
	return a
}

// TestWatch: a watch goes on where it ended, and begins anew from a list when that is too long ago.
func TestWatch(t *testing.T) {
	s := &server{}
	var mu sync.Mutex
	answered := map[string]int{}
	a := connect(t, s, func(by string, failed bool) {
		mu.Lock()
		defer mu.Unlock()
		answered[fmt.Sprint(by, failed)]++
	})
	rec := history.NewRecorder(1000)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.Watch(ctx, rec, "w") }()
	testkit.Eventually(t, 10*time.Second, "the watcher has seen revision 25", testkit.Holds(func() bool { return rec.SeenByAll() == 25 }))
	cancel()
	<-done
	if got := strings.Join(s.watches[:4], " "); got != "10 12 12 20" || s.lists != 2 {
		t.Errorf("watched from %s, listed %d times", got, s.lists)
	}
	w := rec.History().Watches[0]
	text, _ := json.Marshal(w.Sessions[:3])
	want := `[{"from":10,"list":{`
	if !strings.HasPrefix(string(text), want) || w.Sessions[1].From != 10 || len(w.Sessions[1].Events) != 2 || w.Sessions[0].List.Objects[0].Value != "a" {
		t.Errorf("sessions %s", text)
	}
	mu.Lock()
	defer mu.Unlock()
	if answered["server-2false"] < 5 || answered["server-2true"] != 1 {
		t.Errorf("answered: %v", answered)
	}
}

// TestDo: an operation carries what came back, and a server that can't be reached did nothing.
func TestDo(t *testing.T) {
	var got []string
	a := connect(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var sent configMap
		_ = json.NewDecoder(r.Body).Decode(&sent)
		got = append(got, fmt.Sprintf("%s %s %s %s", r.Method, r.URL.Path, sent.Metadata.ResourceVersion, sent.Data[valueKey]))
		_, _ = fmt.Fprintln(w, `{"metadata":{"name":"x","resourceVersion":"7"},"data":{"value":"theirs"}}`)
	}), func(string, bool) {})
	rec := history.NewRecorder(10)
	for _, c := range []struct{ op, want history.Op }{
		{history.Op{Kind: history.Create, Key: "x", Value: "a"}, history.Op{Value: "a", Revision: 7}},
		{history.Op{Kind: history.Update, Key: "x", Value: "b", If: 6}, history.Op{Value: "b", Revision: 7}},
		{history.Op{Kind: history.Get, Key: "x"}, history.Op{Value: "theirs", Revision: 7}},
		{history.Op{Kind: history.Delete, Key: "x", If: 7}, history.Op{}},
	} {
		a.Do(t.Context(), rec, &c.op)
		if c.op.Outcome != history.OK || c.op.Value != c.want.Value || c.op.Revision != c.want.Revision || c.op.Return <= c.op.Call || c.op.Via != "vip" {
			t.Errorf("%+v, want %+v", c.op, c.want)
		}
	}
	want := "POST /api/v1/namespaces/ns/configmaps  a, PUT /api/v1/namespaces/ns/configmaps/x 6 b, GET /api/v1/namespaces/ns/configmaps/x  , DELETE /api/v1/namespaces/ns/configmaps/x  "
	if text := strings.Join(got, ", "); text != want {
		t.Errorf("asked %q, want %q", text, want)
	}
	gone := httptest.NewServer(nil)
	gone.Close()
	nobody := Connect(Endpoint{Name: "s", URL: strings.Replace(gone.URL, "http:", "https:", 1), TLS: a.endpoint.TLS, Answered: func(string, bool) {}}, "ns")
	op := history.Op{Kind: history.Create, Key: "x", Value: "a"}
	nobody.Do(t.Context(), rec, &op)
	if op.Outcome != history.Refused || op.Detail == "" {
		t.Errorf("nobody answers: %+v", op)
	}
}
