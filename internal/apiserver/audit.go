package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"sigs.k8s.io/yaml"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/wire"
)

// recorder writes into the audit log what becomes of one request. A request that the policy does not ask about has none
// (nil), and costs nothing; objects are encoded only at the levels that show them.
type recorder struct {
	*audit.AuditContext
	ctx   context.Context
	level auditinternal.Level
	// omitFields leaves managed fields out.
	omitFields bool
	// long requests tell when their answer begins, and ended is whether nothing is to be told any more.
	long, ended bool
	begun       bool
	// attempted is how a stranger tried to show who they are; empty for everybody else, and if nobody has looked.
	attempted string
}

// withAudit gives a request's context what its audit event is gathered in.
func withAudit(ctx context.Context, id string) context.Context {
	ctx = audit.WithAuditContext(ctx)
	audit.WithAuditID(ctx, types.UID(id))
	return request.WithLatencyTrackers(ctx)
}

// record begins to record a request whose user is known, as far as the policy asks for it. An error says that the
// request must not be served.
func (s *Server) record(w http.ResponseWriter, req *http.Request, c *call) error {
	r, err := s.newRecorder(req, c)
	if err != nil || r == nil {
		return err
	}
	if !r.ProcessEventStage(r.ctx, auditinternal.StageRequestReceived) {
		audit.ApiserverAuditDroppedCounter.WithContext(r.ctx).Inc()
		return apierrors.NewInternalError(errors.New("failed to store audit event"))
	}
	c.audit = r
	if response, ok := w.(*response); ok {
		response.audit = r
	}
	return nil
}

// recordStranger records a request that is refused before it is known, or can't be found out, who asks: one event, once
// it is answered. attempted is how they tried to show it; empty if nobody has looked.
func (s *Server) recordStranger(w http.ResponseWriter, req *http.Request, c *call, attempted string) error {
	r, err := s.newRecorder(req, c)
	if err != nil || r == nil {
		return err
	}
	r.attempted = attempted
	r.long, r.ended = true, true
	if response, ok := w.(*response); ok {
		response.audit = r
	}
	return nil
}

// newRecorder asks the policy about a request; nil if it is not to be recorded.
func (s *Server) newRecorder(req *http.Request, c *call) (*recorder, error) {
	ctx := req.Context()
	event := audit.AuditContextFrom(ctx)
	if event == nil || s.cfg.Audit == nil {
		return nil, nil //nolint:nilnil // see above
	}
	attributes, err := filters.GetAuthorizerAttributes(ctx)
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("create audit event: %w", err))
	}
	rule := s.cfg.Audit.Policy.EvaluatePolicyRule(attributes)
	audit.ObservePolicyLevel(ctx, rule.Level)
	if err := event.Init(rule, s.cfg.Audit.Backend); err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("create audit event: %w", err))
	}
	if rule.Level == auditinternal.LevelNone {
		return nil, nil //nolint:nilnil // see above
	}
	received, _ := request.ReceivedTimestampFrom(ctx)
	audit.LogRequestMetadata(ctx, req, received, attributes)
	return &recorder{AuditContext: event, ctx: ctx, level: rule.Level, omitFields: rule.OmitManagedFields, long: c.long}, nil
}

// attempted says how a stranger tried to show who they are.
func attempted(req *http.Request) string {
	var ways []string
	if _, _, ok := req.BasicAuth(); ok {
		ways = append(ways, "basic")
	}
	if scheme, _, ok := strings.Cut(strings.TrimSpace(req.Header.Get("Authorization")), " "); ok && strings.EqualFold(scheme, "bearer") {
		ways = append(ways, "bearer")
	}
	if strings.Contains(req.URL.RawQuery, "access_token") && strings.TrimSpace(req.URL.Query().Get("access_token")) != "" {
		ways = append(ways, "access_token")
	}
	if req.TLS != nil && len(req.TLS.PeerCertificates) > 0 {
		ways = append(ways, "x509")
	}
	if len(ways) == 0 {
		return "Authentication failed, no credentials provided"
	}
	return "Authentication failed, attempted: " + strings.Join(ways, ", ")
}

// begin notes that the answer begins.
func (r *recorder) begin(code int) {
	if r.begun {
		return
	}
	r.begun = true
	r.SetEventResponseStatusCode(int32(code))
	if r.long {
		r.ProcessEventStage(r.ctx, auditinternal.StageResponseStarted)
	}
}

// end notes how a request ended: by a panic, whose value fault is, or else as it should.
func (r *recorder) end(fault any) {
	if r == nil || r.ended {
		return
	}
	r.ended = true
	if fault != nil {
		r.SetEventResponseStatus(&metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError,
			Message: fmt.Sprintf("APIServer panic'd: %v", fault),
		})
		r.ProcessEventStage(r.ctx, auditinternal.StagePanic)
		return
	}
	if r.GetEventResponseStatus() == nil {
		r.SetEventResponseStatus(&metav1.Status{Code: http.StatusOK, Status: metav1.StatusSuccess, Message: "Connection closed early"})
		if r.long {
			r.ProcessEventStage(r.ctx, auditinternal.StageResponseStarted)
		}
	}
	if took := time.Since(r.GetEventRequestReceivedTimestamp().Time); took > slow {
		if parts := request.AuditAnnotationsFromLatencyTrackers(r.ctx); len(parts) > 0 {
			parts["apiserver.latency.k8s.io/total"] = took.String()
			audit.AddAuditAnnotationsMap(r.ctx, parts)
		}
	}
	r.ProcessEventStage(r.ctx, auditinternal.StageResponseComplete)
}

// slow is from when on an event tells where a request's time went.
const slow = 500 * time.Millisecond

// decided notes what authorization decided, and why.
func (r *recorder) decided(decision, reason string) {
	if r == nil {
		return
	}
	if decision != "" {
		audit.AddAuditAnnotation(r.ctx, "authorization.k8s.io/decision", decision)
	}
	audit.AddAuditAnnotation(r.ctx, "authorization.k8s.io/reason", reason)
}

// shows tells whether events show as much as that level does.
func (r *recorder) shows(level auditinternal.Level) bool { return r != nil && !r.level.Less(level) }

// request notes the object that came with a request. At a level that does not show it, its name is all that is noted.
func (r *recorder) request(o operation, obj runtime.Object) {
	if r == nil {
		return
	}
	gvr := o.resource.GVR(o.target.Version)
	if !r.shows(auditinternal.LevelRequest) {
		m, err := meta.Accessor(obj)
		if err != nil {
			return
		}
		named := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
			Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUID(), ResourceVersion: m.GetResourceVersion(),
		}}
		audit.LogRequestObject(r.ctx, named, o.kind.GroupVersion(), gvr, o.target.Subresource, unencoded{})
		return
	}
	codecs := runtime.NegotiatedSerializer(api.Codecs())
	if o.resource.Custom != nil && o.kind.Group == o.resource.Group {
		codecs = o.resource.Custom.Input
	}
	audit.LogRequestObject(r.ctx, obj, o.kind.GroupVersion(), gvr, o.target.Subresource, codecs)
}

// options notes the options of a deletion that came as its body.
func (r *recorder) options(o operation, opts *metav1.DeleteOptions) {
	if r.shows(auditinternal.LevelRequest) {
		audit.LogRequestObject(r.ctx, opts, schema.GroupVersion{Version: "v1"}, o.resource.GVR(o.target.Version), o.target.Subresource, api.Codecs())
	}
}

// patch notes a patch, which is JSON, or YAML that JSON can be made of.
func (r *recorder) patch(kind types.PatchType, body []byte) {
	if !r.shows(auditinternal.LevelRequest) {
		return
	}
	if kind == types.ApplyYAMLPatchType && !json.Valid(body) {
		converted, err := yaml.YAMLToJSON(body)
		if err != nil {
			return // it will be refused
		}
		body = converted
	}
	if json.Valid(body) {
		r.LogRequestPatch(body)
	}
}

// status notes a Status that is the answer.
func (r *recorder) status(status *metav1.Status) {
	if r == nil {
		return
	}
	if r.attempted != "" {
		told := *status
		told.Message = r.attempted // which says more
		status = &told
	}
	audit.LogResponseObject(r.ctx, status, schema.GroupVersion{Version: "v1"}, api.Codecs())
}

// response notes the answer, in JSON, which the recorder keeps.
func (r *recorder) response(text []byte) error {
	text = bytes.TrimSuffix(text, []byte("\n"))
	if r.omitFields {
		var err error
		if text, err = withoutManagedFields(text); err != nil {
			return err
		}
	}
	r.LogResponseObject(nil, &runtime.Unknown{Raw: text, ContentType: runtime.ContentTypeJSON})
	return nil
}

// withoutManagedFields is an object, list or table in JSON without the managed fields in it.
func withoutManagedFields(text []byte) ([]byte, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber() // what it does not touch stays as it is
	var object map[string]any
	if err := decoder.Decode(&object); err != nil {
		return nil, fmt.Errorf("leave managed fields out of an audit event: %w", err)
	}
	strip := func(object any) {
		if o, ok := object.(map[string]any); ok {
			if m, ok := o["metadata"].(map[string]any); ok {
				delete(m, "managedFields")
			}
		}
	}
	strip(object)
	for _, list := range []string{"items", "rows"} {
		items, _ := object[list].([]any)
		for _, item := range items {
			strip(item)
			if row, ok := item.(map[string]any); ok && list == "rows" {
				strip(row["object"])
			}
		}
	}
	return json.Marshal(object)
}

// unencoded is for what is not to be shown: it encodes nothing.
type unencoded struct{ runtime.NegotiatedSerializer }

func (unencoded) SupportedMediaTypes() []runtime.SerializerInfo {
	return []runtime.SerializerInfo{{MediaType: runtime.ContentTypeJSON}}
}

func (unencoded) EncoderForVersion(runtime.Encoder, runtime.GroupVersioner) runtime.Encoder {
	return nowhere{}
}

type nowhere struct{}

func (nowhere) Encode(runtime.Object, io.Writer) error { return nil }
func (nowhere) Identifier() runtime.Identifier         { return "nowhere" }

// answerWith writes an answer in the media type that was asked for, and notes it in JSON if the audit log shows it.
func (x *exchange) answerWith(code int, encode func(media) (wire.Body, error)) error {
	body, err := encode(x.media)
	if err != nil {
		return err
	}
	if x.audit.shows(auditinternal.LevelRequestResponse) {
		noted := body
		if x.media.encoding != wire.JSON {
			m := x.media
			m.encoding = wire.JSON
			if noted, err = encode(m); err != nil {
				return err
			}
		}
		if err := x.audit.response(noted.Bytes()); err != nil {
			return err
		}
	}
	return send(x.w, x.req, code, x.media, body)
}

// runAudit runs the audit log until the returned function is called, which returns when all events have been written. A
// server that stops does not wait for a webhook much longer than for requests: as long as it lives, nobody takes over what
// it did for the cluster.
func (s *Server) runAudit() (stop func(), err error) {
	log := s.cfg.Audit
	if log == nil {
		return func() {}, nil
	}
	end := make(chan struct{})
	if err := log.Backend.Run(end); err != nil {
		return nil, fmt.Errorf("run the audit log: %w", err)
	}
	patience := s.limits.Drain / 2
	// Requests may wait for the webhook themselves.
	context.AfterFunc(s.stopping, func() { time.AfterFunc(s.limits.Drain+patience, log.Abandon) })
	return func() {
		defer time.AfterFunc(patience, log.Abandon).Stop()
		close(end)
		log.Backend.Shutdown()
	}, nil
}
