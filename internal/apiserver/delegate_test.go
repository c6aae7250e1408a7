package apiserver

import (
	"net/http/httptest"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"

	"barque.dev/internal/apiserver/aggregate"
)

// TestVersionOf: which version of a group a path is for, that its own document included.
func TestVersionOf(t *testing.T) {
	resolver := &request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}
	for path, want := range map[string]schema.GroupVersion{
		"/apis/wardle.example.com/v1/flunders":                         {Group: "wardle.example.com", Version: "v1"},
		"/apis/wardle.example.com/v1/namespaces/a/flunders/b/status":   {Group: "wardle.example.com", Version: "v1"},
		"/apis/wardle.example.com/v1/watch/namespaces/a/flunders":      {Group: "wardle.example.com", Version: "v1"},
		"/apis/wardle.example.com/v1/namespaces/a/flunders/b/proxy/c/": {Group: "wardle.example.com", Version: "v1"},
		"/apis/wardle.example.com/v1":                                  {Group: "wardle.example.com", Version: "v1"},
		"/apis/wardle.example.com/v1/":                                 {Group: "wardle.example.com", Version: "v1"},
		"/apis/wardle.example.com":                                     {Group: "wardle.example.com"},
		"/apis":                                                        {},
		"/apis/":                                                       {},
		"/api/v1/pods":                                                 {Version: "v1"},
		"/api/v1":                                                      {Version: "v1"},
		"/api":                                                         {Version: "v1"},
		"/apiary":                                                      {},
		"/openapi/v3/apis/wardle.example.com/v1":                       {},
		"/":                                                            {},
	} {
		info, err := resolver.NewRequestInfo(httptest.NewRequest("GET", path, nil))
		if err != nil {
			t.Fatal(err)
		}
		if got := versionOf(info); got != want {
			t.Errorf("%s is for %v, want %v", path, got, want)
		}
		var none aggregate.Aggregator
		if n := testing.AllocsPerRun(100, func() {
			if none.Find(versionOf(info)) != nil {
				t.Error("somebody serves it")
			}
		}); n != 0 {
			t.Errorf("%s: it costs %v allocations to find that no other server has it", path, n)
		}
	}
}
