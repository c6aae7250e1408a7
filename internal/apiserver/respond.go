package apiserver

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/wire"
	"barque.dev/internal/store"
)

// gzipThreshold is the size in bytes from which responses are compressed for clients that take gzip. Below, the
// network is cheaper than the work (as in Kubernetes).
const gzipThreshold = 128 << 10

var gzipWriters = sync.Pool{New: func() any {
	w, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	if err != nil {
		panic(err) // the level is valid
	}
	return w
}}

// send writes a complete response.
func send(w http.ResponseWriter, req *http.Request, code int, m media, body wire.Body) error {
	h := w.Header()
	h.Set("Content-Type", m.contentType())
	switch {
	case m.yaml:
		text, err := yaml.JSONToYAML(body.Bytes())
		if err != nil {
			return err
		}
		return sendBytes(w, req, code, text)
	case m.pretty:
		var text bytes.Buffer
		if err := json.Indent(&text, bytes.TrimSuffix(body.Bytes(), []byte("\n")), "", "  "); err != nil {
			return err
		}
		return sendBytes(w, req, code, text.Bytes())
	}
	return sendSized(w, req, code, body.Size(), body)
}

func sendBytes(w http.ResponseWriter, req *http.Request, code int, b []byte) error {
	return sendSized(w, req, code, int64(len(b)), bytes.NewReader(b))
}

// sendSized writes size bytes of body, compressed where that pays.
func sendSized(w http.ResponseWriter, req *http.Request, code int, size int64, body io.WriterTo) error {
	h := w.Header()
	if size < gzipThreshold || !acceptsGzip(req) {
		h.Set("Content-Length", strconv.FormatInt(size, 10))
		w.WriteHeader(code)
		_, err := body.WriteTo(w)
		return err
	}
	h.Set("Content-Encoding", "gzip")
	h.Add("Vary", "Accept-Encoding")
	w.WriteHeader(code)
	z := gzipWriters.Get().(*gzip.Writer)
	defer gzipWriters.Put(z)
	z.Reset(w)
	if _, err := body.WriteTo(z); err != nil {
		return err
	}
	return z.Close()
}

func acceptsGzip(req *http.Request) bool {
	for _, v := range strings.Split(req.Header.Get("Accept-Encoding"), ",") {
		name, params, _ := strings.Cut(strings.TrimSpace(v), ";")
		if name == "gzip" && strings.TrimSpace(params) != "q=0" {
			return true
		}
	}
	return false
}

// sendObject writes obj, which has to be of kind.
func sendObject(w http.ResponseWriter, req *http.Request, code int, m media, obj runtime.Object, kind schema.GroupVersionKind) error {
	e := wire.NewEncoder(kind, m.encoding, nil)
	item, err := e.ItemOf(obj)
	if err != nil {
		return err
	}
	return send(w, req, code, m, e.Object(item))
}

// statusKind is the kind of every error.
var statusKind = schema.GroupVersionKind{Version: "v1", Kind: "Status"}

// fail writes err as a Status in whatever media type the client understands.
func (s *Server) fail(w http.ResponseWriter, req *http.Request, err error) {
	status := s.statusOf(req.Context(), err)
	if status.Details != nil && status.Details.RetryAfterSeconds > 0 && w.Header().Get("Retry-After") == "" {
		w.Header().Set("Retry-After", strconv.Itoa(int(status.Details.RetryAfterSeconds)))
	}
	if r, ok := w.(*response); ok && r.code != 0 {
		// The head is out already, so all that can be said is that the body is not complete.
		panic(http.ErrAbortHandler)
	}
	if apierrors.HasStatusCause(err, registry.CauseNoQuorum) {
		// The next attempt shall make a connection of its own, which may lead to a server that can answer.
		w.Header().Set("Connection", "close")
	}
	w.Header().Del("Content-Encoding")
	if r, ok := w.(*response); ok {
		r.audit.status(status)
	}
	if sendErr := sendObject(w, req, int(status.Code), negotiateError(req), status, statusKind); sendErr != nil {
		s.log.Debug("error not delivered", "error", err, "cause", sendErr)
	}
}

// end ends a request that err came of, which may be nil. What cannot be encoded is our fault; what cannot be written, as
// a rule, the client's.
func (s *Server) end(w http.ResponseWriter, req *http.Request, err error) {
	if err == nil {
		return
	}
	if r, ok := w.(*response); ok && r.code != 0 {
		s.log.Debug("response not delivered", "path", req.URL.Path, "error", err)
		return
	}
	s.fail(w, req, err)
}

// statusOf turns an error into what the API says about it. What is not an API error by itself is
// a fault of ours (500), unless it is the store's or the request's time that ran out.
func (s *Server) statusOf(ctx context.Context, err error) *metav1.Status {
	var known apierrors.APIStatus
	switch {
	case errors.As(err, &known):
	case errors.Is(err, store.ErrUnavailable):
		known = apierrors.NewServiceUnavailable(err.Error())
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		known = apierrors.NewTimeoutError("request did not complete within the allotted timeout", 0)
	default:
		s.log.ErrorContext(ctx, "internal error", "error", err)
		return &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusInternalServerError,
			Reason: metav1.StatusReasonUnknown, Message: err.Error()}
	}
	status := known.Status()
	if status.Status == "" {
		status.Status = metav1.StatusFailure
	}
	if status.Code == 0 {
		status.Code = http.StatusInternalServerError
	}
	return &status
}
