package fairness

import (
	"math"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
)

const (
	// maxWidth bounds the seats of one request, whatever it is for.
	maxWidth = 10
	// objectsPerSeat is how many objects a list may go through for each seat that it takes, as upstream has it.
	objectsPerSeat = 100
	// watcherTime is what an event costs for each watcher. It is encoded once for all, so that what is left is to write
	// it; upstream, which does more, reckons with half a millisecond.
	watcherTime = 20 * time.Microsecond
	// watchersPerSeat is how many watchers are served by one seat.
	watchersPerSeat = 50
)

// estimator says what requests will cost.
type estimator struct {
	objects func(schema.GroupResource) int
	watches watches
}

// estimate says how many seats a request takes; width bounds them.
func (e *estimator) estimate(info *request.RequestInfo, query string, width int) estimate {
	if !info.IsResourceRequest {
		return estimate{initial: 1}
	}
	switch info.Verb {
	case "list", "watch":
		return estimate{initial: e.reading(info, query, width)}
	case "create", "update", "patch", "delete":
		if info.Resource == "serviceaccounts" && info.Subresource == "token" {
			return estimate{initial: 1} // which changes nothing that anybody watches
		}
		out := estimate{initial: 1, mutating: true, watchers: e.watches.interested(info)}
		if out.watchers >= watchersPerSeat {
			out.final = (out.watchers + watchersPerSeat - 1) / watchersPerSeat
			work := time.Duration(out.watchers) * watcherTime
			out.final = min(out.final, width)
			out.linger = work / time.Duration(out.final)
		}
		return out
	}
	return estimate{initial: 1}
}

// reading is how many seats a list, or a watch that begins with one, takes.
func (e *estimator) reading(info *request.RequestInfo, query string, width int) int {
	if info.Name != "" {
		return 1
	}
	objects := e.objects(schema.GroupResource{Group: info.APIGroup, Resource: info.Resource})
	if objects <= objectsPerSeat {
		return 1 // whatever it asks for
	}
	if query != "" {
		objects = selected(info.Verb, query, objects)
	}
	return min(width, max(1, int(math.Ceil(float64(objects)/objectsPerSeat))))
}

// selected is how many of so many objects a request with that query goes through.
func selected(verb, query string, objects int) int {
	values, err := url.ParseQuery(query)
	if err != nil {
		return 1 // it will be refused
	}
	if verb == "watch" {
		initial, _ := strconv.ParseBool(values.Get("sendInitialEvents"))
		if v := values.Get("resourceVersion"); !initial && v != "" && v != "0" {
			return 1 // it goes on from where it was
		}
		return objects
	}
	limit, err := strconv.Atoi(values.Get("limit"))
	if err == nil && limit > 0 && values.Get("labelSelector") == "" && values.Get("fieldSelector") == "" {
		return min(limit, objects)
	}
	return objects
}

// watches counts who watches what, so that it is known how many an event is for. What nobody watches is forgotten: it is
// counted before it is known whether there is such a resource.
type watches struct {
	resources sync.Map   // schema.GroupResource to *watchers
	mu        sync.Mutex // held while resources and users of watchers change
}

// watchers are those of one resource.
type watchers struct {
	users int          // watches that are under way, all kinds together
	all   atomic.Int64 // of every object
	some  atomic.Int64 // of those in a namespace or of a name
	mu    sync.Mutex
	of    map[watched]int // by what the latter watch
}

type watched struct{ namespace, name string }

// add counts a watch until the returned function is called. Watches of the pods of a node see few of what happens to
// pods, and are not counted; query tells.
func (w *watches) add(info *request.RequestInfo, query string) (forget func()) {
	if info.Resource == "pods" && info.APIGroup == "" && strings.Contains(query, "spec.nodeName") {
		return func() {}
	}
	gr, what := schema.GroupResource{Group: info.APIGroup, Resource: info.Resource}, watched{info.Namespace, info.Name}
	ws := w.enter(gr)
	if what == (watched{}) {
		ws.all.Add(1)
		return func() { ws.all.Add(-1); w.leave(gr, ws) }
	}
	ws.change(what, 1)
	return func() { ws.change(what, -1); w.leave(gr, ws) }
}

// enter finds the watchers of a resource for one more of them, who has to leave.
func (w *watches) enter(gr schema.GroupResource) *watchers {
	w.mu.Lock()
	defer w.mu.Unlock()
	v, _ := w.resources.LoadOrStore(gr, &watchers{of: map[watched]int{}})
	ws := v.(*watchers)
	ws.users++
	return ws
}

func (w *watches) leave(gr schema.GroupResource, ws *watchers) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if ws.users--; ws.users == 0 {
		w.resources.Delete(gr)
	}
}

func (ws *watchers) change(what watched, by int) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.some.Add(int64(by))
	if ws.of[what] += by; ws.of[what] == 0 {
		delete(ws.of, what)
	}
}

// interested is how many watch what a request changes.
func (w *watches) interested(info *request.RequestInfo) int {
	v, ok := w.resources.Load(schema.GroupResource{Group: info.APIGroup, Resource: info.Resource})
	if !ok {
		return 0
	}
	ws := v.(*watchers)
	n := int(ws.all.Load())
	if ws.some.Load() == 0 {
		return n
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if info.Namespace != "" {
		n += ws.of[watched{namespace: info.Namespace}]
	}
	if info.Name != "" {
		n += ws.of[watched{info.Namespace, info.Name}]
		if info.Namespace != "" {
			n += ws.of[watched{name: info.Name}] // by a field selector, over all namespaces
		}
	}
	return n
}
