package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"

	"barque.dev/internal/api"
)

// call is what the chain finds out about a request on its way in.
type call struct {
	info     *request.RequestInfo
	resource *api.Resource // nil when it is none that we serve
	long     bool
	reported reported
}

type callKey struct{}

func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// ServeHTTP is the chain that every request passes: account for it, find out what it wants, who
// it is (authenticated), whom it acts as (impersonated), and whether it may and there is room
// (identified).
func (s *Server) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	s.flight.all.Add(1)
	defer s.flight.all.Done()
	start := time.Now()
	w := &response{ResponseWriter: rw}
	h := w.Header()
	h.Set("Audit-Id", auditID(req))
	h.Set("Cache-Control", "no-cache, private")

	info, err := s.resolver.NewRequestInfo(req)
	if err != nil {
		s.fail(w, req, apierrors.NewBadRequest(fmt.Sprintf("not understood: %v", err)))
		return
	}
	c := &call{info: info}
	if info.IsResourceRequest {
		c.resource, _ = s.registry.Lookup(gvrOf(info))
	}
	c.long = longRunning(req, info)
	c.reported = report(req, info, c.resource != nil)
	defer s.finish(w, req, c, start)

	if handler, ok := s.paths.public(req.URL.Path); ok {
		handler.ServeHTTP(w, req)
		return
	}
	ctx := context.WithValue(req.Context(), callKey{}, c)
	ctx = request.WithRequestInfo(ctx, info)
	ctx = warning.WithWarningRecorder(ctx, &warnings{header: h})
	if !c.long {
		limit, err := s.requestLimit(req)
		if err != nil {
			s.fail(w, req, err)
			return
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	s.authenticated(w, req.WithContext(ctx))
}

// auditID is the client's name for the request, or a new one. It comes back with the response, and is
// where an audit log will find it.
func auditID(req *http.Request) string {
	if id := req.Header.Get("Audit-Id"); id != "" && len(id) <= 64 {
		return id
	}
	return uuid.NewString()
}

// requestLimit is how long a request may take: what it asks for, or what we allow.
func (s *Server) requestLimit(req *http.Request) (time.Duration, error) {
	if !strings.Contains(req.URL.RawQuery, "timeout=") {
		return s.limits.Request, nil
	}
	v := req.URL.Query().Get("timeout")
	if v == "" {
		return s.limits.Request, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("invalid timeout specified in the request URL - %v", err))
	}
	if d <= 0 {
		return s.limits.Request, nil
	}
	return min(d, s.limits.Request), nil
}

// finish accounts for a request, whatever became of it.
func (s *Server) finish(w *response, req *http.Request, c *call, start time.Time) {
	fault := recover()
	if fault != nil && fault != http.ErrAbortHandler {
		s.log.Error("panic while answering a request", "method", req.Method, "path", req.URL.Path, "panic", fault, "stack", string(debug.Stack()))
		if w.code == 0 {
			http.Error(w, "This request caused apiserver to panic. Look in the logs for details.", http.StatusInternalServerError)
			fault = nil
		} else {
			fault = http.ErrAbortHandler
		}
	}
	if w.code == 0 {
		w.code = http.StatusOK
	}
	took := time.Since(start)
	s.metrics.done(c.reported, c.long, w.code, w.bytes, took)
	s.log.Debug("request", "method", req.Method, "uri", req.URL.RequestURI(), "code", w.code, "took", took, "agent", req.UserAgent())
	if fault != nil {
		s.metrics.aborted(c.reported)
		panic(fault) // net/http resets the stream, so that the client sees that the response is not complete
	}
}

// authenticated finds out who the request comes from.
func (s *Server) authenticated(w http.ResponseWriter, req *http.Request) {
	if len(s.cfg.Audiences) > 0 {
		req = req.WithContext(authenticator.WithAudiences(req.Context(), s.cfg.Audiences))
	}
	who, ok, err := s.cfg.Authenticator.AuthenticateRequest(req)
	if err != nil {
		s.log.Debug("authentication failed", "error", err, "remote", req.RemoteAddr)
	}
	if err != nil || !ok {
		if req.ProtoMajor == 2 {
			// A stranger gets no long-lived HTTP/2 connection to abuse (CVE-2023-44487).
			w.Header().Set("Connection", "close")
		}
		s.fail(w, req, apierrors.NewUnauthorized("Unauthorized"))
		return
	}
	// Credentials go no further: neither to logs nor to what requests are passed on to.
	req.Header.Del("Authorization")
	for name := range req.Header {
		if strings.HasPrefix(name, "X-Remote-") {
			req.Header.Del(name)
		}
	}
	if req.ProtoMajor == 2 && who.User.GetName() == user.Anonymous {
		w.Header().Set("Connection", "close")
	}
	req = req.WithContext(request.WithUser(req.Context(), who.User))
	for name := range req.Header {
		if strings.HasPrefix(name, "Impersonate-") {
			s.impersonated.ServeHTTP(w, req)
			return
		}
	}
	s.identified(w, req)
}

// identified finds room for the request, asks whether it may, and serves it. This is where an audit log
// has its place: it is known who asks for what, under the Audit-Id, and nothing has been decided.
func (s *Server) identified(w http.ResponseWriter, req *http.Request) {
	ctx := req.Context()
	c := callOf(ctx)
	if c.long {
		running := s.metrics.running(c.reported)
		running.Inc()
		defer running.Dec()
	} else {
		release, ok := s.flight.admit(c.info.Verb, privileged(ctx))
		if !ok {
			s.metrics.terminated(c.reported, http.StatusTooManyRequests)
			w.Header().Set("Retry-After", "1")
			http.Error(w, "Too many requests, please try again later.", http.StatusTooManyRequests)
			return
		}
		defer release()
	}

	attributes, err := filters.GetAuthorizerAttributes(ctx)
	if err != nil {
		s.fail(w, req, apierrors.NewInternalError(err))
		return
	}
	decision, reason, err := s.cfg.Authorizer.Authorize(ctx, attributes)
	if decision != authorizer.DecisionAllow {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if err != nil {
			s.fail(w, req, apierrors.NewInternalError(fmt.Errorf("authorization: %w", err)))
			return
		}
		s.fail(w, req, responsewriters.ForbiddenStatusError(attributes, reason))
		return
	}
	s.dispatch(w, req, c)
}

// privileged tells whether the user must always get an answer.
func privileged(ctx context.Context) bool {
	who, ok := request.UserFrom(ctx)
	if !ok {
		return false
	}
	for _, g := range who.GetGroups() {
		if g == user.SystemPrivilegedGroup {
			return true
		}
	}
	return false
}
