package aggregate

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// flunders answers what a server of flunders is asked about itself. A modern one knows aggregated discovery and
// OpenAPI 3.
func flunders(t *testing.T, modern bool, sent *atomic.Int64) http.HandlerFunc {
	list := apidiscoveryv2.APIGroupDiscoveryList{Items: []apidiscoveryv2.APIGroupDiscovery{{
		ObjectMeta: metav1.ObjectMeta{Name: wardle.Group},
		Versions: []apidiscoveryv2.APIVersionDiscovery{
			{Version: "v1beta1"},
			{Version: wardle.Version, Resources: []apidiscoveryv2.APIResourceDiscovery{{
				Resource: "flunders", Scope: apidiscoveryv2.ScopeNamespace, Verbs: []string{"list"},
				Subresources: []apidiscoveryv2.APISubresourceDiscovery{{Subresource: "status"}},
			}}},
		},
	}}}
	document := func(w http.ResponseWriter, req *http.Request, contentType, body string) {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Etag", `"1"`)
		if req.Header.Get("If-None-Match") == `"1"` {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		sent.Add(1)
		fmt.Fprint(w, body)
	}
	return func(w http.ResponseWriter, req *http.Request) {
		switch path := req.URL.Path; {
		case modern && path == "/apis" && req.Header.Get("X-Remote-User") == "system:kube-aggregator":
			b, err := json.Marshal(list)
			if err != nil {
				t.Error(err)
			}
			document(w, req, discovery.AcceptV2, string(b))
		case path == "/apis":
			fmt.Fprint(w, `{"kind":"APIGroupList","groups":[]}`)
		case path == "/apis/wardle.example.com/v1alpha1":
			fmt.Fprint(w, `{"kind":"APIResourceList","groupVersion":"wardle.example.com/v1alpha1","resources":[
				{"name":"flunders","namespaced":true,"kind":"Flunder","verbs":["list"]},
				{"name":"flunders/status","namespaced":true,"kind":"Flunder","verbs":["get"]}]}`)
		case path == "/openapi/v2" && req.Header.Get("X-Remote-User") == "system:aggregator":
			document(w, req, "application/json", flunderSwagger)
		case modern && path == "/openapi/v3":
			fmt.Fprint(w, `{"paths":{"apis/wardle.example.com/v1alpha1":{"serverRelativeURL":"/openapi/v3/apis/wardle.example.com/v1alpha1?hash=1"},
				"apis/other.example.com/v1":{"serverRelativeURL":"https://other.example.com/"}}}`)
		case modern && path == "/openapi/v3/apis/wardle.example.com/v1alpha1":
			document(w, req, "application/json", `{"openapi":"3.0.0","info":{"title":"wardle"}}`)
		default:
			http.NotFound(w, req)
		}
	}
}

// TestWhatAServerSays: one with aggregated discovery and OpenAPI 3, and one from before those.
func TestWhatAServerSays(t *testing.T) {
	for name, modern := range map[string]bool{"modern": true, "old": false} {
		t.Run(name, func(t *testing.T) {
			var sent atomic.Int64
			x := newExtension(t, flunders(t, modern, &sent))
			b := x.backend(t, nil)
			said := b.hear(t.Context(), b.said.Load())
			if said.err != nil || said.Stale || !said.asked {
				t.Fatalf("it said %+v", said)
			}
			r := said.Resources
			if len(r) != 1 || r[0].Resource != "flunders" || r[0].Scope != apidiscoveryv2.ScopeNamespace || r[0].ResponseKind == nil ||
				len(r[0].Subresources) != 1 || r[0].Subresources[0].ResponseKind == nil {
				t.Errorf("resources are %+v", r)
			}
			for version, doc := range map[string]*Document{"2": said.V2, "3": said.V3} {
				if doc == nil {
					t.Fatalf("there is no OpenAPI document, version %s", version)
				}
				raw, err := doc.Bytes()
				if err != nil || modern && version == "3" && string(raw) != `{"openapi":"3.0.0","info":{"title":"wardle"}}` || !modern && !strings.Contains(string(raw), "Flunder") {
					t.Errorf("version %s is %s, %v", version, raw, err)
				}
			}
			before := sent.Load()
			again := b.hear(t.Context(), said)
			if !again.same(&said.Description) || sent.Load() != before {
				t.Errorf("%d documents were sent again, and are others: %v", sent.Load()-before, !again.same(&said.Description))
			}

			away := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
			x.answer.Store(&away)
			lost := b.hear(t.Context(), again)
			if lost.err == nil || lost.lost == nil || !lost.Stale || len(lost.Resources) != 1 || lost.V2 == nil || lost.V3 == nil {
				t.Errorf("what is known of a server that does not answer: %+v", lost)
			}
		})
	}
}

// TestNonsense: a server that answers with nonsense is stale, but not lost: requests are passed on to it.
func TestNonsense(t *testing.T) {
	x := newExtension(t, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/apis" {
			w.Header().Set("Content-Type", discovery.AcceptV2)
		}
		fmt.Fprint(w, "ahoy")
	})
	b := x.backend(t, nil)
	said := b.hear(t.Context(), b.said.Load())
	if said.err == nil || said.lost != nil || !said.Stale {
		t.Errorf("it said %+v", said)
	}
	b.said.Store(said)
	if resp, body := get(t, portal(t, b).URL+"/apis/wardle.example.com/v1alpha1/flunders"); resp.StatusCode != http.StatusOK || body != "ahoy" {
		t.Errorf("a request: %d %s", resp.StatusCode, body)
	}
}

// TestProbe: a server must have what it is registered for.
func TestProbe(t *testing.T) {
	var sent atomic.Int64
	x := newExtension(t, flunders(t, true, &sent))
	if err := x.backend(t, nil).probe(t.Context()); err != nil {
		t.Error(err)
	}
	elsewhere := x.backend(t, func(s *apiregistrationv1.APIService) { s.Spec.Version = "v2" })
	if err := elsewhere.probe(t.Context()); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("for a version that it does not have: %v", err)
	}
	x.gone.Store(true)
	if err := x.backend(t, nil).probe(t.Context()); err == nil || !strings.Contains(err.Error(), "no endpoints available") {
		t.Errorf("without an endpoint: %v", err)
	}
}

// TestInherited: documents stay, as stale ones, while an APIService's new server has not answered.
func TestInherited(t *testing.T) {
	var sent atomic.Int64
	x := newExtension(t, flunders(t, true, &sent))
	old, next := x.backend(t, nil), x.backend(t, nil)
	old.said.Store(old.hear(t.Context(), old.said.Load()))
	next.inherit(old)
	if d := next.Description(); !d.Stale || len(d.Resources) != 1 || d.V3 == nil {
		t.Errorf("inherited %+v", d)
	}
	if said := next.hear(t.Context(), next.said.Load()); said.Stale || sent.Load() != 6 {
		t.Errorf("it is %+v after %d documents: the new server must be asked for all of them", said, sent.Load())
	}
}
