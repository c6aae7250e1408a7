package apiserver

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"

	"k8s.io/apiserver/pkg/endpoints/request"
)

// inFlight counts the requests being answered. Without priority and fairness it also turns away what is too much;
// long-running requests are then counted only to be waited for.
type inFlight struct {
	reads, writes inFlightKind
	all           sync.WaitGroup
}

// inFlightKind are those that read, or those that write.
type inFlightKind struct {
	max   int64
	count atomic.Int64
}

// kind is where requests of a verb are counted.
func (f *inFlight) kind(verb string) *inFlightKind {
	switch verb {
	case "get", "list", "watch":
		return &f.reads
	}
	return &f.writes
}

// enter takes a place; false when there is none and the request is not privileged.
func (k *inFlightKind) enter(privileged bool) bool {
	if k.count.Add(1) > k.max && !privileged {
		k.count.Add(-1)
		return false
	}
	return true
}

// leave gives the place back.
func (k *inFlightKind) leave() { k.count.Add(-1) }

// wait returns when every request has been answered.
func (f *inFlight) wait() { f.all.Wait() }

// LongPaths begins the paths, of those in Config.Paths, whose requests last as long as their clients want.
const LongPaths = "/barque/v1/long/"

// longRunning tells whether a request lasts as long as its client wants.
func longRunning(req *http.Request, info *request.RequestInfo) bool {
	if !info.IsResourceRequest {
		return strings.HasPrefix(info.Path, "/debug/pprof/") || strings.HasPrefix(info.Path, LongPaths)
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
