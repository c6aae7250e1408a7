package expiry

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"barque.dev/internal/pki"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

func TestJudge(t *testing.T) {
	life := func(d time.Duration) Certificate {
		return Certificate{NotBefore: start, NotAfter: start.Add(d), Renewed: true}
	}
	kept := life(365 * day)
	kept.Renewed = false
	for name, tt := range map[string]struct {
		c      Certificate
		at     time.Duration
		within time.Duration
		want   string // part of it; "" for nothing
	}{
		"new":                      {life(30 * day), 0, 0, ""},
		"due":                      {life(30 * day), 24 * day, 0, ""},
		"overdue":                  {life(30 * day), 26 * day, 0, "not renewed in time"},
		"a short one, new":         {life(time.Minute), time.Second, 0, ""},
		"a short one, overdue":     {life(time.Minute), 55 * time.Second, 0, "not renewed in time"},
		"expired":                  {life(30 * day), 30 * day, 0, "expired"},
		"from the future":          {life(30 * day), -time.Hour, 0, "clocks"},
		"a year's, 31 days left":   {kept, 334 * day, 0, ""},
		"a year's, 29 days left":   {kept, 336 * day, 0, "expires soon"},
		"within a bound":           {kept, 300 * day, 66 * day, "expires soon"},
		"not within a bound":       {kept, 300 * day, 64 * day, ""},
		"within a bound, renewed":  {life(30 * day), 0, 31 * day, "expires soon"},
		"within a bound, overdue":  {life(30 * day), 26 * day, 31 * day, "not renewed"},
		"what can't be read":       {Certificate{Problem: "it holds no certificate"}, 0, 0, "holds no certificate"},
		"a bound hides no problem": {life(30 * day), 31 * day, time.Second, "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			r := Report{Certificates: []Certificate{tt.c}}
			count := r.Judge(start.Add(tt.at), tt.within)
			got := r.Certificates[0].Attention
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) || (count == 1) != (tt.want != "") {
				t.Errorf("%d: %q, want %q", count, got, tt.want)
			}
		})
	}
}

func TestCombine(t *testing.T) {
	authority := func(machine, fingerprint string) Certificate {
		return Certificate{Machine: machine, Name: "ca", Kind: Authority, Fingerprint: fingerprint}
	}
	leaf := func(machine, name string, age time.Duration) Certificate {
		return Certificate{Machine: machine, Name: name, Kind: Leaf, NotBefore: start.Add(-age)}
	}
	names := func(r Report) (out []string) {
		for _, c := range r.Certificates {
			out = append(out, c.Machine+"/"+c.Name)
		}
		return out
	}
	same := Combine(
		Report{Certificates: []Certificate{leaf("s2", "apiserver", 0), authority("s2", "a"), leaf("agent", "node", time.Hour)}},
		Report{Certificates: []Certificate{leaf("s1", "apiserver", 0), authority("s1", "a"), leaf("agent", "node", time.Minute)}, Silent: []string{"s4"}},
		Report{Silent: []string{"s3", "s4"}},
	)
	want := []string{"every server/ca", "agent/node", "s1/apiserver", "s2/apiserver"}
	if got := names(same); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if !slices.Equal(same.Silent, []string{"s3", "s4"}) {
		t.Errorf("silent: %v", same.Silent)
	}
	if got := same.Certificates[1].NotBefore; !got.Equal(start.Add(-time.Minute)) {
		t.Errorf("of what two servers have seen, the one of %v was chosen", got)
	}
	// A server with another authority than the others is shown as that.
	apart := Combine(Report{Certificates: []Certificate{authority("s1", "a")}}, Report{Certificates: []Certificate{authority("s2", "b")}},
		Report{Certificates: []Certificate{authority("s3", "a")}})
	if got := names(apart); !slices.Equal(got, []string{"s1/ca", "s2/ca", "s3/ca"}) {
		t.Errorf("got %v", got)
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	a, err := pki.New(start)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := a.Cluster.Issue(pki.Node("n1"), start)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "node.crt")
	if err := pki.WriteFile(path, pair.Certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	c := FromFile("n1", path, Leaf)
	if c.Name != "node" || !c.Renewed || c.Problem != "" || !c.NotAfter.Equal(start.Add(pki.Validity)) || !strings.Contains(c.Subject, "system:node:n1") {
		t.Errorf("%+v", c)
	}
	if err := os.Truncate(path, 10); err != nil {
		t.Fatal(err)
	}
	if c := FromFile("n1", path, Leaf); !strings.Contains(c.Problem, "holds no certificate") {
		t.Errorf("%+v", c)
	}

	config := filepath.Join(dir, "kubeconfig")
	if err := a.WriteAdminKubeconfig(config, "x", "https://192.0.2.1:6443", time.Hour, start); err != nil {
		t.Fatal(err)
	}
	k, ok := FromKubeconfig("here", "mine", config)
	if !ok || k.Kind != Kubeconfig || k.Name != "mine" || k.Renewed || !k.NotAfter.Equal(start.Add(time.Hour)) {
		t.Errorf("%+v, %v", k, ok)
	}
	token := "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n" +
		"clusters: [{name: c, cluster: {server: \"https://192.0.2.1\"}}]\nusers: [{name: u, user: {token: t}}]\n"
	if err := os.WriteFile(config, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	if k, ok := FromKubeconfig("here", "mine", config); ok {
		t.Errorf("a token has no certificate: %+v", k)
	}
}

func TestCollect(t *testing.T) {
	own := func(name string) func(context.Context) Report {
		return func(context.Context) Report {
			return Report{Certificates: []Certificate{{Machine: name, Name: "apiserver", Kind: Leaf, NotAfter: start}}}
		}
	}
	other := NewControl(Config{Own: own("s2"), Log: slog.New(slog.DiscardHandler),
		MayAsk: func(r *http.Request) bool { return r.TLS != nil }})
	mux := http.NewServeMux()
	mux.Handle(PathOwn, other.Own())
	peer := httptest.NewTLSServer(mux)
	defer peer.Close()
	plain := httptest.NewServer(mux)
	defer plain.Close()

	c := NewControl(Config{
		Own: own("s1"), Client: peer.Client(), Log: slog.New(slog.DiscardHandler),
		Peers: func() map[string]string {
			return map[string]string{"s2": peer.URL, "s3": "https://127.0.0.1:1", "s4": plain.URL}
		},
		Nodes: func(context.Context) Report { return Report{Silent: []string{"n1"}} },
	})
	w := httptest.NewRecorder()
	c.Handlers()[Path].ServeHTTP(w, httptest.NewRequest(http.MethodGet, Path, nil))
	var r Report
	if err := json.NewDecoder(w.Body).Decode(&r); err != nil {
		t.Fatal(err)
	}
	if len(r.Certificates) != 2 || r.Certificates[0].Machine != "s1" || r.Certificates[1].Machine != "s2" {
		t.Errorf("%+v", r.Certificates)
	}
	// s4 took us for somebody who is no server.
	if !slices.Equal(r.Silent, []string{"n1", "s3", "s4"}) {
		t.Errorf("silent: %v", r.Silent)
	}
	w = httptest.NewRecorder()
	c.Handlers()[Path].ServeHTTP(w, httptest.NewRequest(http.MethodPost, Path, nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
}
