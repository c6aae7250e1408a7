package apiserver

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metainternalversionscheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/handlers/negotiation"
	"k8s.io/apiserver/pkg/warning"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/nesting"
)

// options reads a request's query parameters into one of the kinds of options.
func options(req *http.Request, into runtime.Object) error {
	if req.URL.RawQuery == "" {
		return nil
	}
	if err := metainternalversionscheme.ParameterCodec.DecodeParameters(req.URL.Query(), metav1.SchemeGroupVersion, into); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	return nil
}

// listOptions reads the options of a list or watch. The name of a single object counts as a field selector.
func listOptions(req *http.Request, o operation) (*metainternalversion.ListOptions, error) {
	if err := checkSelector(o.info.LabelSelector); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	opts := &metainternalversion.ListOptions{}
	if err := options(req, opts); err != nil {
		return nil, err
	}
	opts.Watch = o.info.Verb == "watch"
	metainternalversion.SetListOptionsDefaults(opts, true)
	if o.info.Name == "" {
		return opts, nil
	}
	if opts.FieldSelector != nil && !opts.FieldSelector.Empty() {
		// RequestInfo takes the name from such a selector, too.
		if name, ok := opts.FieldSelector.RequiresExactMatch("metadata.name"); !ok || name != o.info.Name {
			return nil, apierrors.NewBadRequest("fieldSelector metadata.name doesn't match requested name")
		}
		return opts, nil
	}
	opts.FieldSelector = fields.OneTermEqualSelector("metadata.name", o.info.Name)
	return opts, nil
}

// body reads the request's body, up to the limit; 413 beyond.
func (x *exchange) body() ([]byte, error) {
	req, limit := x.req, x.server.limits.Body
	if req.Body == nil || req.Body == http.NoBody || req.ContentLength == 0 {
		return nil, nil
	}
	if req.ContentLength > limit {
		return nil, tooLarge(limit)
	}
	defer endReading(req.Context(), x.w)()
	var b []byte
	var err error
	limited := http.MaxBytesReader(x.w, req.Body, limit)
	if n := req.ContentLength; n > 0 {
		// What is announced gets its room once some of it has come.
		b = make([]byte, min(n, firstPart))
		if _, err = io.ReadFull(limited, b); err == nil && n > firstPart {
			b = append(b, make([]byte, n-firstPart)...)
			_, err = io.ReadFull(limited, b[firstPart:])
		}
	} else {
		b, err = io.ReadAll(limited)
	}
	var tooLong *http.MaxBytesError
	switch {
	case errors.As(err, &tooLong):
		return nil, tooLarge(limit)
	case err != nil && req.Context().Err() != nil:
		return nil, req.Context().Err()
	case err != nil:
		return nil, apierrors.NewBadRequest(fmt.Sprintf("read request body: %v", err))
	}
	return b, nil
}

// firstPart is how much of a request's body, in bytes, gets room on its sender's word.
const firstPart = 64 << 10

// endReading ends reading from a request's body when ctx ends, until the function that it returns is called: a slow sender must
// not hold a place for longer than its request may take. Not every connection has deadlines; those without are not the
// network's. One that is set in advance would cost each request of HTTP/2 a message to the goroutine of its connection.
func endReading(ctx context.Context, w http.ResponseWriter) (done func()) {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		_ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0))
	})
	return func() {
		if !stop() {
			<-ended // w must not be used when the request has been answered
		}
	}
}

func tooLarge(limit int64) error {
	return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("limit is %d", limit))
}

// own tells whether what is sent is of the custom resource's own kind.
func (x *exchange) own() bool { return x.resource.Custom != nil && x.kind.Group == x.resource.Group }

// input is what decodes a request's body; 415 if nothing does.
func (x *exchange) input() (runtime.SerializerInfo, error) {
	codecs := runtime.NegotiatedSerializer(api.Codecs())
	if x.own() {
		codecs = x.resource.Custom.Input
	}
	return negotiation.NegotiateInputSerializer(x.req, false, codecs)
}

// decode reads the object of a creation or update: of the operation's kind and version, defaulted. How
// unknown and repeated fields are treated is the directive's choice (KEP-2885).
func (x *exchange) decode(info runtime.SerializerInfo, directive string) (runtime.Object, error) {
	body, err := x.body()
	if err != nil {
		return nil, err
	}
	if err := checkNesting(info, body); err != nil {
		return nil, err
	}
	serializer := info.Serializer
	if directive != metav1.FieldValidationIgnore && info.StrictSerializer != nil {
		serializer = info.StrictSerializer
	}
	defaults := x.kind
	obj, gvk, err := serializer.Decode(body, &defaults, nil)
	strict, unclear := runtime.AsStrictDecodingError(err)
	unclear = unclear && obj != nil
	if err != nil && (!unclear || directive == metav1.FieldValidationStrict) {
		return nil, undecodable(err, gvk, x.kind, body)
	}
	if gvk.GroupVersion() != x.kind.GroupVersion() {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the API version in the data (%s) does not match the expected API version (%s)",
			gvk.GroupVersion(), x.kind.GroupVersion()))
	}
	if gvk.Kind != x.kind.Kind {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s", gvk.Kind, gvk.Version, x.kind.Kind))
	}
	if unclear {
		warnStrict(x.req.Context(), strict.Errors())
	}
	if x.own() {
		x.resource.Codec().Default(obj)
	} else {
		api.Scheme().Default(obj)
	}
	return obj, nil
}

// checkNesting refuses what would take a server's time and memory to complain about.
func checkNesting(info runtime.SerializerInfo, body []byte) error {
	var err error
	switch info.MediaType {
	case runtime.ContentTypeJSON:
		err = nesting.CheckJSON(body)
	case runtime.ContentTypeYAML:
		err = nesting.CheckYAML(body)
	}
	if err != nil {
		return apierrors.NewRequestEntityTooLargeError(err.Error())
	}
	return nil
}

// warnStrict turns what a strict decoder found into warnings.
func warnStrict(ctx context.Context, errs []error) {
	for _, err := range errs {
		warning.AddWarning(ctx, "", err.Error())
	}
}

func undecodable(err error, gvk *schema.GroupVersionKind, want schema.GroupVersionKind, body []byte) error {
	if gvk != nil && gvk.Kind != "" {
		return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", gvk.Kind, gvk.Version, want.Kind, err))
	}
	return apierrors.NewBadRequest(fmt.Sprintf("the object provided is unrecognized (must be of type %s): %v (%s)", want.Kind, err, summary(body)))
}

// summary shows the start of what could not be read: as text if it may be JSON, else in hexadecimal.
func summary(body []byte) string {
	const shown = 30
	cut, more := body, ""
	if len(body) > shown {
		cut, more = body[:shown], " ..."
	}
	switch {
	case len(body) == 0:
		return "<empty>"
	case body[0] == '{':
		return string(cut) + more
	}
	return hex.EncodeToString(cut) + more
}

// mediaTypeOf is a request's content type without parameters.
func mediaTypeOf(req *http.Request) string {
	v := req.Header.Get("Content-Type")
	if t, _, err := mime.ParseMediaType(v); err == nil {
		return t
	}
	return v
}
