package apiserver

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/fairness"
	"barque.dev/internal/tracing"
)

// call is what the chain finds out about a request on its way in.
type call struct {
	info     *request.RequestInfo
	resource *api.Resource // nil when it is none that we serve
	long     bool
	reported reported
	audit    *recorder // nil when the request is not to be recorded
	span     tracing.Span
	// seat is the request's place among others, from before it is asked whether it may to when it is answered, or, if it
	// is a watch, has begun.
	seat    fairness.Ticket
	running *inFlightKind
	forget  func() // a watch; nil if it is none
}

type callKey struct{}

func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// ServeHTTP is the chain that every request passes: account for it, find out what it wants, who
// it is (authenticated), whom it acts as (impersonated), and whether it may and there is room
// (identified).
func (s *Server) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	s.flight.all.Add(1)
	defer s.flight.all.Done()
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		deepen(len(req.Method))
	}
	start := time.Now()
	w := &response{ResponseWriter: rw}
	h := w.Header()
	id := auditID(req)
	h.Set("Audit-Id", id)
	h.Set("Cache-Control", "no-cache, private")
	s.turn(h, req)

	info, err := s.requestInfo(req)
	if err != nil {
		s.fail(w, req, apierrors.NewBadRequest(fmt.Sprintf("not understood: %v", err)))
		return
	}
	c := &call{info: info}
	if info.IsResourceRequest {
		c.resource, _ = s.registry.Lookup(gvrOf(info))
	}
	c.long = longRunning(req, info)
	c.reported = report(req, info, c.resource)
	defer s.finish(w, req, c, start)

	if handler, ok := s.paths.public(req.URL.Path); ok {
		handler.ServeHTTP(w, req)
		return
	}
	ctx := context.WithValue(req.Context(), callKey{}, c)
	ctx = request.WithRequestInfo(ctx, info)
	ctx = warning.WithWarningRecorder(ctx, &warnings{header: h})
	if len(s.cfg.Audiences) > 0 {
		ctx = authenticator.WithAudiences(ctx, s.cfg.Audiences)
	}
	if s.cfg.Audit != nil || s.cfg.Tracer != nil {
		ctx = request.WithReceivedTimestamp(ctx, start)
	}
	if s.cfg.Audit != nil {
		ctx = withAudit(ctx, id)
	}
	if !c.long {
		w.patience = s.limits.Receive
		limit, err := s.requestLimit(req)
		if err != nil {
			if s.cfg.Audit != nil {
				err = cmp.Or(s.recordStranger(w, req.WithContext(ctx), c, ""), err)
			}
			s.fail(w, req, err)
			return
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	s.authenticated(w, req.WithContext(ctx))
}

// auditID is the client's name for the request, or a new one. It comes back with the response, and is that of the
// request's audit events.
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
	c.audit.end(fault)
	w.audit = nil
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
	c.endSpan(w, fault)
	if req.ProtoMajor == 1 {
		w.done()
	}
	took := time.Since(start)
	s.metrics.done(c.reported, c.long, w.code, w.bytes, took)
	if ctx := req.Context(); s.log.Enabled(ctx, slog.LevelDebug) {
		s.log.DebugContext(ctx, "request", "method", req.Method, "uri", req.URL.RequestURI(), "code", w.code, "took", took, "agent", req.UserAgent())
	}
	if fault != nil {
		s.metrics.aborted(c.reported)
		panic(fault) // net/http resets the stream, so that the client sees that the response is not complete
	}
}

// authenticated finds out who the request comes from.
func (s *Server) authenticated(w http.ResponseWriter, req *http.Request) {
	start := time.Now()
	who, ok, err := s.cfg.Authenticator.AuthenticateRequest(req)
	if err != nil {
		s.log.Debug("authentication failed", "error", err, "remote", req.RemoteAddr)
	}
	s.metrics.access.authenticated(start, who, ok, err)
	if err != nil || !ok {
		if req.ProtoMajor == 2 {
			// A stranger gets no long-lived HTTP/2 connection to abuse (CVE-2023-44487).
			w.Header().Set("Connection", "close")
		}
		if s.cfg.Audit != nil {
			if err := s.recordStranger(w, req, callOf(req.Context()), attempted(req)); err != nil {
				s.fail(w, req, err)
				return
			}
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
	callOf(req.Context()).readName(req)
	if s.cfg.Tracer != nil {
		req = s.traced(req, callOf(req.Context()), who.User)
	}
	if s.cfg.Audit != nil {
		if err := s.record(w, req, callOf(req.Context())); err != nil {
			s.fail(w, req, err)
			return
		}
	}
	for name := range req.Header {
		if strings.HasPrefix(name, "Impersonate-") {
			s.impersonated.ServeHTTP(w, req)
			return
		}
	}
	s.identified(w, req)
}

// identified finds room for the request, asks whether it may, and serves it.
func (s *Server) identified(w http.ResponseWriter, req *http.Request) {
	ctx := req.Context()
	c := callOf(ctx)
	if c.long {
		running := s.metrics.running(c.reported)
		running.Inc()
		defer running.Dec()
	}
	if !c.long || s.fair != nil && c.info.Verb == "watch" {
		_, span := c.begin(ctx, "priorityandfairness")
		room := s.makeRoom(w, req, c)
		span.End(nil)
		if !room {
			s.metrics.terminated(c.reported, http.StatusTooManyRequests)
			http.Error(w, "Too many requests, please try again later.", http.StatusTooManyRequests)
			return
		}
		defer c.leave()
	}

	attributes := newAttributes(req, c.info)
	start := time.Now()
	asking, span := c.begin(ctx, "authorization")
	decision, reason, err := s.cfg.Authorizer.Authorize(asking, attributes)
	span.End(err)
	s.metrics.access.authorized(start, decision, err)
	if decision != authorizer.DecisionAllow {
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if err != nil {
			c.audit.decided("", "internal error")
			s.fail(w, req, apierrors.NewInternalError(fmt.Errorf("authorization: %w", err)))
			return
		}
		c.audit.decided("forbid", reason)
		s.fail(w, req, responsewriters.ForbiddenStatusError(attributes, reason))
		return
	}
	c.audit.decided("allow", reason)
	s.dispatch(w, req, c)
}

// makeRoom finds room for a request, for which it may have to wait; false when there is none, and the response says when to
// try again.
func (s *Server) makeRoom(w http.ResponseWriter, req *http.Request, c *call) bool {
	ctx := req.Context()
	running := s.flight.kind(c.info.Verb)
	if s.fair == nil {
		if !running.enter(privileged(ctx)) {
			w.Header().Set("Retry-After", "1")
			return false
		}
		c.running = running
		return true
	}
	who, ok := request.UserFrom(ctx)
	if !ok {
		who = &user.DefaultInfo{Name: user.Anonymous, Groups: []string{user.AllUnauthenticated}}
	}
	// A quarter of the time that it has is what a request may wait for.
	wait := s.limits.Request / 4
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(time.Until(deadline)/4, time.Minute)
	}
	ok = s.fair.Admit(ctx, &c.seat, c.info, who, req.URL.RawQuery, wait)
	h := w.Header()
	h[schemaHeader], h[levelHeader] = c.seat.UIDs()
	if !ok {
		h.Set("Retry-After", strconv.FormatInt(c.seat.RetryAfter(), 10))
		return false
	}
	if waited := c.seat.Waited(); waited > 0 {
		request.TrackAPFQueueWaitLatency(ctx, waited)
	}
	running.count.Add(1)
	c.running = running
	if c.info.Verb == "watch" {
		c.forget = s.fair.Watching(c.info, req.URL.RawQuery)
		if c.resource == nil {
			c.seat.Release() // it is passed on to another server, and begins there
		}
	}
	return true
}

// leave gives back the room that makeRoom found.
func (c *call) leave() {
	c.seat.Release()
	c.running.leave()
	if c.forget != nil {
		c.forget()
	}
}

// The headers that tell clients how their requests were classified, as net/http spells them.
const (
	schemaHeader = "X-Kubernetes-Pf-Flowschema-Uid"
	levelHeader  = "X-Kubernetes-Pf-Prioritylevel-Uid"
)

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
