package h2

import (
	"encoding/binary"
	"errors"
	"io"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
)

const (
	frameHeader        = 9 // bytes
	windowUpdateLength = 4
)

// next deals with one frame. An error ends the connection.
func (c *conn) next() error {
	if done, err := c.nextWindowUpdate(); done || err != nil {
		return err
	}
	f, err := c.framer.ReadFrame()
	var opened *stream
	if h, ok := f.(*http2.MetaHeadersFrame); ok && err == nil && h.StreamID%2 == 1 && h.StreamID > c.lastID {
		opened, err = c.newStream(h)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		if opened != nil {
			opened.cancel()
		}
		return c.err
	}
	if err == nil {
		err = c.process(f, opened)
	}
	var one http2.StreamError
	if errors.As(err, &one) {
		if one.StreamID%2 == 1 && one.StreamID > c.lastID && !c.leaving {
			c.lastID = one.StreamID // it was used, if badly
		}
		c.reset(one.StreamID, one.Code, errStreamClosed)
		c.out.kick()
		return c.err
	}
	if errors.Is(err, http2.ErrFrameTooLarge) {
		return connError(http2.ErrCodeFrameSize)
	}
	if err == nil {
		err = c.err
	}
	return err
}

// nextWindowUpdate deals with a window update without making an object of it: a client sends one or two
// for every few KB that it gets. A header block is never open here, since the framer reads it as a whole.
func (c *conn) nextWindowUpdate() (bool, error) {
	head, err := c.in.Peek(frameHeader)
	if err != nil {
		return false, err
	}
	if http2.FrameType(head[3]) != http2.FrameWindowUpdate || head[0] != 0 || head[1] != 0 || head[2] != windowUpdateLength {
		return false, nil
	}
	if head, err = c.in.Peek(frameHeader + windowUpdateLength); err != nil {
		return false, err
	}
	id := binary.BigEndian.Uint32(head[5:]) & (1<<31 - 1)
	more := binary.BigEndian.Uint32(head[frameHeader:]) & (1<<31 - 1)
	if more == 0 {
		return false, nil // an error, of which the framer knows which
	}
	if _, err := c.in.Discard(frameHeader + windowUpdateLength); err != nil {
		return false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.widen(id, int64(more)); err != nil {
		return true, err
	}
	return true, c.err
}

// widen lets more be sent on a stream, or on the connection when id is 0.
func (c *conn) widen(id uint32, more int64) error {
	if id == 0 {
		if c.window+more > maxWindow {
			return connError(http2.ErrCodeFlowControl)
		}
		c.window += more
		c.out.pour()
		return nil
	}
	st := c.streams[id]
	if st == nil {
		if c.neverOpened(id) && !c.leaving {
			return connError(http2.ErrCodeProtocol)
		}
		return nil
	}
	if st.window+more > maxWindow {
		c.reset(id, http2.ErrCodeFlowControl, errStreamClosed)
		c.out.kick()
		return nil
	}
	st.window += more
	c.out.wake(st)
	return nil
}

// neverOpened tells whether a stream is idle: not used yet by anybody.
func (c *conn) neverOpened(id uint32) bool { return id%2 == 0 || id > c.lastID }

// process deals with a frame, under the lock; opened is the stream that it opens, if any.
func (c *conn) process(f http2.Frame, opened *stream) error {
	if c.leaving && f.Header().StreamID > c.lastID {
		// The client was told that this stream would not be looked at.
		if opened != nil {
			opened.cancel()
		}
		if f, ok := f.(*http2.DataFrame); ok && int(f.Length) <= c.received {
			c.received -= int(f.Length)
			c.giveBack(nil, int(f.Length))
		}
		return nil
	}
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		if opened != nil {
			return c.open(f, opened)
		}
		return c.headers(f)
	case *http2.DataFrame:
		return c.data(f)
	case *http2.WindowUpdateFrame:
		return c.widen(f.StreamID, int64(f.Increment))
	case *http2.RSTStreamFrame:
		if c.neverOpened(f.StreamID) {
			return connError(http2.ErrCodeProtocol)
		}
		if st := c.streams[f.StreamID]; st != nil {
			c.closeStream(st, errStreamClosed)
		}
	case *http2.SettingsFrame:
		return c.peerSettings(f)
	case *http2.PingFrame:
		if !f.IsAck() {
			c.out.pong(f.Data)
			c.out.kick()
		}
	case *http2.PriorityFrame:
		if f.StreamDep == f.StreamID {
			return streamError(f.StreamID, http2.ErrCodeProtocol, "it depends on itself")
		}
	case *http2.GoAwayFrame:
		c.leaveLocked()
		c.out.kick()
	case *http2.PushPromiseFrame:
		return connError(http2.ErrCodeProtocol) // a client can't
	}
	return nil // what is unknown is ignored
}

// peerSettings takes over the client's settings, and acknowledges them.
func (c *conn) peerSettings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		if c.unacked--; c.unacked < 0 {
			return connError(http2.ErrCodeProtocol)
		}
		return nil
	}
	if f.NumSettings() > peerSettings || f.HasDuplicates() {
		return connError(http2.ErrCodeProtocol)
	}
	if err := f.ForeachSetting(c.peerSetting); err != nil {
		return err
	}
	c.out.settingsAck()
	c.out.kick()
	return nil
}

func (c *conn) peerSetting(s http2.Setting) error {
	if err := s.Valid(); err != nil {
		return err
	}
	switch s.ID {
	case http2.SettingHeaderTableSize:
		c.out.encoder.SetMaxDynamicTableSize(s.Val)
	case http2.SettingInitialWindowSize:
		change := int64(s.Val) - c.initialWindow
		c.initialWindow = int64(s.Val)
		for _, st := range c.streams {
			if st.window += change; st.window > maxWindow {
				return connError(http2.ErrCodeFlowControl)
			}
		}
		if change > 0 {
			c.out.wakeAll()
		}
	case http2.SettingMaxFrameSize:
		c.maxFrame = int(s.Val)
	}
	return nil
}

// headers are of a stream that is open, or an error.
func (c *conn) headers(f *http2.MetaHeadersFrame) error {
	if st := c.streams[f.StreamID]; st != nil {
		return c.trailers(st, f)
	}
	switch {
	case f.StreamID%2 == 0:
		return connError(http2.ErrCodeProtocol)
	case f.StreamEnded() && len(f.PseudoFields()) == 0:
		return nil // trailers that were on their way when the stream ended here (RFC 9113, 5.1)
	}
	return connError(http2.ErrCodeStreamClosed)
}

// open begins a request.
func (c *conn) open(f *http2.MetaHeadersFrame, st *stream) (err error) {
	defer func() {
		if err != nil {
			st.cancel()
		}
	}()
	c.lastID = st.id
	if len(c.streams) >= c.server.cfg.MaxStreams {
		if c.unacked == 0 {
			return streamError(st.id, http2.ErrCodeProtocol, "too many streams")
		}
		return streamError(st.id, http2.ErrCodeRefusedStream, "too many streams")
	}
	if f.HasPriority() && f.Priority.StreamDep == st.id {
		return streamError(st.id, http2.ErrCodeProtocol, "it depends on itself")
	}
	st.window = c.initialWindow
	c.streams[st.id] = st
	return c.start(st)
}

func (c *conn) trailers(st *stream, f *http2.MetaHeadersFrame) error {
	switch {
	case st.remoteClosed:
		return streamError(st.id, http2.ErrCodeStreamClosed, "headers after the end")
	case !f.StreamEnded():
		return streamError(st.id, http2.ErrCodeProtocol, "trailers that are not the end")
	case len(f.PseudoFields()) > 0:
		return streamError(st.id, http2.ErrCodeProtocol, "pseudo header fields in trailers")
	}
	for _, field := range f.RegularFields() {
		key := canonical(field.Name)
		if !httpguts.ValidTrailerHeader(key) {
			return streamError(st.id, http2.ErrCodeProtocol, "%s is no trailer", key)
		}
		if _, announced := st.trailer[key]; announced {
			st.trailer[key] = append(st.trailer[key], field.Value)
		}
	}
	return c.remoteEnd(st)
}

// data takes a part of a request's body.
func (c *conn) data(f *http2.DataFrame) error {
	id, length, data := f.StreamID, int(f.Length), f.Data()
	if id == 0 || c.neverOpened(id) {
		return connError(http2.ErrCodeProtocol)
	}
	if length > c.received {
		return connError(http2.ErrCodeFlowControl)
	}
	c.received -= length
	st := c.streams[id]
	if st == nil || st.remoteClosed {
		c.giveBack(nil, length)
		return streamError(id, http2.ErrCodeStreamClosed, "data after the end")
	}
	if length > st.received {
		c.giveBack(nil, length)
		return streamError(id, http2.ErrCodeFlowControl, "more than the window lets through")
	}
	st.received -= length
	st.arrived += int64(len(data))
	if st.declared >= 0 && st.arrived > st.declared {
		c.giveBack(nil, length)
		st.body.end(errLength)
		return streamError(id, http2.ErrCodeProtocol, "more than was declared")
	}
	if !st.body.add(data, st.declared) {
		c.giveBack(nil, len(data)) // nobody will read it
	}
	c.giveBack(st, length-len(data)) // padding is read as soon as it is there
	if f.StreamEnded() {
		return c.remoteEnd(st)
	}
	return nil
}

// remoteEnd notes that the client has sent all of its request.
func (c *conn) remoteEnd(st *stream) error {
	st.remoteClosed = true
	if st.declared >= 0 && st.arrived != st.declared {
		st.body.end(errLength)
		return streamError(st.id, http2.ErrCodeProtocol, "less than was declared")
	}
	st.body.end(io.EOF)
	return nil
}
