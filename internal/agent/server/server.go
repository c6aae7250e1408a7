// Package server is the node's own API on port 10250, the kubelet's: logs, exec, attach and port
// forwarding for the API server, and metrics for collectors. Everything but /healthz asks the
// cluster who the caller is and whether they may.
//
// Streams are not ended here: the container runtime has a streaming server, and the agent relays
// the upgraded connection to it, bytes as they are.
package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/metrics"
	"barque.dev/internal/agent/nodestatus"
)

// Config configures a Server.
type Config struct {
	NodeName string
	// Listener accepts connections; the server closes it. TLS must ask for client certificates
	// without demanding them.
	Listener net.Listener
	TLS      *tls.Config

	Authenticator authenticator.Request
	Authorizer    authorizer.Authorizer

	// Pods returns the pods of this node, with their status.
	Pods  func() []*corev1.Pod
	Facts func() nodestatus.Facts
	// VolumePath returns where on the node a volume of a pod is.
	VolumePath func(ctx context.Context, pod *corev1.Pod, v *corev1.Volume) (string, error)
	Runtime    cri.Runtime
	Metrics    *metrics.Set
	// Paths are served beside the kubelet's.
	Paths map[string]http.Handler
	Log   *slog.Logger
}

// Server serves the node's API. Make it with New.
type Server struct {
	Config
	handler http.Handler
	claims  claimed
}

// New returns a server.
func New(c Config) (*Server, error) {
	if c.Authenticator == nil || c.Authorizer == nil || c.Pods == nil || c.VolumePath == nil || c.Runtime == nil || c.Metrics == nil {
		return nil, errors.New("node API: authenticator, authorizer, pods, volumes, runtime and metrics are required")
	}
	s := &Server{Config: c}
	s.handler = s.routes()
	return s, nil
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.handler.ServeHTTP(w, r) }

// shutdown bounds how long requests under way may go on when the server ends.
const shutdown = 2 * time.Second

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context, ready func()) error {
	// HTTP/2 has no upgrades: it is not offered.
	config := s.TLS.Clone()
	config.NextProtos = []string{"http/1.1"}
	server := &http.Server{
		Handler:           s,
		TLSConfig:         config,
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ReadHeaderTimeout: 30 * time.Second,
		IdleTimeout:       90 * time.Second,
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(tls.NewListener(s.Listener, config)) }()
	ready()
	select {
	case err := <-failed:
		return fmt.Errorf("serve node API on %s: %w", s.Listener.Addr(), err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdown)
	defer cancel()
	err := server.Shutdown(end)
	if err != nil {
		err = server.Close()
	}
	<-failed
	return err
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	// Anybody who can connect may ask whether the agent is up; it says nothing else.
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	handle := func(pattern string, h http.HandlerFunc) { mux.Handle(pattern, s.guard(h)) }
	handle("GET /pods", s.pods)
	handle("GET /pods/", s.pods)
	handle("GET /containerLogs/{namespace}/{pod}/{container}", s.containerLogs)
	for _, method := range []string{"GET", "POST"} {
		handle(method+" /exec/{namespace}/{pod}/{container}", s.exec)
		handle(method+" /exec/{namespace}/{pod}/{uid}/{container}", s.exec)
		handle(method+" /attach/{namespace}/{pod}/{container}", s.attach)
		handle(method+" /attach/{namespace}/{pod}/{uid}/{container}", s.attach)
		handle(method+" /portForward/{namespace}/{pod}", s.portForward)
		handle(method+" /portForward/{namespace}/{pod}/{uid}", s.portForward)
	}
	handle("POST /run/{namespace}/{pod}/{container}", s.run)
	handle("POST /run/{namespace}/{pod}/{uid}/{container}", s.run)
	handle("GET /stats/summary", s.summary)
	handle("GET /metrics", s.serveMetrics(s.agentSamples, "", s.Metrics.Agent))
	handle("GET /metrics/probes", promhttp.HandlerFor(s.Metrics.Probes, promhttp.HandlerOpts{}).ServeHTTP)
	handle("GET /metrics/resource", s.serveMetrics(s.resourceSamples, "resource_scrape_error"))
	handle("GET /metrics/cadvisor", s.serveMetrics(s.containerSamples, "container_scrape_error"))
	for path, h := range s.Paths {
		handle(path, h.ServeHTTP)
	}
	return mux
}

// guard lets through who may.
func (s *Server) guard(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, ok, err := s.Authenticator.AuthenticateRequest(r)
		if err != nil || !ok {
			s.Log.Debug("unauthenticated request to the node API", "path", r.URL.Path, "err", err)
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		var last authorizer.AttributesRecord
		for _, a := range Attributes(s.NodeName, r) {
			a.User = who.User
			last = a
			decision, reason, err := s.Authorizer.Authorize(r.Context(), a)
			if decision == authorizer.DecisionAllow {
				next(w, r)
				return
			}
			s.Log.Debug("forbidden request to the node API", "user", who.User.GetName(), "verb", a.Verb, "subresource", a.Subresource, "reason", reason, "err", err)
		}
		http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=%s, subresource(s)=[%s])", last.User.GetName(), last.Verb, last.Resource, last.Subresource), http.StatusForbidden)
	})
}

// Attributes returns what a request has to be allowed to do; being allowed one of them is enough.
// Running a command is never just a "get", however it is asked for.
func Attributes(node string, r *http.Request) []authorizer.AttributesRecord {
	verb := "get"
	switch r.Method {
	case http.MethodPost:
		verb = "create"
	case http.MethodPut:
		verb = "update"
	case http.MethodPatch:
		verb = "patch"
	case http.MethodDelete:
		verb = "delete"
	}
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	var subresources []string
	switch first {
	case "stats", "metrics":
		subresources = []string{first}
	case "logs":
		subresources = []string{"log"}
	case "pods":
		subresources = []string{"pods", "proxy"}
	case "exec", "attach", "portForward", "run":
		verb = "create"
		subresources = []string{"proxy"}
	default:
		subresources = []string{"proxy"}
	}
	out := make([]authorizer.AttributesRecord, 0, len(subresources))
	for _, sub := range subresources {
		out = append(out, authorizer.AttributesRecord{
			Verb: verb, APIVersion: "v1", Resource: "nodes", Name: node, Subresource: sub,
			ResourceRequest: true, Path: r.URL.Path,
		})
	}
	return out
}

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	for _, p := range s.Pods() {
		list.Items = append(list.Items, *p)
	}
	writeJSON(w, list)
}

func writeJSON(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(data) // a caller that went away needs no answer
}

// pod finds the pod a request is about, and answers the request if there is none.
func (s *Server) pod(w http.ResponseWriter, r *http.Request) (*corev1.Pod, bool) {
	namespace, name, uid := r.PathValue("namespace"), r.PathValue("pod"), types.UID(r.PathValue("uid"))
	for _, p := range s.Pods() {
		if p.Namespace == namespace && p.Name == name && (uid == "" || p.UID == uid) {
			return p, true
		}
	}
	http.Error(w, fmt.Sprintf("pod %q not found in namespace %q", name, namespace), http.StatusNotFound)
	return nil, false
}

// relay hands the connection on to the runtime's streaming server at that address, or answers the
// request with the error with which the runtime refused to give one.
func (s *Server) relay(w http.ResponseWriter, r *http.Request, address string, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	target, err := url.Parse(address)
	if err != nil {
		http.Error(w, fmt.Sprintf("streaming address %q: %v", address, err), http.StatusInternalServerError)
		return
	}
	transport := &http.Transport{DisableCompression: true, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.URL.Path = target.Scheme, target.Host, target.Path
			p.Out.URL.RawQuery = target.RawQuery
			p.Out.Host = target.Host
			// The runtime knows the caller by the token in its address.
			p.Out.Header.Del("Authorization")
		},
		Transport: transport,
		ErrorLog:  slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
	}
	proxy.ServeHTTP(w, r)
}
