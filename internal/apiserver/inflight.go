package apiserver

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"k8s.io/apiserver/pkg/endpoints/request"
)

// inFlight counts the requests being answered, and turns away what is too much. Long-running requests
// are counted only to be waited for.
type inFlight struct {
	maxReads, maxWrites int64
	reads, writes       atomic.Int64
	all                 sync.WaitGroup
}

// admit takes a place for a request of the verb; false when there is none and the request is not
// privileged. release gives it back.
func (f *inFlight) admit(verb string, privileged bool) (release func(), ok bool) {
	n, limit := &f.writes, f.maxWrites
	switch verb {
	case "get", "list", "watch":
		n, limit = &f.reads, f.maxReads
	}
	if n.Add(1) > limit && !privileged {
		n.Add(-1)
		return nil, false
	}
	return func() { n.Add(-1) }, true
}

// wait returns when every request has been answered.
func (f *inFlight) wait() { f.all.Wait() }

// longRunning tells whether a request lasts as long as its client wants.
func longRunning(req *http.Request, info *request.RequestInfo) bool {
	if !info.IsResourceRequest {
		return strings.HasPrefix(info.Path, "/debug/pprof/")
	}
	switch info.Verb {
	case "watch", "proxy":
		return true
	}
	switch info.Subresource {
	case "attach", "exec", "proxy", "portforward":
		return true
	case "log":
		return req.Method == http.MethodGet
	}
	return false
}
