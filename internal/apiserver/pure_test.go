package apiserver

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/endpoints/request"
	"pgregory.net/rapid"
)

func TestWantsPretty(t *testing.T) {
	for _, test := range []struct {
		query, agent string
		want         bool
	}{
		{"", "kubectl/v1.37", false},
		{"", "curl/7.88", true},
		{"", "Mozilla/5.0 (X11)", true},
		{"pretty=false", "curl/7.88", false},
		{"pretty=1", "kubectl/v1.37", true},
		{"pretty=nonsense", "curl/7.88", false},
		{"pretty=", "Wget/1.2", true},
	} {
		req := httptest.NewRequest("GET", "/?"+test.query, nil)
		req.Header.Set("User-Agent", test.agent)
		if got := wantsPretty(req); got != test.want {
			t.Errorf("%q %q: %v", test.query, test.agent, got)
		}
	}
}

func TestAcceptsGzip(t *testing.T) {
	for header, want := range map[string]bool{"": false, "gzip": true, "deflate, gzip;q=0.5": true, "gzip;q=0": false, "br": false} {
		req := httptest.NewRequest("GET", "/", nil)
		req.Header.Set("Accept-Encoding", header)
		if got := acceptsGzip(req); got != want {
			t.Errorf("%q: %v", header, got)
		}
	}
}

func TestLongRunning(t *testing.T) {
	resource := func(verb, subresource string) *request.RequestInfo {
		return &request.RequestInfo{IsResourceRequest: true, Verb: verb, Subresource: subresource}
	}
	for _, test := range []struct {
		info   *request.RequestInfo
		method string
		want   bool
	}{
		{resource("watch", ""), "GET", true},
		{resource("list", ""), "GET", false},
		{resource("create", "exec"), "POST", true},
		{resource("get", "log"), "GET", true},
		{resource("update", "status"), "PUT", false},
		{&request.RequestInfo{Path: "/debug/pprof/profile"}, "GET", true},
		{&request.RequestInfo{Path: LongPaths + "snapshots/save"}, "POST", true},
		{&request.RequestInfo{Path: "/metrics"}, "GET", false},
	} {
		if got := longRunning(httptest.NewRequest(test.method, "/", nil), test.info); got != test.want {
			t.Errorf("%+v: %v", test.info, got)
		}
	}
}

// However many come and go, no more than the limit are in, and all places come back.
func TestInFlightLimit(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := &inFlight{}
		f.reads.max, f.writes.max = rapid.Int64Range(0, 3).Draw(t, "reads"), rapid.Int64Range(0, 3).Draw(t, "writes")
		in := map[string]int64{}
		for range rapid.IntRange(0, 40).Draw(t, "steps") {
			verb, kind := "create", &f.writes
			if rapid.Bool().Draw(t, "read") {
				verb, kind = "list", &f.reads
			}
			if f.kind(verb) != kind {
				t.Fatalf("%s is counted with the others", verb)
			}
			if in[verb] > 0 && rapid.Bool().Draw(t, "leave") {
				kind.leave()
				in[verb]--
				continue
			}
			ok := kind.enter(false)
			if want := in[verb] < kind.max; ok != want {
				t.Fatalf("%s with %d of %d in: admitted %v", verb, in[verb], kind.max, ok)
			}
			if ok {
				in[verb]++
			}
		}
		if !f.writes.enter(true) {
			t.Fatal("a privileged request is turned away")
		}
		f.writes.leave()
		if f.reads.count.Load() != in["list"] || f.writes.count.Load() != in["create"] {
			t.Fatal("places are lost")
		}
	})
}

func TestWarningsAreBounded(t *testing.T) {
	h := http.Header{}
	w := &warnings{header: h}
	for i := range 100 {
		w.AddWarning("", strings.Repeat("x", 300)+string(rune('a'+i%26)))
	}
	total := 0
	for _, v := range h["Warning"] {
		total += len(v)
	}
	if total > maxWarnings+32*len(h["Warning"]) || len(h["Warning"]) == 0 {
		t.Errorf("%d bytes in %d warnings", total, len(h["Warning"]))
	}
	before := len(h["Warning"])
	w.AddWarning("", strings.Repeat("x", 300)+"a")
	if len(h["Warning"]) != before {
		t.Error("a warning is repeated")
	}
}

func TestProxyPath(t *testing.T) {
	for path, want := range map[string]string{
		"/api/v1/nodes/n/proxy":       "",
		"/api/v1/nodes/n/proxy/":      "/",
		"/api/v1/nodes/n/proxy/a/b":   "/a/b",
		"/api/v1/nodes/n/proxy/a/b/":  "/a/b/",
		"/api/v1/nodes/n/proxy/proxy": "/proxy",
	} {
		parts := strings.Split(strings.Trim(strings.TrimPrefix(path, "/api/v1/"), "/"), "/")
		o := operation{call: &call{info: &request.RequestInfo{Path: path, Parts: parts}}}
		if got := proxyPath(o); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

func TestSummary(t *testing.T) {
	for body, want := range map[string]string{
		"":                            "<empty>",
		"{}":                          "{}",
		"{" + strings.Repeat("a", 30): "{" + strings.Repeat("a", 29) + " ...",
		"\x00\x01":                    "0001",
		strings.Repeat("a", 31):       strings.Repeat("61", 30) + " ...",
	} {
		if got := summary([]byte(body)); got != want {
			t.Errorf("%q: %q, want %q", body, got, want)
		}
	}
}
