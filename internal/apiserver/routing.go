package apiserver

import (
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The paths of built-in kinds are strict about media types: what has no exact name there, such as "application/*", is
// refused before anything else is looked at, parameters aside. Custom resources have no such rule.

var (
	objectTypes = []string{runtime.ContentTypeJSON, runtime.ContentTypeYAML, runtime.ContentTypeProtobuf}
	listTypes   = append(slices.Clone(objectTypes), runtime.ContentTypeJSON+";stream=watch", runtime.ContentTypeProtobuf+";stream=watch")
)

// routable refuses a request for a built-in kind whose media types none of its paths has.
func routable(req *http.Request, o operation) error {
	if o.resource.Custom != nil || o.sub != nil && o.sub.Connect {
		return nil
	}
	if req.Method == http.MethodPatch && !names(req.Header.Get("Content-Type"), patchTypes()) {
		return refused(http.StatusUnsupportedMediaType, "415: Unsupported Media Type")
	}
	if o.info.Verb == "list" || o.info.Verb == "watch" {
		return acceptable(req, listTypes)
	}
	return acceptable(req, objectTypes)
}

// acceptable refuses a request that accepts none of the types that there are.
func acceptable(req *http.Request, types []string) error {
	accept := req.Header.Get("Accept")
	if accept == "" || names(accept, objectTypes) || names(accept, []string{"*/*"}) {
		return nil
	}
	return refused(http.StatusNotAcceptable, "406: Not Acceptable\n\nAvailable representations: "+strings.Join(types, ", "))
}

// names tells whether a header names one of the types, whatever parameters it has.
func names(header string, types []string) bool {
	for rest, more := header, true; more; {
		var part string
		part, rest, more = strings.Cut(rest, ",")
		part, _, _ = strings.Cut(part, ";")
		if slices.Contains(types, strings.Trim(part, " ")) {
			return true
		}
	}
	return false
}

func refused(code int, message string) error {
	return apierrors.NewGenericServerResponse(code, "", schema.GroupResource{}, "", message, 0, false)
}
