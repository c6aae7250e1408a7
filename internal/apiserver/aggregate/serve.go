package aggregate

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	proxyutil "k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/client-go/transport"
	"k8s.io/streaming/pkg/httpstream"

	"barque.dev/internal/apiserver/relay"
	"barque.dev/internal/tracing"
)

// Serve passes a request on that has been authenticated and authorized, streams and upgrades included. The server gets
// to know the user by the headers X-Remote-User, -Uid, -Group and -Extra-. A server that can't be reached is a 503 with the
// reason.
func (b *Backend) Serve(w http.ResponseWriter, req *http.Request, fail relay.Fail) {
	who, ok := request.UserFrom(req.Context())
	if !ok {
		fail(w, req, apierrors.NewInternalError(errors.New("a request for an aggregated API has no user")))
		return
	}
	endpoint, err := b.endpoint()
	said := b.said.Load()
	if err := verdict(err, finding{asked: said.asked, err: said.lost}, *b.condition.Load()); err != nil {
		fail(w, req, apierrors.NewServiceUnavailable(fmt.Sprintf("the server of %s is not available: %v", b.name, err)))
		return
	}
	location := &url.URL{Scheme: "https", Host: endpoint.Host, Path: req.URL.Path, RawQuery: req.URL.RawQuery}
	passed, cancel := proxyutil.NewRequestForProxy(location, req)
	defer cancel()
	upgrade := httpstream.IsUpgradeRequest(req)
	if upgrade {
		// Upgrades are written to a connection of their own, past all round trippers.
		transport.SetAuthProxyHeaders(passed, who.GetName(), who.GetUID(), who.GetGroups(), who.GetExtra())
	}
	handler := proxy.NewUpgradeAwareHandler(location, identified(who, answers{tracing.Transport(b.transport), w.Header()}), true, upgrade, fail)
	handler.RejectForwardingRedirects = true
	handler.ServeHTTP(w, passed)
}

// identified says in each request's headers who it is from.
func identified(who user.Info, next http.RoundTripper) http.RoundTripper {
	return transport.NewAuthProxyRoundTripper(who.GetName(), who.GetUID(), who.GetGroups(), who.GetExtra(), next)
}

// answers leaves one of each header that both servers write: the request's name is ours, and how long an answer may be
// kept is the other's to say.
type answers struct {
	next http.RoundTripper
	ours http.Header
}

// RoundTrip implements http.RoundTripper.
func (a answers) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := a.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	resp.Header.Del("Audit-Id")
	if resp.Header.Get("Cache-Control") != "" {
		a.ours.Del("Cache-Control")
	}
	return resp, nil
}

// WrappedRoundTripper lets upgrades find how connections are made.
func (a answers) WrappedRoundTripper() http.RoundTripper { return a.next }
