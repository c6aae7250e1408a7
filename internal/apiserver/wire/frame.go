package wire

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
)

// FramePrefix is how many bytes of a protobuf frame are its length, which streams of messages do without.
const FramePrefix = 4

// AppendFrame appends a watch event about the object of item, framed for the stream, to dst.
func (e *Encoder) AppendFrame(dst []byte, event watch.EventType, item []byte) []byte {
	if e.encoding == Protobuf {
		return appendProtobufFrame(dst, string(event), e.head, item)
	}
	dst = append(dst, `{"type":"`...)
	dst = append(dst, event...)
	dst = append(dst, `","object":`...)
	if e.typed {
		dst = append(dst, item...)
	} else {
		rest := item[1:]
		dst = append(dst, e.head...)
		if rest[0] != '}' {
			dst = append(dst, ',')
		}
		dst = append(dst, rest...)
	}
	return append(dst, "}\n"...)
}

// AppendObjectFrame appends a watch event about an object of any kind, such as a Status or a Table.
func AppendObjectFrame(dst []byte, encoding Encoding, event watch.EventType, obj runtime.Object, kind schema.GroupVersionKind) ([]byte, error) {
	e := NewEncoder(kind, encoding, nil)
	item, err := e.encode(obj)
	if err != nil {
		return dst, err
	}
	return e.AppendFrame(dst, event, item), nil
}
