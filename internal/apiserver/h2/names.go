package h2

import (
	"net/http"
	"strings"
)

// names are header fields that are usual here and that net/http has no table of, so that spelling them its way, and HTTP/2's way,
// takes no memory.
var names = []string{
	"Accept", "Accept-Encoding", "Accept-Ranges", "Audit-Id", "Cache-Control", "Content-Encoding", "Content-Length", "Content-Type",
	"Date", "Deprecation", "Etag", "Impersonate-User", "Kubectl-Command", "Kubectl-Session", "Last-Modified", "Location",
	"Retry-After", "Traceparent", "Vary", "Warning", "X-Content-Type-Options", "X-Forwarded-For",
	"X-Kubernetes-Pf-Flowschema-Uid", "X-Kubernetes-Pf-Prioritylevel-Uid", "X-Remote-User", "User-Agent", "Authorization",
}

// upper and lower are by the other spelling. They are not changed.
var upper, lower = spellings()

func spellings() (upper, lower map[string]string) {
	upper, lower = make(map[string]string, len(names)), make(map[string]string, len(names))
	for _, name := range names {
		low := strings.ToLower(name)
		upper[low], lower[name] = name, low
	}
	return upper, lower
}

// canonical spells a field's name as net/http does.
func canonical(name string) string {
	if known, ok := upper[name]; ok {
		return known
	}
	return http.CanonicalHeaderKey(name)
}

// lowered spells it as HTTP/2 does.
func lowered(key string) string {
	if known, ok := lower[key]; ok {
		return known
	}
	return strings.ToLower(key)
}
