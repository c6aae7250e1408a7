package h2

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// response is the http.ResponseWriter of a stream. As with net/http's, one goroutine uses it at a time.
type response struct {
	st     *stream
	header http.Header

	status int // 0 until it is known
	// fields are the header fields as they were when the status became known, until they are sent.
	fields *[]hpack.HeaderField
	// typed, encoded and dated tell what the header says: Content-Type, Content-Encoding and Date.
	typed, encoded, dated bool
	sent                  bool // the header is in the outlet; guarded by the connection's lock
	headSent              bool // the answer of a HEAD is; the handler's own
	// written is the length of the body so far, and declared what the header says it will be, or -1.
	written, declared int64
	trailers          []string // announced by the header
	buf               *[]byte  // of the body, not yet sent; nil when there is nothing
	done              bool
}

// gathered is how much of a body is gathered from small writes.
const gathered = smallBuffer

var fieldLists = sync.Pool{New: func() any { l := make([]hpack.HeaderField, 0, 16); return &l }}

func (r *response) init(st *stream) {
	r.st, r.header, r.declared = st, http.Header{}, -1
}

func (r *response) Header() http.Header { return r.header }

// bodyless tells whether a status goes without a body (RFC 9110, 6.4.1).
func bodyless(status int) bool {
	return status < 200 || status == http.StatusNoContent || status == http.StatusNotModified
}

func (r *response) head() bool { return r.st.request.Method == http.MethodHead }

func (r *response) WriteHeader(status int) {
	if status < 100 || status > 999 {
		panic(fmt.Sprintf("invalid WriteHeader code %v", status))
	}
	if r.status != 0 || r.done {
		return
	}
	if status < 200 {
		r.inform(status)
		return
	}
	r.status = status
	r.snapshot()
}

// snapshot keeps the header as it is: what handlers change later is not seen, trailers apart.
func (r *response) snapshot() {
	list := fieldLists.Get().(*[]hpack.HeaderField)
	r.fields = list
	for key, values := range r.header {
		switch key {
		case "Content-Length":
			if len(values) == 0 {
				continue
			}
			n, err := strconv.ParseUint(values[0], 10, 63)
			if err != nil {
				continue
			}
			r.declared = int64(n)
			values = values[:1]
		case "Connection":
			if len(values) > 0 && values[0] == "close" {
				r.st.c.retire()
			}
			continue
		case "Content-Type":
			r.typed = true // also if there is none in it: then none is wanted
		case "Content-Encoding":
			r.encoded = len(values) > 0 && values[0] != ""
		case "Date":
			r.dated = true
		case "Trailer":
			for _, v := range values {
				r.announce(v)
			}
		}
		*list = appendField(*list, key, values)
	}
}

// appendField adds what can be sent of a field.
func appendField(list []hpack.HeaderField, key string, values []string) []hpack.HeaderField {
	name := lowered(key)
	if !httpguts.ValidHeaderFieldName(name) {
		return list
	}
	for _, v := range values {
		if !httpguts.ValidHeaderFieldValue(v) || name == "transfer-encoding" && v != "trailers" {
			continue
		}
		list = append(list, hpack.HeaderField{Name: name, Value: v})
	}
	return list
}

func (r *response) announce(list string) {
	for name := range strings.SplitSeq(list, ",") {
		key := http.CanonicalHeaderKey(strings.TrimSpace(name))
		if httpguts.ValidTrailerHeader(key) && !slices.Contains(r.trailers, key) {
			r.trailers = append(r.trailers, key)
		}
	}
}

// inform sends an informational response.
func (r *response) inform(status int) {
	var fields []hpack.HeaderField
	for key, values := range r.header {
		if key != "Content-Length" && key != "Transfer-Encoding" {
			fields = appendField(fields, key, values)
		}
	}
	c := r.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !r.sent && c.out.admit(r.st) == nil {
		c.out.head(r.st.id, status, fields, false)
		c.out.flush()
	}
}

// invite asks the client to send the body that it waits with. The connection's lock is held.
func (r *response) invite() {
	if r.st.gone == nil && !r.sent {
		r.st.c.out.limit()
		r.st.c.out.head(r.st.id, http.StatusContinue, nil, false)
		r.st.c.out.kick()
	}
}

func (r *response) Write(p []byte) (int, error) {
	if r.done {
		return 0, errHandlerDone
	}
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	if bodyless(r.status) {
		return 0, http.ErrBodyNotAllowed
	}
	r.written += int64(len(p))
	if r.declared >= 0 && r.written > r.declared {
		return 0, http.ErrContentLength
	}
	if r.headSent || len(p) == 0 {
		return len(p), nil
	}
	if r.buf != nil && len(*r.buf)+len(p) > gathered {
		if err := r.send(*r.buf, false); err != nil {
			return 0, err
		}
		*r.buf = (*r.buf)[:0]
		if r.headSent {
			return len(p), nil
		}
	}
	if len(p) > gathered {
		if err := r.send(p, false); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	if r.buf == nil {
		r.buf = smallBuffers.Get().(*[]byte)
	}
	*r.buf = append(*r.buf, p...)
	return len(p), nil
}

func (r *response) WriteString(s string) (int, error) { return r.Write([]byte(s)) }

// send sends a part of the body, and what must come before it. The last part ends the stream; the part before trailers does not,
// and is the last one all the same.
func (r *response) send(p []byte, last bool) error { return r.sendPart(p, last, last) }

func (r *response) sendPart(p []byte, complete, last bool) error {
	st, c := r.st, r.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.out.admit(st); err != nil {
		return err
	}
	end := last && len(p) == 0 || r.head()
	if !r.sent {
		r.complete(p, complete)
		c.out.head(st.id, r.status, *r.fields, end)
		r.sent = true
		clear(*r.fields)
		*r.fields = (*r.fields)[:0]
		fieldLists.Put(r.fields)
		r.fields = nil
		if end {
			r.headSent = r.head()
			st.ended()
			c.out.flush()
			return nil
		}
	}
	if len(p) == 0 && !last {
		c.out.flush()
		return nil
	}
	return c.out.send(st, p, last)
}

// complete adds to the header what handlers leave to the server.
func (r *response) complete(p []byte, last bool) {
	list := *r.fields
	if r.declared < 0 && last && !bodyless(r.status) && (len(p) > 0 || !r.head()) {
		list = append(list, hpack.HeaderField{Name: "content-length", Value: strconv.Itoa(len(p))})
	}
	if !r.typed && !r.encoded && !bodyless(r.status) && len(p) > 0 {
		list = append(list, hpack.HeaderField{Name: "content-type", Value: http.DetectContentType(p)})
	}
	if !r.dated {
		list = append(list, hpack.HeaderField{Name: "date", Value: time.Now().UTC().Format(http.TimeFormat)})
	}
	*r.fields = list
}

// Flush sends what was written so far.
func (r *response) Flush() { _ = r.FlushError() }

// FlushError is Flush for http.ResponseController.
func (r *response) FlushError() error {
	if r.done {
		return errHandlerDone
	}
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	if r.buf == nil {
		return r.send(nil, false)
	}
	err := r.send(*r.buf, false)
	*r.buf = (*r.buf)[:0]
	return err
}

// finish is called when the handler has returned.
func (r *response) finish() {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	}
	r.done = true
	var rest []byte
	if r.buf != nil {
		rest = *r.buf
	}
	if trailers := r.finalFields(); len(trailers) > 0 && !r.head() {
		r.sendTrailers(rest, trailers)
	} else {
		_ = r.send(rest, true) // there is nobody to tell
	}
	r.release()
}

// release gives back what the response holds.
func (r *response) release() {
	if r.buf != nil {
		recycle(r.buf)
		r.buf = nil
	}
	if r.fields != nil {
		clear(*r.fields)
		*r.fields = (*r.fields)[:0]
		fieldLists.Put(r.fields)
		r.fields = nil
	}
}

// finalFields are the trailers: those that were announced, and those whose names have net/http's prefix.
func (r *response) finalFields() []hpack.HeaderField {
	var fields []hpack.HeaderField
	for _, key := range r.trailers {
		fields = appendField(fields, key, r.header[key])
	}
	for key, values := range r.header {
		if name, ok := strings.CutPrefix(key, http.TrailerPrefix); ok {
			if name = http.CanonicalHeaderKey(name); httpguts.ValidTrailerHeader(name) {
				fields = appendField(fields, name, values)
			}
		}
	}
	return fields
}

func (r *response) sendTrailers(rest []byte, trailers []hpack.HeaderField) {
	if err := r.sendPart(rest, true, false); err != nil {
		return
	}
	c := r.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out.admit(r.st) == nil {
		c.out.head(r.st.id, 0, trailers, true)
		r.st.ended()
		c.out.flush()
	}
}

// abort ends the stream so that the client sees that the response is not complete.
func (r *response) abort() {
	c := r.st.c
	c.mu.Lock()
	r.done = true
	if r.st.gone == nil {
		c.reset(r.st.id, http2.ErrCodeInternal, errHandlerDone)
		c.out.kick()
	}
	c.mu.Unlock()
	r.release()
}

// SetReadDeadline bounds the reading of the request's body, for http.ResponseController.
func (r *response) SetReadDeadline(at time.Time) error {
	st := r.st
	return st.limit(&st.readLimit, at, func() { st.body.end(os.ErrDeadlineExceeded) })
}

// SetWriteDeadline bounds the sending of the response. A stream that reaches it is reset.
func (r *response) SetWriteDeadline(at time.Time) error {
	st := r.st
	return st.limit(&st.writeLimit, at, func() {
		if st.gone == nil {
			st.c.reset(st.id, http2.ErrCodeInternal, os.ErrDeadlineExceeded)
			st.c.out.kick()
		}
	})
}

// EnableFullDuplex is how HTTP/2 is anyway.
func (r *response) EnableFullDuplex() error { return nil }

var errGone = errors.New("h2: no deadlines after the end")

// limit sets a timer that calls late, under the connection's lock, at a time; the zero time stops it.
func (st *stream) limit(timer **time.Timer, at time.Time, late func()) error {
	c := st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if st.gone != nil {
		return errGone
	}
	if *timer != nil {
		(*timer).Stop()
		*timer = nil
	}
	if at.IsZero() {
		return nil
	}
	var own *time.Timer
	own = time.AfterFunc(time.Until(at), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if *timer == own { // else another time was set meanwhile
			late()
		}
	})
	*timer = own
	return nil
}
