package apiserver

import (
	"context"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"

	"barque.dev/internal/api"
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
	x := &exchange{operation: o, server: s, w: w, req: req, media: m}
	a, err := do(x)
	if err != nil {
		return err
	}
	return x.respond(a)
}

func (x *exchange) get() (answer, error) {
	opts := &metav1.GetOptions{}
	if err := options(x.req, opts); err != nil {
		return answer{}, err
	}
	result, err := x.server.registry.Get(x.req.Context(), x.target, opts)
	return answer{code: http.StatusOK, result: result}, err
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
	return answer{code: http.StatusOK, page: pageOf(list)}, nil
}

func (x *exchange) create() (answer, error) {
	opts := &metav1.CreateOptions{}
	obj, err := x.object(opts, &opts.FieldValidation)
	if err != nil {
		return answer{}, err
	}
	result, err := x.server.registry.Create(x.writeContext(), x.target, obj, opts)
	return answer{code: http.StatusCreated, result: result}, err
}

func (x *exchange) update() (answer, error) {
	opts := &metav1.UpdateOptions{}
	obj, err := x.object(opts, &opts.FieldValidation)
	if err != nil {
		return answer{}, err
	}
	result, created, err := x.server.registry.Update(x.writeContext(), x.target, obj, opts)
	return answer{code: createdOrOK(created), result: result}, err
}

// object reads the options and the object of a creation or update. directive is the part of the options that says what
// to do about unknown fields.
func (x *exchange) object(opts runtime.Object, directive *string) (runtime.Object, error) {
	if err := options(x.req, opts); err != nil {
		return nil, err
	}
	return x.decode(*directive)
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
		return decodeDeleteOptions(x.req, body)
	}
	opts := &metav1.DeleteOptions{}
	return opts, options(x.req, opts)
}

func decodeDeleteOptions(req *http.Request, body []byte) (*metav1.DeleteOptions, error) {
	info, err := negotiation.NegotiateInputSerializer(req, false, api.Codecs())
	if err != nil {
		return nil, err
	}
	// Clients send the kind in the version of the group they talk to, or in that of the kind itself: both are
	// one type.
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
