package apiserver

import (
	"context"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/registry"
)

func (s *Server) get(w http.ResponseWriter, req *http.Request, o operation) {
	m, err := negotiate(req, objects{})
	if err != nil {
		s.fail(w, req, err)
		return
	}
	opts := &metav1.GetOptions{}
	if err := options(req, opts); err != nil {
		s.fail(w, req, err)
		return
	}
	result, err := s.registry.Get(req.Context(), o.target, opts)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	s.respond(w, req, http.StatusOK, m, o, result)
}

func (s *Server) list(w http.ResponseWriter, req *http.Request, o operation) {
	m, err := negotiate(req, objects{})
	if err != nil {
		s.fail(w, req, err)
		return
	}
	opts, err := listOptions(req, o)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	list, err := s.registry.List(req.Context(), o.target, opts)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	s.respondList(w, req, m, o, list)
}

// writeContext is the context of a write, which is recorded under the client's name.
func writeContext(req *http.Request) context.Context {
	return registry.WithUserAgent(req.Context(), req.UserAgent())
}

func (s *Server) create(w http.ResponseWriter, req *http.Request, o operation) {
	m, err := negotiate(req, objects{})
	if err != nil {
		s.fail(w, req, err)
		return
	}
	opts := &metav1.CreateOptions{}
	if err := options(req, opts); err != nil {
		s.fail(w, req, err)
		return
	}
	obj, err := s.decode(w, req, o, opts.FieldValidation)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	result, err := s.registry.Create(writeContext(req), o.target, obj, opts)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	s.respond(w, req, http.StatusCreated, m, o, result)
}

func (s *Server) update(w http.ResponseWriter, req *http.Request, o operation) {
	m, err := negotiate(req, objects{})
	if err != nil {
		s.fail(w, req, err)
		return
	}
	opts := &metav1.UpdateOptions{}
	if err := options(req, opts); err != nil {
		s.fail(w, req, err)
		return
	}
	obj, err := s.decode(w, req, o, opts.FieldValidation)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	accessor, err := meta.Accessor(obj)
	if err == nil {
		err = checkName(accessor, o)
	}
	if err != nil {
		s.fail(w, req, apierrors.NewBadRequest(err.Error()))
		return
	}
	result, created, err := s.registry.Update(writeContext(req), o.target, obj, opts)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	s.respond(w, req, createdOrOK(created), m, o, result)
}

// checkName compares the object of an update with the address that it was sent to.
func checkName(obj metav1.Object, o operation) error {
	if obj.GetName() == "" {
		obj.SetName(o.target.Name)
	}
	if obj.GetName() != o.target.Name {
		return fmt.Errorf("the name of the object (%s) does not match the name on the URL (%s)", obj.GetName(), o.target.Name)
	}
	if ns := obj.GetNamespace(); ns != "" && ns != o.target.Namespace {
		return fmt.Errorf("the namespace of the object (%s) does not match the namespace on the request (%s)", ns, o.target.Namespace)
	}
	return nil
}

func createdOrOK(created bool) int {
	if created {
		return http.StatusCreated
	}
	return http.StatusOK
}

// patchTypes are the kinds of patches that are understood.
func patchTypes() []string {
	return []string{string(types.JSONPatchType), string(types.MergePatchType), string(types.StrategicMergePatchType), string(types.ApplyYAMLPatchType)}
}

func (s *Server) patch(w http.ResponseWriter, req *http.Request, o operation) {
	m, err := negotiate(req, objects{})
	if err != nil {
		s.fail(w, req, err)
		return
	}
	kind, err := patchType(req)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	opts := &metav1.PatchOptions{}
	if err := options(req, opts); err != nil {
		s.fail(w, req, err)
		return
	}
	body, err := s.body(w, req)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	if kind != types.ApplyPatchType {
	}
	result, created, err := s.registry.Patch(writeContext(req), o.target, kind, body, opts)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	s.respond(w, req, createdOrOK(created), m, o, result)
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

// deleteOptions come in the body, or, when there is none, in the query.
func (s *Server) deleteOptions(w http.ResponseWriter, req *http.Request) (*metav1.DeleteOptions, error) {
	opts := &metav1.DeleteOptions{}
	body, err := s.body(w, req)
	if err != nil {
		return nil, err
	}
	if len(body) == 0 {
		if err := options(req, opts); err != nil {
			return nil, err
		}
	} else if err := decodeDeleteOptions(req, body, opts); err != nil {
		return nil, err
	}
	return opts, nil
}

func decodeDeleteOptions(req *http.Request, body []byte, opts *metav1.DeleteOptions) error {
	info, err := negotiation.NegotiateInputSerializer(req, false, api.Codecs())
	if err != nil {
		return err
	}
	// Clients send the kind in the version of the group they talk to, or in that of the kind itself: both are
	// one type.
	kind := metav1.Unversioned.WithKind("DeleteOptions")
	obj, _, err := info.Serializer.Decode(body, &kind, nil)
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	decoded, ok := obj.(*metav1.DeleteOptions)
	if !ok {
		return apierrors.NewBadRequest("decoded object cannot be converted to DeleteOptions")
	}
	*opts = *decoded
	return nil
}

func (s *Server) remove(w http.ResponseWriter, req *http.Request, o operation) {
	m, err := negotiate(req, objects{})
	if err != nil {
		s.fail(w, req, err)
		return
	}
	opts, err := s.deleteOptions(w, req)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	result, deleted, err := s.registry.Delete(req.Context(), o.target, opts)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	code := http.StatusOK
	//lint:ignore SA1019 clients that still set it expect this code
	if orphan := opts.OrphanDependents; !deleted && orphan != nil && !*orphan {
		code = http.StatusAccepted
	}
	s.respond(w, req, code, m, o, result)
}

func (s *Server) removeCollection(w http.ResponseWriter, req *http.Request, o operation) {
	m, err := negotiate(req, objects{})
	if err != nil {
		s.fail(w, req, err)
		return
	}
	selected, err := listOptions(req, o)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	opts, err := s.deleteOptions(w, req)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	result, err := s.registry.DeleteCollection(req.Context(), o.target, opts, selected)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	s.respond(w, req, http.StatusOK, m, o, result)
}
