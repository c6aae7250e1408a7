package h2

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// payload is how much of a body goes into a frame, so that frame and header fill a TLS record.
const payload = record - frameHeader

// outlet is what leaves a connection: frames are put into a buffer, in the order in which they are sent, and whoever calls
// flush writes it, unless somebody is writing. All of it is guarded by the connection's lock, which is given up while bytes
// are written.
type outlet struct {
	c       *conn
	encoder *hpack.Encoder // its state is that of the frames in the buffer: encoded is sent
	block   bytes.Buffer   // a header block
	buf     *[]byte        // nil when there is nothing to be written
	busy    bool           // somebody writes, and will write what comes in meanwhile
	quiet   sync.Cond      // nobody does any more
	// crowded are the streams that wait for room in the buffer, and thirsty those whose own window would let them send if
	// the connection's did, first come first. A stream is in one of them at most, and in none when it is gone.
	crowded, thirsty []*stream
	until            time.Time // the deadline of writes; whoever is busy moves it
}

func (o *outlet) init(c *conn) {
	o.c = c
	o.quiet.L = &c.mu
	o.encoder = hpack.NewEncoder(&o.block)
	o.encoder.SetMaxDynamicTableSizeLimit(headerTable)
}

// Buffers of frames come in two sizes: most connections never send more than a few KB at once.
const (
	smallBuffer = 4 << 10
	largeBuffer = batch + record
)

var (
	smallBuffers = sync.Pool{New: func() any { b := make([]byte, 0, smallBuffer); return &b }}
	largeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, largeBuffer); return &b }}
)

// room makes room for n bytes more.
func (o *outlet) room(n int) {
	switch {
	case o.buf == nil && n <= smallBuffer:
		o.buf = smallBuffers.Get().(*[]byte)
	case o.buf == nil:
		o.buf = largeBuffers.Get().(*[]byte)
	case len(*o.buf)+n > cap(*o.buf) && cap(*o.buf) < largeBuffer:
		larger := largeBuffers.Get().(*[]byte)
		*larger = append(*larger, *o.buf...)
		recycle(o.buf)
		o.buf = larger
	}
}

func recycle(b *[]byte) {
	size := cap(*b)
	*b = (*b)[:0]
	switch {
	case size < largeBuffer:
		smallBuffers.Put(b)
	case size <= 2*largeBuffer:
		largeBuffers.Put(b)
	}
}

// length is how many bytes wait to be written.
func (o *outlet) length() int {
	if o.buf == nil {
		return 0
	}
	return len(*o.buf)
}

// frame puts the header of a frame into the buffer; length bytes are to follow.
func (o *outlet) frame(kind http2.FrameType, flags http2.Flags, id uint32, length int) {
	o.room(frameHeader + length)
	b := append(*o.buf, byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags))
	*o.buf = binary.BigEndian.AppendUint32(b, id)
}

// answer is frame for frames that the client can cause as many of as it likes.
func (o *outlet) answer(kind http2.FrameType, flags http2.Flags, id uint32, length int) {
	o.limit()
	o.frame(kind, flags, id, length)
}

// limit closes the connection when too much waits for the client.
func (o *outlet) limit() {
	if o.length() > maxAnswers {
		o.c.closeLocked(errTooManyFrames)
	}
}

func (o *outlet) number(n uint32) { *o.buf = binary.BigEndian.AppendUint32(*o.buf, n) }

func (o *outlet) settings(all ...http2.Setting) {
	o.frame(http2.FrameSettings, 0, 0, 6*len(all))
	for _, s := range all {
		*o.buf = binary.BigEndian.AppendUint16(*o.buf, uint16(s.ID))
		o.number(s.Val)
	}
}

func (o *outlet) settingsAck() { o.answer(http2.FrameSettings, http2.FlagSettingsAck, 0, 0) }

func (o *outlet) windowUpdate(id uint32, more int) {
	o.answer(http2.FrameWindowUpdate, 0, id, windowUpdateLength)
	o.number(uint32(more))
}

func (o *outlet) pong(data [8]byte) {
	o.answer(http2.FramePing, http2.FlagPingAck, 0, len(data))
	*o.buf = append(*o.buf, data[:]...)
}

func (o *outlet) reset(id uint32, code http2.ErrCode) {
	o.answer(http2.FrameRSTStream, 0, id, 4)
	o.number(uint32(code))
}

func (o *outlet) goAway(last uint32, code http2.ErrCode) {
	o.frame(http2.FrameGoAway, 0, 0, 8)
	o.number(last)
	o.number(uint32(code))
}

// head sends a block of header fields; status is 0 for trailers. The fields' names are lower-case.
func (o *outlet) head(id uint32, status int, fields []hpack.HeaderField, end bool) {
	o.block.Reset()
	if status != 0 {
		o.field(hpack.HeaderField{Name: ":status", Value: strconv.Itoa(status)})
	}
	for _, f := range fields {
		o.field(f)
	}
	kind, flags := http2.FrameHeaders, http2.Flags(0)
	if end {
		flags = http2.FlagHeadersEndStream
	}
	for block := o.block.Bytes(); ; kind, flags = http2.FrameContinuation, 0 {
		part := block[:min(len(block), o.c.maxFrame)]
		block = block[len(part):]
		if len(block) == 0 {
			flags |= http2.FlagHeadersEndHeaders // the bit is the same in both kinds of frames
		}
		o.frame(kind, flags, id, len(part))
		*o.buf = append(*o.buf, part...)
		if len(block) == 0 {
			return
		}
	}
}

func (o *outlet) field(f hpack.HeaderField) {
	_ = o.encoder.WriteField(f) // into memory
}

func (o *outlet) data(id uint32, p []byte, end bool) {
	var flags http2.Flags
	if end {
		flags = http2.FlagDataEndStream
	}
	o.frame(http2.FrameData, flags, id, len(p))
	*o.buf = append(*o.buf, p...)
}

// turns is how often somebody who flushes writes, his own frames being in the first: what others add then must not keep him
// for ever.
const turns = 2

// flush writes what is in the buffer, or leaves that to who is writing.
func (o *outlet) flush() {
	if o.busy {
		return
	}
	o.busy = true
	for turn := 0; o.pending(); turn++ {
		if turn == turns {
			go o.rest()
			return
		}
		o.write()
	}
	o.rested()
}

// rested ends being busy.
func (o *outlet) rested() {
	o.busy = false
	o.quiet.Broadcast()
}

// drain writes all that is in the buffer, and waits for who is writing it.
func (o *outlet) drain() {
	o.flush()
	for o.busy {
		o.quiet.Wait()
	}
}

// kick is flush for who must not wait.
func (o *outlet) kick() {
	if !o.busy && o.pending() {
		o.busy = true
		go o.rest()
	}
}

// rest writes until there is nothing, as the one who is busy.
func (o *outlet) rest() {
	o.c.mu.Lock()
	defer o.c.mu.Unlock()
	for o.pending() {
		o.write()
	}
	o.rested()
}

func (o *outlet) pending() bool { return o.buf != nil && o.c.err == nil }

// write writes the buffer; meanwhile the lock is free.
func (o *outlet) write() {
	b := o.buf
	o.buf = nil
	o.c.mu.Unlock()
	err := o.transmit(*b)
	recycle(b)
	o.c.mu.Lock()
	if err != nil {
		o.c.closeLocked(err)
	}
	for _, st := range o.crowded {
		o.wake(st)
	}
	clear(o.crowded)
	o.crowded = o.crowded[:0]
}

func (o *outlet) transmit(b []byte) error {
	c := o.c
	if stall := c.server.cfg.Stall; time.Until(o.until) < stall {
		o.until = time.Now().Add(2 * stall)
		if err := c.tls.SetWriteDeadline(o.until); err != nil {
			return err
		}
	}
	if c.below == nil || len(b) <= record {
		_, err := c.tls.Write(b)
		return err
	}
	c.below.hold()
	_, err := c.tls.Write(b)
	if late := c.below.release(); err == nil {
		err = late
	}
	return err
}

// wake lets a stream look again whether it may send.
func (o *outlet) wake(st *stream) {
	if st.wake == nil {
		return
	}
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

func (o *outlet) wakeAll() {
	for _, st := range o.c.streams {
		o.wake(st)
	}
}

// wait waits until the stream is woken; meanwhile the lock is free. It may return early.
func (o *outlet) wait(st *stream) {
	if st.wake == nil {
		st.wake = make(chan struct{}, 1)
	}
	o.c.mu.Unlock()
	<-st.wake
	o.c.mu.Lock()
}

// await waits for a stream's window and the connection's. It may return early.
func (o *outlet) await(st *stream) {
	switch {
	case !o.busy && o.pending():
		o.flush()
	case st.window > 0:
		o.waitIn(&o.thirsty, st)
	default:
		o.pour()
		o.wait(st)
	}
}

// waitIn waits as one of a list of streams, and is in it no more when it returns.
func (o *outlet) waitIn(list *[]*stream, st *stream) {
	*list = append(*list, st)
	o.wait(st)
	remove(list, st)
}

func remove(list *[]*stream, st *stream) {
	if i := slices.Index(*list, st); i >= 0 {
		*list = slices.Delete(*list, i, i+1)
	}
}

// forget lets a stream that is gone wait for nothing.
func (o *outlet) forget(st *stream) {
	remove(&o.crowded, st)
	remove(&o.thirsty, st)
	o.wake(st)
}

// pour wakes the stream that has waited longest for the connection's window, if there is something in it. Who is woken, and
// whoever leaves something over, pours for the next: were all of them woken, each byte that the client lets through would cost
// as much as there are streams.
func (o *outlet) pour() {
	if o.c.window > 0 && len(o.thirsty) > 0 {
		st := o.thirsty[0]
		o.thirsty = slices.Delete(o.thirsty, 0, 1)
		o.wake(st)
	}
}

// admit waits until there is room for a frame of a stream. Without it a client that reads nothing could have any
// number of answers wait for it.
func (o *outlet) admit(st *stream) error {
	for st.gone == nil && o.length() >= batch {
		if o.busy {
			o.waitIn(&o.crowded, st)
		} else {
			o.flush()
		}
	}
	return st.gone
}

// send sends a part of a stream's body, as flow control lets it, and ends the stream if end is true. It returns when
// all of p is in the buffer, which has been given to who writes.
func (o *outlet) send(st *stream, p []byte, end bool) error {
	c := o.c
	defer o.pour()
	for len(p) > 0 || end {
		if err := o.admit(st); err != nil {
			return err // as all get when the connection is closed
		}
		n := int(max(0, min(int64(len(p)), st.window, c.window, payload)))
		if n == 0 && len(p) > 0 {
			o.await(st)
			continue
		}
		st.window -= int64(n)
		c.window -= int64(n)
		last := end && n == len(p)
		o.data(st.id, p[:n], last)
		p = p[n:]
		if last {
			st.ended()
			break
		}
	}
	o.flush()
	return nil
}
