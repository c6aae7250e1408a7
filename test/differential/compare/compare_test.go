package compare

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"barque.dev/test/differential/stream"
)

var now = time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)

func answer(body string, headers ...string) Answer {
	h := http.Header{"Content-Type": {"application/json"}}
	for i := 0; i < len(headers); i += 2 {
		h.Add(headers[i], headers[i+1])
	}
	return Answer{Status: 200, Header: h, Body: []byte(body)}
}

// Two servers that did the same are alike, whatever they call it.
func TestAlike(t *testing.T) {
	object := `{"kind":"Service","metadata":{"name":"s","uid":"%s","resourceVersion":"%s","creationTimestamp":"%s"},"spec":{"clusterIP":"%s","ports":[{"nodePort":%d}]},"message":"at %s the ResourceVersion is %s"}`
	list := `{"metadata":{"resourceVersion":"%s","continue":"%s"},"items":[` + object + `]}`
	one := []any{"11111111-2222-3333-4444-555555555555", "17", "2026-05-04T03:02:00Z", "10.43.1.2", 30111, "127.0.0.1:1111", "17"}
	two := []any{"aaaaaaaa-2222-3333-4444-555555555555", "399", "2026-05-04T03:02:07Z", "10.43.200.9", 32000, "127.0.0.1:2222", "399"}
	stock, ours := NewNames("127.0.0.1:1111", now), NewNames("127.0.0.1:2222", now)
	for i, format := range []string{object, list, object} {
		var s, o []any
		if format == list {
			s, o = []any{"20", "abc"}, []any{"500", "xyz"}
		}
		r := stream.Request{ID: i, Method: "GET", Path: "/api/v1/services"}
		a := stock.Normalize(r, answer(fmt.Sprintf(format, append(s, one...)...), "Audit-Id", "x"))
		b := ours.Normalize(r, answer(fmt.Sprintf(format, append(o, two...)...), "Audit-Id", "y"))
		if d := Diff(a, b); len(d) != 0 {
			t.Errorf("request %d: %v", i, d)
		}
	}
}

// What differs is found, at its place.
func TestDifferent(t *testing.T) {
	for _, c := range []struct{ name, stock, ours, at string }{
		{"value", `{"a":{"b":1}}`, `{"a":{"b":2}}`, "body.a.b"},
		{"missing", `{"a":{"b":1}}`, `{"a":{}}`, "body.a.b"},
		{"more", `{}`, `{"a":null}`, "body.a"},
		{"named item", `{"items":[{"metadata":{"name":"x"}},{"metadata":{"name":"y"}}]}`, `{"items":[{"metadata":{"name":"y"}}]}`, "body.items[].x"},
		{"order", `{"items":[{"metadata":{"name":"x"}},{"metadata":{"name":"y"}}]}`, `{"items":[{"metadata":{"name":"y"}},{"metadata":{"name":"x"}}]}`, "body.items[order]"},
		{"place in a list", `{"l":[1,2]}`, `{"l":[1,3]}`, "body.l[1]"},
		{"another object", `{"metadata":{"name":"n","uid":"11111111-2222-3333-4444-555555555555"}}`, `{"metadata":{"name":"n","uid":"not one"}}`, "body.metadata.uid"},
		{"old time", `{"t":"2026-05-04T03:02:00Z"}`, `{"t":"1999-05-04T03:02:00Z"}`, "body.t"},
		{"precision", `{"t":"2026-05-04T03:02:00Z"}`, `{"t":"2026-05-04T03:02:00.123456Z"}`, "body.t"},
		{"indented", `{"a": 1}`, "{\n  \"a\": 1}", "indented"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := stream.Request{Method: "GET", Path: "/"}
			d := Diff(NewNames("127.0.0.1:1111", now).Normalize(r, answer(c.stock)), NewNames("127.0.0.1:2222", now).Normalize(r, answer(c.ours)))
			if len(d) != 1 || d[0].At != c.at {
				t.Errorf("%v, want one at %s", d, c.at)
			}
		})
	}
}

// An object that was replaced has another uid than the one that was created.
func TestReplacedObject(t *testing.T) {
	stock, ours := NewNames("127.0.0.1:1111", now), NewNames("127.0.0.1:2222", now)
	const body = `{"metadata":{"name":"n","uid":"%s1111111-2222-3333-4444-555555555555"}}`
	first, second := stream.Request{ID: 1}, stream.Request{ID: 2}
	if d := Diff(stock.Normalize(first, answer(fmt.Sprintf(body, "a"))), ours.Normalize(first, answer(fmt.Sprintf(body, "b")))); len(d) != 0 {
		t.Fatal(d)
	}
	if d := Diff(stock.Normalize(second, answer(fmt.Sprintf(body, "a"))), ours.Normalize(second, answer(fmt.Sprintf(body, "c")))); len(d) != 1 {
		t.Errorf("%v, want the uid", d)
	}
}

// An address may have been another object's before, on one of the two sides.
func TestDrawnAgain(t *testing.T) {
	stock, ours := NewNames("127.0.0.1:1111", now), NewNames("127.0.0.1:2222", now)
	const body = `{"metadata":{"name":"n"},"spec":{"clusterIP":"%s","ports":[{"nodePort":%d}]}}`
	for i, drawn := range []struct {
		stock, ours string
		a, b        int
	}{{"10.43.1.1", "10.43.2.2", 30100, 30200}, {"10.43.1.1", "10.43.3.3", 30100, 30300}} {
		for n, method := range []string{"POST", "GET"} {
			r := stream.Request{ID: 2*i + n, Method: method, Path: "/api/v1/services"}
			if d := Diff(stock.Normalize(r, answer(fmt.Sprintf(body, drawn.stock, drawn.a))), ours.Normalize(r, answer(fmt.Sprintf(body, drawn.ours, drawn.b)))); len(d) != 0 {
				t.Errorf("%s %d: %v", method, i, d)
			}
		}
	}
}

func TestRivals(t *testing.T) {
	won, lost := Normal{"status": 201}, Normal{"status": 409}
	a, b := Rivals([]Normal{lost, won, lost}), Rivals([]Normal{won, lost, lost})
	for i := range a {
		if d := Diff(a[i], b[i]); len(d) != 0 {
			t.Error(d)
		}
	}
	if d := Diff(Rivals([]Normal{won, won})[1], Rivals([]Normal{won, lost})[1]); len(d) == 0 {
		t.Error("two winners are like one")
	}
}

func TestWarningsAndBookmarks(t *testing.T) {
	r := stream.Request{Method: "GET", Path: "/x?watch=1"}
	a := NewNames("127.0.0.1:1111", now).Normalize(r, answer(`{"type":"ADDED","object":{}}{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}{"type":"DELETED","object":{}}`, "Warning", `299 - "old"`))
	b := NewNames("127.0.0.1:2222", now).Normalize(r, answer(`{"type":"ADDED","object":{}}{"type":"DELETED","object":{}}`))
	if d := Diff(a, b); len(d) != 1 || d[0].At != "header Warning" {
		t.Errorf("%v, want the warning", d)
	}
}

func TestReport(t *testing.T) {
	r, err := NewReport([]Exception{
		{Request: "^GET /meant", At: "^body.a$", Reason: "meant"},
		{Request: "^GET /never", Reason: "unused"},
		{Answers: `^500 \(nothing\), 422 Status$`, At: "^(status|body.(a|kind))$", Reason: "refused"},
	})
	if err != nil {
		t.Fatal(err)
	}
	one, two := Normal{"status": 200, "body": map[string]any{"a": 1}}, Normal{"status": 200, "body": map[string]any{"a": 2}}
	r.Add(stream.Request{Method: "GET", Path: "/meant"}, one, two)
	r.Add(stream.Request{Method: "GET", Path: "/other"}, one, one)
	r.Add(stream.Request{Method: "GET", Path: "/broken", Body: []byte("long body")}, one, two)
	r.Add(stream.Request{ID: 3, Method: "PUT", Path: "/broken", Body: []byte("short")}, one, two)
	failed, refused := Normal{"status": 500, "body": map[string]any{"a": 1}}, Normal{"status": 422, "body": map[string]any{"kind": "Status", "a": 2}}
	r.Add(stream.Request{Method: "PUT", Path: "/refused"}, failed, refused)
	r.Add(stream.Request{ID: 5, Method: "PUT", Path: "/accepted"}, failed, two)
	if r.Compared != 6 || r.Excepted != 2 || r.Differing() != 3 {
		t.Errorf("%d compared, %d excepted, %d differ", r.Compared, r.Excepted, r.Differing())
	}
	if unused := r.Unused(); len(unused) != 1 || unused[0] != "unused" {
		t.Errorf("unused: %v", unused)
	}
	if text := r.String(); !strings.Contains(text, "#1: 2 requests\n  PUT /broken") || !strings.Contains(text, "PUT /accepted") || strings.Contains(text, "#3") {
		t.Errorf("report: %s", text)
	}
	if text := r.Needed(); !strings.Contains(text, "meant: 1 times\n  first 0 GET /meant, 200 (nothing), 200 (nothing)\n    at body.a\n      stock: 1\n      ours:  2\n") || !strings.Contains(text, "unused: 0 times\n") {
		t.Errorf("needed: %s", text)
	}
	if _, err := NewReport([]Exception{{At: "("}}); err == nil {
		t.Error("a broken pattern is taken")
	}
}
