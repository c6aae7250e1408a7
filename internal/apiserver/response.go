package apiserver

import (
	"bufio"
	"net"
	"net/http"
	"sync"
	"time"

	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// response notes what a handler answered, for metrics and logs. A code of 0 says that nothing has
// been answered yet.
type response struct {
	http.ResponseWriter
	code  int
	bytes int64
	audit *recorder // nil when nothing is to be recorded
	// patience is how long the client may take to receive what is not sent at once; 0 for as long as it likes.
	patience time.Duration
	limited  bool // it has begun to count
}

// held is how much of an answer, in bytes, net/http keeps until its handler has ended. For the rest a handler waits, and
// with it the request's seat, until the client takes it.
const held = 4 << 10

func (r *response) WriteHeader(code int) {
	if r.code == 0 || r.code < 200 {
		r.code = code
	}
	if r.audit != nil && (code >= 200 || code == http.StatusSwitchingProtocols) {
		r.audit.begin(code)
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *response) Write(b []byte) (int, error) {
	r.begin(http.StatusOK)
	if r.patience > 0 && !r.limited && r.bytes+int64(len(b)) > held {
		r.limited = true
		_ = http.NewResponseController(r.ResponseWriter).SetWriteDeadline(time.Now().Add(r.patience)) // not every connection has them
	}
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

// begin notes that an answer begins whose code was not given.
func (r *response) begin(code int) {
	if r.code != 0 {
		return
	}
	r.code = code
	if r.audit != nil {
		r.audit.begin(code)
	}
}

// done gives the next answer on the same connection, which one of HTTP/1 has, a time of its own.
func (r *response) done() {
	if r.limited {
		_ = http.NewResponseController(r.ResponseWriter).SetWriteDeadline(time.Time{})
	}
}

// Flush sends what has been written so far.
func (r *response) Flush() { _ = r.FlushError() } // fails when the connection has, as the next write will

// FlushError is Flush for who wants to know at once.
func (r *response) FlushError() error {
	r.begin(http.StatusOK)
	return http.NewResponseController(r.ResponseWriter).Flush()
}

// Hijack hands the connection over to a stream that is not HTTP any more.
func (r *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(r.ResponseWriter).Hijack()
	if err == nil {
		r.begin(http.StatusSwitchingProtocols)
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
