package apiserver

import (
	"bufio"
	"net"
	"net/http"
	"sync"

	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// response notes what a handler answered, for metrics and logs. A code of 0 says that nothing has
// been answered yet.
type response struct {
	http.ResponseWriter
	code  int
	bytes int64
}

func (r *response) WriteHeader(code int) {
	if r.code == 0 || r.code < 200 {
		r.code = code
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *response) Write(b []byte) (int, error) {
	if r.code == 0 {
		r.code = http.StatusOK
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

// Flush sends what has been written so far.
func (r *response) Flush() {
	if r.code == 0 {
		r.code = http.StatusOK
	}
	_ = http.NewResponseController(r.ResponseWriter).Flush() // fails when the connection has, as the next write will
}

// Hijack hands the connection over to a stream that is not HTTP any more.
func (r *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(r.ResponseWriter).Hijack()
	if err == nil && r.code == 0 {
		r.code = http.StatusSwitchingProtocols
	}
	return conn, buffered, err
}

// Unwrap lets http.ResponseController find the original.
func (r *response) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// Bounds on warnings, all in bytes: of one, and of all together. Headers are limited, and long
// warnings are not read.
const (
	maxWarning  = 256
	maxWarnings = 4 << 10
)

// warnings adds Warning headers to a response as rules and admission find something to warn about. It
// implements warning.Recorder.
type warnings struct {
	mu     sync.Mutex
	header http.Header
	seen   map[string]bool
	length int
}

func (r *warnings) AddWarning(agent, text string) {
	if text == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[text] {
		return
	}
	if r.seen == nil {
		r.seen = map[string]bool{}
	}
	r.seen[text] = true
	shown := text
	if r.length+len(shown) > maxWarnings {
		shown = shown[:min(len(shown), maxWarning)]
		if r.length+len(shown) > maxWarnings {
			return
		}
	}
	if agent == "" {
		agent = "-"
	}
	value, err := utilnet.NewWarningHeader(299, agent, shown)
	if err != nil {
		return // not expressible in a header
	}
	r.length += len(shown)
	r.header.Add("Warning", value)
}
