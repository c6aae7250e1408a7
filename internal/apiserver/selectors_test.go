package apiserver

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"pgregory.net/rapid"
)

// bareServer resolves requests, and does nothing else.
func bareServer() *Server {
	return &Server{resolver: &request.RequestInfoFactory{
		APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api"),
	}}
}

// TestRequestsMeanWhatUpstreamReads: what is read of a request early and late is what upstream's factory and attributes
// read at once.
func TestRequestsMeanWhatUpstreamReads(t *testing.T) {
	s := bareServer()
	rapid.Check(t, func(t *rapid.T) {
		target := rapid.SampledFrom([]string{
			"/api/v1/pods", "/api/v1/namespaces/a/pods", "/api/v1/namespaces/a/pods/p", "/api/v1/watch/pods", "/api/v1/watch/namespaces/a/pods/p",
			"/apis/apps/v1/deployments", "/apis", "/api/v1/watch", "/healthz", "/api/v1/namespaces/a", "/api/v1/namespaces", "/api/v1/proxy/nodes/n",
		}).Draw(t, "path")
		var query []string
		for range rapid.IntRange(0, 4).Draw(t, "parameters") {
			query = append(query, rapid.SampledFrom([]string{
				"watch", "watch=", "watch=1", "watch=true", "watch=False", "watch=0", "watch=maybe", "limit=5", "timeoutSeconds=3",
				"fieldSelector=metadata.name%3Dx", "fieldSelector=metadata.name%3D..", "fieldSelector=metadata.name!%3Dx", "fieldSelector=spec.nodeName%3Dn,metadata.name%3Dx",
				"fieldSelector=", "fieldSelector=nonsense", "labelSelector=a%3Db,c+in+(d,e)", "labelSelector=(((", "labelSelector=x", "labelSelector=-%3D-", "resourceVersion=1",
				"allowWatchBookmarks=1", "sendInitialEvents=true", "resourceVersionMatch=Exact", "continue=x", "pretty=1", "%zz", "a;b",
			}).Draw(t, "parameter"))
		}
		if len(query) > 0 {
			target += "?" + strings.Join(query, "&")
		}
		req := httptest.NewRequest(rapid.SampledFrom([]string{"GET", "GET", "GET", "DELETE", "POST", "HEAD", "BREW"}).Draw(t, "method"), target, nil)
		want, wantErr := s.resolver.NewRequestInfo(req)
		got, err := s.requestInfo(req)
		if fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Fatalf("%s: %v, upstream says %v", target, err, wantErr)
		}
		if err != nil {
			return
		}
		c := &call{info: got}
		c.readName(req)
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Fatalf("%s:\n%+v, upstream reads\n%+v", target, got, want)
		}
		attributes, err := filters.GetAuthorizerAttributes(request.WithRequestInfo(req.Context(), want))
		if err != nil {
			t.Fatal(err)
		}
		ours := newAttributes(req, got)
		f, ferr := ours.GetFieldSelector()
		l, lerr := ours.GetLabelSelector()
		wantF, wantFErr := attributes.GetFieldSelector()
		wantL, wantLErr := attributes.GetLabelSelector()
		if a, b := fmt.Sprint(f, ferr, l, lerr), fmt.Sprint(wantF, wantFErr, wantL, wantLErr); a != b {
			t.Fatalf("%s: selectors %s, upstream's %s", target, a, b)
		}
		if a, b := shown(ours), shown(attributes); a != b {
			t.Fatalf("%s: %s, upstream's %s", target, a, b)
		}
	})
}

func shown(a interface {
	GetVerb() string
	GetPath() string
	GetName() string
	GetNamespace() string
	GetResource() string
	GetSubresource() string
	GetAPIGroup() string
	GetAPIVersion() string
	IsResourceRequest() bool
	IsReadOnly() bool
}) string {
	return fmt.Sprint(a.GetVerb(), a.GetPath(), a.GetName(), a.GetNamespace(), a.GetResource(), a.GetSubresource(), a.GetAPIGroup(), a.GetAPIVersion(),
		a.IsResourceRequest(), a.IsReadOnly())
}

// TestSelectorsThatArePossible: what upstream's parser takes is never refused, however long it is; what is mostly wrong is.
func TestSelectorsThatArePossible(t *testing.T) {
	value := rapid.StringMatching(`([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?`)
	key := rapid.StringMatching(`([a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?(\.[a-z0-9]{1,20}){0,3}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?`)
	rapid.Check(t, func(t *rapid.T) {
		var b strings.Builder
		for b.Len() <= 2*harmlessSelector {
			k, v := key.Draw(t, "key"), value.Draw(t, "value")
			form := rapid.SampledFrom([]string{"KEY in (VALUE,VALUE),", "KEY notin ( VALUE ),", "KEY=VALUE,", "KEY != VALUE,", "!KEY,", "KEY,"}).Draw(t, "form")
			part := strings.NewReplacer("KEY", k, "VALUE", v).Replace(form)
			b.WriteString(strings.Repeat(part, 40))
		}
		if err := checkSelector(strings.TrimSuffix(b.String(), ",")); err != nil {
			t.Fatal(err)
		}
	})
	if err := checkSelector("k in (" + strings.Repeat("-,", harmlessSelector) + ")"); err == nil {
		t.Error("nonsense is let through")
	}
}

// TestNothingIsParsedEarly: requests cost no more for what their query says, until it is known who asks.
func TestNothingIsParsedEarly(t *testing.T) {
	s := bareServer()
	var b strings.Builder
	for i := range 20_000 {
		fmt.Fprintf(&b, "-%d-,", i)
	}
	req := httptest.NewRequest(http.MethodGet, "/api/v1/pods?labelSelector=k+in+("+b.String()+"x)", nil)
	bytes := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.requestInfo(req); err != nil {
				b.Fatal(err)
			}
		}
	}).AllocedBytesPerOp()
	if most := int64(4 * len(req.URL.RawQuery)); bytes > most {
		t.Errorf("%d bytes for a query of %d", bytes, len(req.URL.RawQuery))
	}
	info, err := s.requestInfo(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listOptions(req, operation{call: &call{info: info}}); err == nil || len(err.Error()) > 500 {
		t.Errorf("the list says %.600v", err)
	}
}
