package auditlog

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/api"
	barqueclient "barque.dev/internal/client"
)

// Inside records what the server's own parts write through verbs, the scheduler and the controllers among them, as if
// they had asked for it over HTTP, which they don't. What they read is not recorded: they read the image.
func (l *Log) Inside(verbs barqueclient.Verbs) barqueclient.Verbs {
	if l == nil {
		return verbs
	}
	return inside{verbs, l}
}

type inside struct {
	verbs barqueclient.Verbs
	log   *Log
}

// entry is the event of one write; nil if the policy does not ask for it.
type entry struct {
	*audit.AuditContext
	ctx    context.Context
	level  auditinternal.Level
	target barqueclient.Target
	done   bool
}

// begin records that a write begins, and returns its context. An error says that it must not be done.
func (i inside) begin(ctx context.Context, verb string, t barqueclient.Target) (context.Context, *entry, error) {
	if audit.AuditContextFrom(ctx) != nil {
		return ctx, nil, nil // it is a part of a request that is recorded
	}
	who, ok := request.UserFrom(ctx)
	if !ok {
		who = &user.DefaultInfo{Name: user.APIServerUser, Groups: []string{user.SystemPrivilegedGroup}}
	}
	attributes := authorizer.AttributesRecord{
		User: who, Verb: verb, Namespace: t.Namespace, Name: t.Name, ResourceRequest: true, Path: pathOf(verb, t),
		APIGroup: t.Resource.Group, APIVersion: t.Resource.Version, Resource: t.Resource.Resource, Subresource: t.Subresource,
	}
	rule := i.log.Policy.EvaluatePolicyRule(attributes)
	audit.ObservePolicyLevel(ctx, rule.Level)
	if rule.Level == auditinternal.LevelNone {
		return ctx, nil, nil
	}
	ctx = audit.WithAuditContext(ctx)
	audit.WithAuditID(ctx, types.UID(uuid.NewString()))
	e := &entry{AuditContext: audit.AuditContextFrom(ctx), ctx: ctx, level: rule.Level, target: t}
	if err := e.Init(rule, i.log.Backend); err != nil {
		return ctx, nil, apierrors.NewInternalError(err)
	}
	req := &http.Request{URL: &url.URL{Path: attributes.Path}, Header: http.Header{"User-Agent": {"barque"}}, RemoteAddr: "127.0.0.1:0"}
	audit.LogRequestMetadata(ctx, req, time.Now(), attributes)
	if !e.ProcessEventStage(ctx, auditinternal.StageRequestReceived) {
		audit.ApiserverAuditDroppedCounter.WithContext(ctx).Inc()
		return ctx, nil, apierrors.NewInternalError(errors.New("failed to store audit event"))
	}
	return ctx, e, nil
}

// pathOf is where a write would go over HTTP.
func pathOf(verb string, t barqueclient.Target) string {
	parts := []string{"", "apis", t.Resource.Group, t.Resource.Version}
	if t.Resource.Group == "" {
		parts = []string{"", "api", t.Resource.Version}
	}
	if t.Namespace != "" {
		parts = append(parts, "namespaces", t.Namespace)
	}
	parts = append(parts, t.Resource.Resource)
	if t.Name != "" && (verb != "create" || t.Subresource != "") {
		parts = append(parts, t.Name)
	}
	if t.Subresource != "" {
		parts = append(parts, t.Subresource)
	}
	return strings.Join(parts, "/")
}

// request records an object that is to be written, if the policy asks for it.
func (e *entry) request(obj runtime.Object) {
	if e != nil && !e.level.Less(auditinternal.LevelRequest) {
		audit.LogRequestObject(e.ctx, obj, e.target.Resource.GroupVersion(), e.target.Resource, e.target.Subresource, api.Codecs())
	}
}

// end records what a write came to.
func (e *entry) end(code int, result runtime.Object, err error) {
	if e == nil {
		return
	}
	e.done = true
	gv := e.target.Resource.GroupVersion()
	var known apierrors.APIStatus
	switch {
	case errors.As(err, &known):
		status := known.Status()
		result, gv, code = &status, metav1.SchemeGroupVersion, int(status.Code)
	case err != nil:
		status := apierrors.NewInternalError(err).Status()
		result, gv, code = &status, metav1.SchemeGroupVersion, int(status.Code)
	}
	if result != nil {
		audit.LogResponseObject(e.ctx, result, gv, api.Codecs())
	}
	e.SetEventResponseStatusCode(int32(code))
	e.ProcessEventStage(e.ctx, auditinternal.StageResponseComplete)
}

// cut records a write that ended in a panic, which goes on.
func (e *entry) cut() {
	if e == nil || e.done {
		return
	}
	e.SetEventResponseStatus(&metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError})
	e.ProcessEventStage(e.ctx, auditinternal.StagePanic)
}

func (i inside) Create(ctx context.Context, t barqueclient.Target, obj runtime.Object, opts *client.CreateOptions) (runtime.Object, error) {
	ctx, e, err := i.begin(ctx, "create", t)
	if err != nil {
		return nil, err
	}
	defer e.cut()
	e.request(obj)
	result, err := i.verbs.Create(ctx, t, obj, opts)
	e.end(http.StatusCreated, result, err)
	return result, err
}

func (i inside) Update(ctx context.Context, t barqueclient.Target, obj runtime.Object, opts *client.UpdateOptions) (runtime.Object, error) {
	ctx, e, err := i.begin(ctx, "update", t)
	if err != nil {
		return nil, err
	}
	defer e.cut()
	e.request(obj)
	result, err := i.verbs.Update(ctx, t, obj, opts)
	e.end(http.StatusOK, result, err)
	return result, err
}

func (i inside) Patch(ctx context.Context, t barqueclient.Target, patch client.Patch, obj client.Object, opts *client.PatchOptions) (runtime.Object, error) {
	ctx, e, err := i.begin(ctx, "patch", t)
	if err != nil {
		return nil, err
	}
	defer e.cut()
	if e != nil && !e.level.Less(auditinternal.LevelRequest) {
		if body, err := patch.Data(obj); err == nil {
			e.LogRequestPatch(body)
		}
	}
	result, err := i.verbs.Patch(ctx, t, patch, obj, opts)
	e.end(http.StatusOK, result, err)
	return result, err
}

func (i inside) Delete(ctx context.Context, t barqueclient.Target, opts *client.DeleteOptions) error {
	ctx, e, err := i.begin(ctx, "delete", t)
	if err != nil {
		return err
	}
	defer e.cut()
	err = i.verbs.Delete(ctx, t, opts)
	e.end(http.StatusOK, nil, err)
	return err
}

func (i inside) DeleteAll(ctx context.Context, t barqueclient.Target, opts *client.DeleteAllOfOptions) error {
	ctx, e, err := i.begin(ctx, "deletecollection", t)
	if err != nil {
		return err
	}
	defer e.cut()
	err = i.verbs.DeleteAll(ctx, t, opts)
	e.end(http.StatusOK, nil, err)
	return err
}
