package h2

import (
	"net"
	"sync"
)

// batch is how many bytes of frames are gathered before they are written: four TLS records.
const batch = 4 * record

// record is the longest plaintext of a TLS record (RFC 8446, 5.1).
const record = 16 << 10

// heldSize has room for a batch that is encrypted.
const heldSize = batch + batch/8

// A holder is a connection below TLS that can hold back what is written. *Batched is one, and what embeds it.
type holder interface {
	hold()
	release() error
}

// Batched is a connection below TLS, whose records can be held back and written together: crypto/tls writes each of them by
// a system call of its own. It is safe for concurrent use as far as the connection is.
type Batched struct {
	net.Conn

	mu      sync.Mutex
	holding bool
	held    *[]byte
}

// NewBatched returns conn, holding nothing back.
func NewBatched(conn net.Conn) *Batched { return &Batched{Conn: conn} }

var heldBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, heldSize)
	return &b
}}

// hold keeps what is written from now on, until release.
func (b *Batched) hold() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holding = true
}

// release writes what was held back, and all that comes after it at once.
func (b *Batched) release() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holding = false
	return b.flush()
}

// flush writes what is held. The lock is held meanwhile, so that records stay in order.
func (b *Batched) flush() error {
	if b.held == nil {
		return nil
	}
	_, err := b.Conn.Write(*b.held)
	*b.held = (*b.held)[:0]
	heldBuffers.Put(b.held)
	b.held = nil
	return err
}

func (b *Batched) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.holding {
		return b.Conn.Write(p)
	}
	if b.held == nil {
		b.held = heldBuffers.Get().(*[]byte)
	}
	if len(*b.held)+len(p) > heldSize {
		if err := b.flush(); err != nil {
			return 0, err
		}
		return b.Conn.Write(p)
	}
	*b.held = append(*b.held, p...)
	return len(p), nil
}
