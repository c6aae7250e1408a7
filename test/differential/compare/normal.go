// Package compare tells whether two servers have answered the same requests alike.
//
// What no two servers can have in common is replaced first, so that what must be the same is: a uid, for one, is
// called after the request whose answer it came with first.
package compare

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"barque.dev/test/differential/stream"
	"barque.dev/test/differential/wire"
)

// Answer is what a server said.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	// Failed says why there is no answer.
	Failed string
}

// Normal is an answer without what differs between servers anyway: nested maps, lists and scalars.
type Normal map[string]any

// Names are what one server's answers have called things so far. It is for one goroutine.
type Names struct {
	address string // of the server
	now     time.Time
	known   map[string]string
	// suffixes are of generated names.
	suffixes []string
}

// NewNames makes one of a server at host:port.
func NewNames(address string, now time.Time) *Names {
	return &Names{address: address, now: now, known: map[string]string{}}
}

var (
	uid       = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)
	moment    = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`)
	jwt       = regexp.MustCompile(`eyJ[\w-]+\.[\w-]+\.[\w-]+`)
	serviceIP = regexp.MustCompile(`\b10\.43\.\d{1,3}\.\d{1,3}\b`)
	// serverRange also has what streams make ServiceCIDRs of.
	serverRange = regexp.MustCompile(`^10\.(43|1\d\d)\.\d{1,3}\.\d{1,3}$`)
	cellPort    = regexp.MustCompile(`:3[0-2]\d{3}/`)
	age         = regexp.MustCompile(`^((\d+m)?\d+s|\d+m)$`)
	hash        = regexp.MustCompile(`hash=[0-9A-F]+`)
	version     = regexp.MustCompile(`[(: ]\d+[),]?`)
	quoted      = regexp.MustCompile(`(resourceVersion\\*":\\*")\d+`)
	mount       = regexp.MustCompile(`kube-api-access-[a-z0-9]{5}`)
	generateIn  = regexp.MustCompile(`"generateName":"([^"]+)"`)
)

// compared are the headers that matter: by value, and by presence where the value is the server's own.
var (
	compared = []string{"Content-Type", "Warning", "Cache-Control", "Retry-After", "Allow", "Content-Encoding", "Location", "X-Content-Type-Options", "Www-Authenticate", "Vary"}
	present  = []string{"Audit-Id", "Etag"}
)

// Normalize brings the next answer into its comparable form.
func (n *Names) Normalize(req stream.Request, a Answer) Normal {
	if a.Failed != "" {
		return Normal{"failed": n.text(req, a.Failed)}
	}
	out := Normal{"status": a.Status}
	for _, name := range compared {
		if values := a.Header.Values(name); len(values) > 0 {
			list := make([]any, len(values))
			for i, v := range values {
				list[i] = n.text(req, v)
			}
			out["header "+name] = list
		}
	}
	for _, name := range present {
		if a.Header.Get(name) != "" {
			out["header "+name] = "is there"
		}
	}
	body, err := Body(a)
	if err != nil {
		out["body"] = fmt.Sprintf("not what its type says: %v: %q", err, a.Body[:min(len(a.Body), 200)])
		return out
	}
	n.generated(req, body)
	if object, ok := body.(map[string]any); ok && req.Rivals {
		// What winners see of each other is a matter of moments.
		body = map[string]any{"kind": object["kind"], "reason": object["reason"], "message": object["message"]}
	}
	out["body"] = n.value(req, "", nil, body)
	if strings.HasPrefix(a.Header.Get("Content-Type"), "application/json") {
		out["indented"] = bytes.Contains(a.Body, []byte("\n  "))
	}
	return out
}

// generated remembers the end of a name that the server has made.
func (n *Names) generated(req stream.Request, body any) {
	prefix := generateIn.FindSubmatch(req.Body)
	object, ok := body.(map[string]any)
	if prefix == nil || !ok {
		return
	}
	meta, _ := object["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	if details, ok := object["details"].(map[string]any); ok && name == "" {
		name, _ = details["name"].(string)
	}
	if len(name) > 5 {
		n.suffixes = append(n.suffixes, name[len(name)-5:])
	}
}

// call names what was seen before, or is seen now for the first time.
func (n *Names) call(kind string, req stream.Request, text string) string {
	if req.Rivals {
		return kind
	}
	// What a creation draws may have been somebody's who is gone.
	drawn := req.Method == http.MethodPost && (kind == "ip" || kind == "port")
	if n.known[kind+text] == "" || drawn {
		n.known[kind+text] = fmt.Sprintf("%s of %d", kind, req.ID)
	}
	return n.known[kind+text]
}

// text replaces what is in a string.
func (n *Names) text(req stream.Request, s string) string {
	s = strings.ReplaceAll(s, n.address, "server")
	s = uid.ReplaceAllStringFunc(s, func(m string) string { return n.call("uid", req, m) })
	s = moment.ReplaceAllStringFunc(s, func(m string) string {
		t, err := time.Parse(time.RFC3339Nano, m)
		if err != nil || t.Sub(n.now).Abs() > 36*time.Hour {
			return m
		}
		if strings.Contains(m, ".") {
			return "microtime"
		}
		return "time"
	})
	s = jwt.ReplaceAllString(s, "jwt")
	s = serviceIP.ReplaceAllStringFunc(s, func(m string) string {
		if bytes.Contains(req.Body, []byte(m)) || strings.Contains(req.Path, m) {
			return m
		}
		return n.call("ip", req, m)
	})
	s = hash.ReplaceAllString(s, "hash=")
	s = mount.ReplaceAllString(s, "kube-api-access")
	s = quoted.ReplaceAllString(s, "${1}version")
	for _, suffix := range n.suffixes {
		s = strings.ReplaceAll(s, suffix, "-generated")
	}
	if strings.Contains(strings.ToLower(s), "resource version") || strings.Contains(s, "ResourceVersion") {
		s = version.ReplaceAllStringFunc(s, func(m string) string {
			number := strings.Trim(m, "(:,) ")
			if name := n.known["version"+number]; name != "" {
				return strings.Replace(m, number, name, 1)
			}
			return m
		})
	}
	return s
}

// value replaces what is in a body. The path is that of the value's parents.
func (n *Names) value(req stream.Request, key string, path []string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		if v["type"] == "BOOKMARK" {
			v = initial(v)
		}
		out := make(map[string]any, len(v))
		// Metadata comes first: what is called by it is also in messages.
		keys := slices.SortedFunc(maps.Keys(v), func(a, b string) int {
			return cmp.Or(-cmp.Compare(btoi(a == "metadata"), btoi(b == "metadata")), strings.Compare(a, b))
		})
		for _, k := range keys {
			child := v[k]
			if k == "" {
				out[k] = child
				continue
			}
			if k == "resourceVersion" {
				out[k] = n.revision(req, v, path, child)
				continue
			}
			out[n.text(req, k)] = n.value(req, k, append(path[:len(path):len(path)], key), child)
		}
		return out
	case []any:
		out := make([]any, 0, len(v))
		for _, child := range v {
			if !bookmark(child) {
				out = append(out, n.value(req, key, append(path[:len(path):len(path)], key), child))
			}
		}
		if key == "managedFields" {
			// They are ordered by time, to the second.
			slices.SortStableFunc(out, func(a, b any) int { return strings.Compare(owner(a), owner(b)) })
		}
		if key == "causes" || key == "nonResourceRules" || key == "resourceRules" {
			// Conflicts of field managers come in any order, as do the rules of a user.
			slices.SortStableFunc(out, func(a, b any) int { return strings.Compare(Text(a), Text(b)) })
		}
		return out
	case string:
		if key == "continue" && v != "" {
			return "continue"
		}
		if (key == "clusterIP" || key == "clusterIPs") && serverRange.MatchString(v) && !bytes.Contains(req.Body, []byte(v)) {
			return n.call("ip", req, v)
		}
		if key == "cells" {
			v = cellPort.ReplaceAllString(v, ":port/")
			if age.MatchString(v) {
				return "age"
			}
		}
		return n.text(req, v)
	}
	if number, err := strconv.Atoi(fmt.Sprint(v)); err == nil && (key == "nodePort" || key == "healthCheckNodePort") && number >= 30000 && number < 33000 {
		if text := strconv.Itoa(number); !bytes.Contains(req.Body, []byte(text)) {
			return n.call("port", req, text)
		}
	}
	return v
}

// revision is an object's, by its first appearance; that of lists may be any.
func (n *Names) revision(req stream.Request, meta map[string]any, path []string, v any) any {
	text, ok := v.(string)
	if !ok || text == "" || text == "0" {
		return v
	}
	if meta["name"] == nil && meta["uid"] == nil {
		return "version"
	}
	if u, err := url.Parse(req.Path); err == nil && slices.Contains(path, "$documents") && u.Query().Get("watch") == "" {
		return "version"
	}
	// Objects that one transaction wrote have one version, so that it is each object's own matter.
	name := n.call("version", req, fmt.Sprint(meta["uid"], " ", text))
	if !req.Rivals {
		n.known["version"+text] = name
	}
	return name
}

// owner is what tells entries of managed fields apart.
func owner(v any) string {
	entry, _ := v.(map[string]any)
	return fmt.Sprint(entry["manager"], entry["operation"], entry["subresource"], entry["apiVersion"])
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// initial is the event that ends the initial ones, as far as it says something.
func initial(event map[string]any) map[string]any {
	object, _ := event["object"].(map[string]any)
	meta, _ := object["metadata"].(map[string]any)
	annotations, _ := meta["annotations"].(map[string]any)
	return map[string]any{"type": event["type"], "end": annotations["k8s.io/initial-events-end"]}
}

// bookmark tells of events that come when a server likes; the end of initial events is none of them.
func bookmark(v any) bool {
	event, _ := v.(map[string]any)
	if event["type"] != "BOOKMARK" {
		return false
	}
	object, _ := event["object"].(map[string]any)
	meta, _ := object["metadata"].(map[string]any)
	return meta["annotations"] == nil
}

// Body is what an answer's body says.
func Body(a Answer) (any, error) { return wire.Value(a.Header.Get("Content-Type"), a.Body) }
