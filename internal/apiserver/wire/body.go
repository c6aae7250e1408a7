package wire

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// A Body is a complete response in pieces: shared items and what goes between. Its length
// is known before the first byte is written.
type Body struct {
	encoding Encoding
	head     []byte
	items    [][]byte
	tail     []byte
	size     int64
	list     bool
}

// Object is the response for the single object of item.
func (e *Encoder) Object(item []byte) Body {
	if e.encoding == Protobuf {
		head := protowire.AppendVarint(slices.Clip(e.head), uint64(len(item)))
		return newBody(e.encoding, head, [][]byte{item}, unknownTrailer[:])
	}
	if e.typed {
		return newBody(e.encoding, nil, [][]byte{item}, []byte("\n"))
	}
	head, rest := e.jsonObject(item)
	return newBody(e.encoding, head, [][]byte{rest}, []byte("\n"))
}

// jsonObject splits a JSON object with its kind in two: a head, and a part of item.
func (e *Encoder) jsonObject(item []byte) (head, rest []byte) {
	rest = item[1:]
	if rest[0] == '}' {
		return e.head, rest
	}
	return append(slices.Clip(e.head), ','), rest
}

// List is the response for a list of items, whose kind is listKind.
func (e *Encoder) List(listKind schema.GroupVersionKind, m metav1.ListMeta, items [][]byte) (Body, error) {
	if e.encoding == Protobuf {
		return e.protobufList(listKind, m, items)
	}
	listMeta, err := json.Marshal(m)
	if err != nil {
		return Body{}, fmt.Errorf("encode %s: %w", listKind.Kind, err)
	}
	head := objectHead(listKind, JSON)
	head = append(head, `,"metadata":`...)
	if e.custom && m.Continue == "" && m.ResourceVersion != "" {
		// Lists without a Go type always say where they go on.
		head = append(head, `{"continue":"",`...)
		listMeta = listMeta[1:]
	}
	head = append(head, listMeta...)
	head = append(head, `,"items":[`...)
	b := newBody(e.encoding, head, items, []byte("]}\n"))
	b.list = true
	b.size += int64(max(len(items)-1, 0)) // commas
	return b, nil
}

// itemTag is the tag of a list's field 2, in front of every item.
const itemTag = 2<<3 | byte(protowire.BytesType)

func (e *Encoder) protobufList(listKind schema.GroupVersionKind, m metav1.ListMeta, items [][]byte) (Body, error) {
	listMeta, err := m.Marshal()
	if err != nil {
		return Body{}, fmt.Errorf("encode %s: %w", listKind.Kind, err)
	}
	var first []byte
	first = protowire.AppendTag(first, 1, protowire.BytesType)
	first = protowire.AppendBytes(first, listMeta)
	message := len(first)
	for _, item := range items {
		message += 1 + protowire.SizeBytes(len(item))
	}
	head := unknownHead(listKind.GroupVersion().String(), listKind.Kind)
	head = protowire.AppendVarint(head, uint64(message))
	head = append(head, first...)
	b := newBody(e.encoding, head, items, unknownTrailer[:])
	b.list = true
	b.size = int64(len(head) + message - len(first) + len(unknownTrailer))
	return b, nil
}

func newBody(encoding Encoding, head []byte, items [][]byte, tail []byte) Body {
	b := Body{encoding: encoding, head: head, items: items, tail: tail, size: int64(len(head) + len(tail))}
	for _, item := range items {
		b.size += int64(len(item))
	}
	return b
}

// Size is the length of the response in bytes.
func (b Body) Size() int64 { return b.size }

// chunkSize is how much is gathered before it is written: four frames of HTTP/2 that fill a TLS record each, header
// included.
const chunkSize = 4 * (16<<10 - 9)

var chunks = sync.Pool{New: func() any {
	b := make([]byte, 0, chunkSize)
	return &b
}}

// WriteTo writes the response in large chunks.
func (b Body) WriteTo(w io.Writer) (int64, error) {
	chunk := chunks.Get().(*[]byte)
	g := gatherer{w: w, buf: (*chunk)[:0]}
	defer func() { *chunk = g.buf[:0]; chunks.Put(chunk) }()

	g.write(b.head)
	for i, item := range b.items {
		switch {
		case !b.list:
		case b.encoding == Protobuf:
			var prefix [11]byte
			p := append(prefix[:0], itemTag)
			g.write(protowire.AppendVarint(p, uint64(len(item))))
		case i > 0:
			g.write([]byte{','})
		}
		g.write(item)
		if g.err != nil {
			return g.n, g.err
		}
	}
	g.write(b.tail)
	g.flush()
	return g.n, g.err
}

// Bytes is the response in one slice.
func (b Body) Bytes() []byte {
	s := sliceWriter(make([]byte, 0, b.size))
	_, _ = b.WriteTo(&s)
	return s
}

type sliceWriter []byte

func (s *sliceWriter) Write(p []byte) (int, error) {
	*s = append(*s, p...)
	return len(p), nil
}

// gatherer collects small pieces into chunks and hands large ones through.
type gatherer struct {
	w   io.Writer
	buf []byte
	n   int64
	err error
}

func (g *gatherer) write(p []byte) {
	for len(p) > 0 && g.err == nil {
		if len(g.buf) == 0 && len(p) >= chunkSize {
			g.out(p)
			return
		}
		n := min(len(p), chunkSize-len(g.buf))
		g.buf = append(g.buf, p[:n]...)
		p = p[n:]
		if len(g.buf) == chunkSize {
			g.flush()
		}
	}
}

func (g *gatherer) flush() {
	if len(g.buf) > 0 && g.err == nil {
		g.out(g.buf)
	}
	g.buf = g.buf[:0]
}

func (g *gatherer) out(p []byte) {
	n, err := g.w.Write(p)
	g.n += int64(n)
	g.err = err
}
