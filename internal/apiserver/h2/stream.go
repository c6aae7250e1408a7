package h2

import (
	"context"
	"errors"
	"io"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

var errLength = errors.New("h2: the body is not as long as was declared")

// stream is one request and its response. What is not said to be otherwise is guarded by the connection's lock.
type stream struct {
	c        *conn
	id       uint32 // immutable, as are handler and cancel, and request while there is a handler
	handler  http.Handler
	request  *http.Request
	cancel   context.CancelFunc
	response response // the handler's

	body    body
	trailer http.Header // of the request, by the names that it announced; nil if none
	// declared is the length of the request's body, -1 if it is not known, and arrived how much of it is here.
	declared, arrived int64
	// received is how much the client may send, and owed what was read of it and not yet given back.
	received, owed int
	remoteClosed   bool // the client has sent everything
	started        bool // it has a handler

	window                int64         // how much may be sent
	wake                  chan struct{} // nil when nobody has waited yet
	readLimit, writeLimit *time.Timer
	gone                  error // why the stream is no more; nil while it is
}

// ended notes that the response is complete: what the client may still have to say is of no interest.
func (st *stream) ended() {
	if !st.remoteClosed {
		st.c.out.reset(st.id, http2.ErrCodeNo)
	}
	st.c.closeStream(st, errHandlerDone)
}

func stack() []byte { return debug.Stack() }

// firstPart is how much of a body memory is taken for at least when it begins to arrive, in bytes.
const firstPart = 16 << 10

// body is a request's body as it arrives. Its lock is the connection's.
type body struct {
	st     *stream
	more   sync.Cond
	buf    []byte // buf[off:] is not read yet
	off    int
	err    error // what comes after buf; nil while more may come
	closed bool  // the handler wants no more
	expect bool  // the client waits for being asked to send
}

func (b *body) init(st *stream) {
	b.st = st
	b.more.L = &st.c.mu
}

func (b *body) Read(p []byte) (int, error) {
	c := b.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if b.expect {
		b.expect = false
		b.st.response.invite()
	}
	for {
		switch {
		case b.closed:
			return 0, errBodyClosed
		case b.off < len(b.buf):
			n := copy(p, b.buf[b.off:])
			if b.off += n; b.off == len(b.buf) {
				b.buf, b.off = b.buf[:0], 0
			}
			c.giveBack(b.st, n)
			return n, nil
		case b.err != nil:
			if errors.Is(b.err, io.EOF) {
				b.st.showTrailers()
			}
			return 0, b.err
		case len(p) == 0:
			return 0, nil
		}
		b.more.Wait()
	}
}

// Close makes the client stop waiting for what is not read.
func (b *body) Close() error {
	c := b.st.c
	c.mu.Lock()
	defer c.mu.Unlock()
	b.closed = true
	c.giveBack(b.st, b.discard())
	b.more.Broadcast()
	return nil
}

// add takes what arrived; false when nobody wants it. declared is how long the whole is, or -1.
func (b *body) add(data []byte, declared int64) bool {
	if b.closed || b.err != nil {
		return false
	}
	if b.buf == nil && declared > 0 {
		// A declaration alone must not cost a window's worth of memory.
		b.buf = make([]byte, 0, min(declared, max(firstPart, 4*int64(len(data)))))
	}
	if b.off > 0 && len(b.buf)+len(data) > cap(b.buf) {
		b.buf, b.off = b.buf[:copy(b.buf, b.buf[b.off:])], 0
	}
	b.buf = append(b.buf, data...)
	b.more.Broadcast()
	return true
}

// end says what comes after what has arrived; the first to say it is right.
func (b *body) end(err error) {
	if b.err == nil {
		b.err = err
		b.more.Broadcast()
	}
}

// discard drops what was not read, and returns how much that was.
func (b *body) discard() int {
	n := len(b.buf) - b.off
	b.buf, b.off = nil, 0
	return n
}

// showTrailers puts the request's trailers where the handler looks for them after the body.
func (st *stream) showTrailers() {
	for key, values := range st.trailer {
		if values != nil {
			st.request.Trailer[key] = values
		}
	}
}
