package apiserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	"barque.dev/internal/apiserver"
)

// sent is a request that anybody may send, in what a fuzzer can change.
type sent struct {
	method, target, contentType, accept string
	body                                string
}

const (
	jsonType     = "application/json"
	yamlType     = "application/yaml"
	protobufType = "application/vnd.kubernetes.protobuf"
	cborType     = "application/cbor"
	configMaps   = "/api/v1/namespaces/default/configmaps"
	oneConfigMap = configMaps + "/one"
	definitions  = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
)

// plainRequests are of every verb, media type and kind of path, so that a fuzzer starts from what gets far.
func plainRequests() []sent {
	return []sent{
		{"POST", configMaps, jsonType, jsonType, `{"metadata":{"name":"one","labels":{"a":"b"}},"data":{"k":"v"}}`},
		{"POST", configMaps + "?fieldValidation=Strict&dryRun=All&fieldManager=m", yamlType, yamlType, "metadata: {generateName: g-}\ndata: {k: v}\n"},
		{"POST", configMaps, cborType, cborType, "\xd9\xd9\xf7\xa1Hmetadata\xa1DnameCtwo"},
		{"POST", configMaps, protobufType, protobufType, "k8s\x00\n\x0f\n\x02v1\x12\tConfigMap\x12\x0b\n\t\n\x05three\x12\x00\x1a\x00\"\x00"},
		{"POST", "/api/v1/namespaces/default/pods", jsonType, "", `{"metadata":{"name":"p"},"spec":{"containers":[{"name":"a","image":"i","resources":{"requests":{"cpu":"1e3"}},"env":[{"name":"X","value":"$(Y)"}]}]}}`},
		{"POST", "/api/v1/namespaces/default/services", jsonType, "", `{"metadata":{"name":"s"},"spec":{"selector":{"a":"b"},"ports":[{"port":80,"targetPort":"http"}]}}`},
		{"POST", "/apis/apps/v1/namespaces/default/deployments", jsonType, "", `{"metadata":{"name":"d"},"spec":{"selector":{"matchLabels":{"a":"b"}},"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"a","image":"i"}]}}}}`},
		{"POST", definitions, jsonType, "", `{"metadata":{"name":"ships.example.com"},"spec":{"group":"example.com","scope":"Namespaced","names":{"plural":"ships","kind":"Ship"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object","properties":{"spec":{"type":"object","properties":{"masts":{"type":"integer","maximum":9}},"x-kubernetes-validations":[{"rule":"self.masts > 0"}]}}}}}]}}`},
		{"POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", jsonType, "", `{"spec":{"resourceAttributes":{"verb":"get","resource":"pods","fieldSelector":{"requirements":[{"key":"a","operator":"In","values":["b"]}]}}}}`},
		{"POST", "/api/v1/namespaces/default/serviceaccounts/default/token", jsonType, "", `{"spec":{"audiences":["a"],"expirationSeconds":600}}`},
		{"POST", "/api/v1/namespaces/default/pods/p/binding", jsonType, "", `{"target":{"kind":"Node","name":"n"}}`},
		{"POST", "/api/v1/namespaces/default/pods/p/eviction", jsonType, "", `{"metadata":{"name":"p"}}`},
		{"POST", "/api/v1/namespaces/default/pods/p/exec?command=ls&stdout=true", "", "", ""},
		{"PUT", oneConfigMap, jsonType, jsonType, `{"metadata":{"name":"one","resourceVersion":"1"},"data":{}}`},
		{"PUT", "/apis/apps/v1/namespaces/default/deployments/d/scale", jsonType, "", `{"metadata":{"name":"d"},"spec":{"replicas":3}}`},
		{"PATCH", oneConfigMap, "application/json-patch+json", "", `[{"op":"add","path":"/data/x","value":"y"},{"op":"copy","from":"/data","path":"/metadata/annotations"},{"op":"test","path":"/data/x","value":"y"}]`},
		{"PATCH", oneConfigMap, "application/merge-patch+json", "", `{"data":{"k":null},"metadata":{"finalizers":["a/b"]}}`},
		{"PATCH", "/api/v1/namespaces/default/pods/p", "application/strategic-merge-patch+json", "", `{"spec":{"$setElementOrder/containers":[{"name":"a"}],"containers":[{"name":"a","image":"j","$patch":"replace"}]},"metadata":{"$retainKeys":["name"],"$deleteFromPrimitiveList/finalizers":["a/b"]}}`},
		{"PATCH", configMaps + "/four?fieldManager=m&force=true", "application/apply-patch+yaml", "", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: four, managedFields: []}\ndata: {k: v}\n"},
		{"GET", configMaps + "?limit=1&labelSelector=a+in+(b,c),!d,e!=f&fieldSelector=metadata.name!%3Done", "", jsonType, ""},
		{"GET", configMaps + "?resourceVersion=0&resourceVersionMatch=NotOlderThan", "", "application/json;as=Table;v=v1;g=meta.k8s.io", ""},
		{"GET", configMaps + "?continue=eyJ2IjoibWV0YS5rOHMuaW8vdjEiLCJydiI6MSwic3RhcnQiOiJvbmUifQ", "", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", ""},
		{"GET", configMaps + "?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1", "", jsonType, ""},
		{"GET", configMaps + "?watch=perhaps", "", strings.Repeat("application/json;as=Table;v=v1;g=meta.k8s.io;q=0.1,", 100), ""},
		{"GET", "/api/v1/watch/namespaces/default/configmaps/one?resourceVersion=1", "", protobufType, ""},
		{"GET", "/api/v1/pods?fieldSelector=spec.nodeName=n,status.phase!=Running", "", protobufType, ""},
		{"GET", "/apis/example.com/v1/namespaces/default/ships", "", cborType, ""},
		{"GET", "/apis", "", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", ""},
		{"GET", "/openapi/v3/apis/apps/v1?hash=0", "", jsonType, ""},
		{"GET", "/openapi/v2", "", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf", ""},
		{"GET", "/api/v1/namespaces/default/pods/p/log?tailLines=-1", "", "", ""},
		{"GET", "/api/v1/namespaces/default/services/http:s:80/proxy/a/../b?c=d", "", "", ""},
		{"DELETE", oneConfigMap, jsonType, "", `{"kind":"DeleteOptions","apiVersion":"v1","preconditions":{"uid":"u"},"propagationPolicy":"Foreground","gracePeriodSeconds":0}`},
		{"DELETE", configMaps + "?labelSelector=a%3Db&dryRun=All", "", "", ""},
		{"OPTIONS", "/healthz/etcd", "", "", ""},
	}
}

// faults counts what a handler may not do, whatever it is asked.
type faults struct{ seen chan string }

func (f faults) Enabled(context.Context, slog.Level) bool { return true }
func (f faults) WithAttrs([]slog.Attr) slog.Handler       { return f }
func (f faults) WithGroup(string) slog.Handler            { return f }

func (f faults) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "panic") {
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "panic" || a.Key == "stack" {
				f.seen <- a.Value.String()
			}
			return true
		})
	}
	return nil
}

// openPlane is a control plane for which everybody is an administrator, and which reaches nobody.
func openPlane(tb testing.TB) (*cluster, faults) {
	f := faults{make(chan string, 64)}
	c := start(tb, func(cfg *apiserver.Config) {
		cfg.Authenticator = authenticator.RequestFunc(func(*http.Request) (*authenticator.Response, bool, error) {
			return &authenticator.Response{User: &user.DefaultInfo{Name: "fuzz", Groups: []string{user.SystemPrivilegedGroup}}}, true, nil
		})
		cfg.Kubelet.Dial = func(context.Context, string, string) (net.Conn, error) {
			return nil, errors.New("there is nobody to talk to")
		}
		cfg.Log = slog.New(f)
	})
	c.wait(tb)
	return c, f
}

// patience is how long an answer may take; a watch gets brief.
const (
	patience = 20 * time.Second
	brief    = 100 * time.Millisecond
)

// send hands a request to the server as net/http would; it is false for what net/http refuses itself.
func (c *cluster) send(r sent) (*httptest.ResponseRecorder, bool) {
	target, err := url.ParseRequestURI(r.target)
	if err != nil {
		return nil, false
	}
	limit := patience
	if strings.Contains(r.target, "watch") || strings.Contains(r.target, "follow") {
		limit = brief
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, r.method, "https://server"+target.Path, io.NopCloser(strings.NewReader(r.body)))
	if err != nil {
		return nil, false
	}
	req.URL, req.RequestURI, req.ContentLength = target, r.target, int64(len(r.body))
	for name, value := range map[string]string{"Content-Type": r.contentType, "Accept": r.accept} {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	w := httptest.NewRecorder()
	c.server.ServeHTTP(w, req)
	return w, true
}

// check tells what is wrong with an answer, to whatever request.
func check(w *httptest.ResponseRecorder, f faults) error {
	select {
	case fault := <-f.seen:
		return errors.New(fault)
	default:
	}
	switch w.Code {
	case http.StatusInternalServerError, http.StatusGatewayTimeout:
		return errors.New(w.Body.String())
	}
	if strings.HasPrefix(w.Header().Get("Content-Type"), jsonType) && w.Code >= 400 && !json.Valid(bytes.TrimSpace(w.Body.Bytes())) {
		return errors.New("the answer is no JSON: " + w.Body.String())
	}
	return nil
}

// Whatever is asked, by whomever: an answer, and neither a panic nor an error of the server's own.
func FuzzRequest(f *testing.F) {
	for _, r := range plainRequests() {
		f.Add(r.method, r.target, r.contentType, r.accept, []byte(r.body))
	}
	for _, r := range hostileRequests() {
		if len(r.body) < 4<<10 {
			f.Add(r.method, r.target, r.contentType, r.accept, []byte(r.body))
		}
	}
	c, seen := openPlane(f)
	f.Fuzz(func(t *testing.T, method, target, contentType, accept string, body []byte) {
		w, ok := c.send(sent{method, target, contentType, accept, string(body)})
		if !ok {
			return
		}
		if err := check(w, seen); err != nil {
			t.Errorf("%s %s: %d: %v", method, target, w.Code, err)
		}
	})
}
