package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversionscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/warning"

	"barque.dev/internal/apiserver/registry"
)

// exchange is a request for objects that gets one answer, as opposed to a stream.
type exchange struct {
	operation
	server *Server
	w      http.ResponseWriter
	req    *http.Request
	media  media // of the answer
}

// A verb does what a request asks for. It writes nothing.
type verb func(*exchange) (answer, error)

// verbOf finds a verb by its name in authorization; nil if there is none.
func verbOf(name string) verb {
	switch name {
	case "get":
		return (*exchange).get
	case "list":
		return (*exchange).list
	case "create":
		return (*exchange).create
	case "update":
		return (*exchange).update
	case "patch":
		return (*exchange).patch
	case "delete":
		return (*exchange).remove
	case "deletecollection":
		return (*exchange).removeCollection
	}
	return nil
}

// serve has a verb done and writes what it came to.
func (s *Server) serve(w http.ResponseWriter, req *http.Request, o operation, do verb) error {
	m, err := negotiate(req, o.endpoint())
	if err != nil {
		return err
	}
	ctx, span := o.begin(req.Context(), verbSpan(o.info.Verb))
	if span.On() {
		span.Set(verbAttributes(req, o)...)
		req = req.WithContext(ctx)
	}
	x := &exchange{operation: o, server: s, w: w, req: req, media: m}
	a, err := do(x)
	if err == nil {
		_, writing := o.begin(ctx, "SerializeObject")
		err = x.respond(a)
		writing.End(err)
	}
	span.End(err)
	return err
}

func (x *exchange) get() (answer, error) {
	opts := &metav1.GetOptions{}
	if err := options(x.req, opts); err != nil {
		return answer{}, err
	}
	if err := notExported(x.req); err != nil {
		return answer{}, err
	}
	result, err := x.server.registry.Get(x.req.Context(), x.target, opts)
	if err == nil {
		x.server.warnIfStale(x.req.Context(), opts.ResourceVersion)
	}
	return answer{code: http.StatusOK, result: result}, err
}

// notExported refuses a parameter of old clients.
func notExported(req *http.Request) error {
	if !strings.Contains(req.URL.RawQuery, "export") {
		return nil
	}
	if export, err := strconv.ParseBool(req.URL.Query().Get("export")); err == nil && export {
		return apierrors.NewBadRequest("the export parameter, deprecated since v1.14, is no longer supported")
	}
	return nil
}

func (x *exchange) list() (answer, error) {
	opts, err := listOptions(x.req, x.operation)
	if err != nil {
		return answer{}, err
	}
	list, err := x.server.registry.List(x.req.Context(), x.target, opts)
	if err != nil {
		return answer{}, err
	}
	x.server.warnIfStale(x.req.Context(), opts.ResourceVersion)
	return answer{code: http.StatusOK, page: pageOf(list)}, nil
}

// warnIfStale marks an answer that did not have to be as new as possible, and can't be: this server has lost the others.
func (s *Server) warnIfStale(ctx context.Context, version string) {
	if version == "" {
		return // it is as new as possible, or there is no answer
	}
	if err := s.registry.Stale(); err != nil {
		warning.AddWarning(ctx, "", fmt.Sprintf("stale: this server can't tell whether there is anything newer (%v)", err))
	}
}

func (x *exchange) create() (answer, error) {
	opts := &metav1.CreateOptions{}
	obj, err := x.object(opts, &opts.FieldValidation, func() field.ErrorList { return metav1validation.ValidateCreateOptions(opts) })
	if err != nil {
		return answer{}, err
	}
	result, err := x.server.registry.Create(x.writeContext(), x.target, obj, opts)
	return answer{code: http.StatusCreated, result: result}, err
}

func (x *exchange) update() (answer, error) {
	opts := &metav1.UpdateOptions{}
	obj, err := x.object(opts, &opts.FieldValidation, func() field.ErrorList { return metav1validation.ValidateUpdateOptions(opts) })
	if err != nil {
		return answer{}, err
	}
	result, created, err := x.server.registry.Update(x.writeContext(), x.target, obj, opts)
	return answer{code: createdOrOK(created), result: result}, err
}

// object reads the options and the object of a creation or update, in this order: nobody is told what is wrong with an
// object that would not have been taken anyway. directive is the part of the options that says what to do about unknown
// fields, and validate tells what is wrong with them.
func (x *exchange) object(opts runtime.Object, directive *string, validate func() field.ErrorList) (runtime.Object, error) {
	info, err := x.input()
	if err != nil {
		return nil, err
	}
	if err := options(x.req, opts); err != nil {
		return nil, err
	}
	if errs := validate(); len(errs) > 0 {
		kind := "CreateOptions"
		if _, ok := opts.(*metav1.UpdateOptions); ok {
			kind = "UpdateOptions"
		}
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: kind}, "", errs)
	}
	obj, err := x.decode(info, *directive)
	if err == nil {
		x.audit.request(x.operation, obj)
	}
	return obj, err
}

// writeContext is the context of a write, which is recorded under the client's name.
func (x *exchange) writeContext() context.Context {
	return registry.WithUserAgent(x.req.Context(), x.req.UserAgent())
}

func createdOrOK(created bool) int {
	if created {
		return http.StatusCreated
	}
	return http.StatusOK
}

func (x *exchange) patch() (answer, error) {
	kind, err := patchType(x.req)
	if err != nil {
		return answer{}, err
	}
	opts := &metav1.PatchOptions{}
	if err := options(x.req, opts); err != nil {
		return answer{}, err
	}
	body, err := x.body()
	if err != nil {
		return answer{}, err
	}
	x.audit.patch(kind, body)
	result, created, err := x.server.registry.Patch(x.writeContext(), x.target, kind, body, opts)
	return answer{code: createdOrOK(created), result: result}, err
}

// patchTypes are the kinds of patches that are understood.
func patchTypes() []string {
	return []string{string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType), string(types.ApplyYAMLPatchType)}
}

func patchType(req *http.Request) (types.PatchType, error) {
	got := mediaTypeOf(req)
	for _, t := range patchTypes() {
		if got == t {
			return types.PatchType(t), nil
		}
	}
	return "", negotiation.NewUnsupportedMediaTypeError(patchTypes())
}

func (x *exchange) remove() (answer, error) {
	opts, err := x.deleteOptions()
	if err != nil {
		return answer{}, err
	}
	if registry.IgnoresReadErrors(opts) {
		if err := x.authorizeUnsafeDelete(opts); err != nil {
			return answer{}, err
		}
	}
	result, deleted, err := x.server.registry.Delete(x.req.Context(), x.target, opts)
	code := http.StatusOK
	//lint:ignore SA1019 clients that still set it expect this code
	if orphan := opts.OrphanDependents; !deleted && orphan != nil && !*orphan {
		code = http.StatusAccepted
	}
	return answer{code: code, result: result}, err
}

func (x *exchange) removeCollection() (answer, error) {
	selected, err := listOptions(x.req, x.operation)
	if err != nil {
		return answer{}, err
	}
	opts, err := x.deleteOptions()
	if err != nil {
		return answer{}, err
	}
	result, err := x.server.registry.DeleteCollection(x.req.Context(), x.target, opts, selected)
	return answer{code: http.StatusOK, result: result}, err
}

// deleteOptions come in the body, or, when there is none, in the query.
func (x *exchange) deleteOptions() (*metav1.DeleteOptions, error) {
	body, err := x.body()
	if err != nil {
		return nil, err
	}
	if len(body) > 0 {
		opts, err := decodeDeleteOptions(x.req, body)
		if err == nil {
			x.audit.options(x.operation, opts)
		}
		return opts, err
	}
	opts := &metav1.DeleteOptions{}
	return opts, options(x.req, opts)
}

func decodeDeleteOptions(req *http.Request, body []byte) (*metav1.DeleteOptions, error) {
	// Clients send the kind in the version of the group they talk to, be it a custom resource's, or in that of the kind
	// itself. To this scheme all are one type.
	info, err := negotiation.NegotiateInputSerializer(req, false, metainternalversionscheme.Codecs)
	if err != nil {
		return nil, err
	}
	kind := metav1.Unversioned.WithKind("DeleteOptions")
	obj, _, err := info.Serializer.Decode(body, &kind, nil)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	opts, ok := obj.(*metav1.DeleteOptions)
	if !ok {
		return nil, apierrors.NewBadRequest("decoded object cannot be converted to DeleteOptions")
	}
	return opts, nil
}
