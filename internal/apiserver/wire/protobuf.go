package wire

import (
	"encoding/binary"

	"google.golang.org/protobuf/encoding/protowire"
)

// The envelope of every protobuf response is the message runtime.Unknown behind a magic prefix: field 1
// names the kind, field 2 holds the object, fields 3 and 4 (encoding and content type) are always
// written, empty.
var (
	protobufMagic  = [4]byte{'k', '8', 's', 0}
	unknownTrailer = [4]byte{3<<3 | 2, 0, 4<<3 | 2, 0}
)

// unknownHead is the magic and field 1, up to and with the tag of field 2; its length comes next.
func unknownHead(apiVersion, kind string) []byte {
	var typeMeta []byte
	typeMeta = protowire.AppendTag(typeMeta, 1, protowire.BytesType)
	typeMeta = protowire.AppendString(typeMeta, apiVersion)
	typeMeta = protowire.AppendTag(typeMeta, 2, protowire.BytesType)
	typeMeta = protowire.AppendString(typeMeta, kind)

	b := append([]byte(nil), protobufMagic[:]...)
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendBytes(b, typeMeta)
	return protowire.AppendTag(b, 2, protowire.BytesType)
}

// protobufObjectSize is the length of an envelope with head around n bytes.
func protobufObjectSize(head []byte, n int) int {
	return len(head) + protowire.SizeBytes(n) + len(unknownTrailer)
}

// appendProtobufObject appends an envelope with head around item.
func appendProtobufObject(dst, head, item []byte) []byte {
	dst = append(dst, head...)
	dst = protowire.AppendBytes(dst, item)
	return append(dst, unknownTrailer[:]...)
}

// appendProtobufFrame appends a watch event: a four-byte big-endian length, then the message
// metav1.WatchEvent, whose field 2 is a RawExtension, whose field 1 is the envelope.
func appendProtobufFrame(dst []byte, eventType string, head, item []byte) []byte {
	object := protobufObjectSize(head, len(item))
	extension := 1 + protowire.SizeBytes(object)
	event := 1 + protowire.SizeBytes(len(eventType)) + 1 + protowire.SizeBytes(extension)

	dst = binary.BigEndian.AppendUint32(dst, uint32(event))
	dst = protowire.AppendTag(dst, 1, protowire.BytesType)
	dst = protowire.AppendString(dst, eventType)
	dst = protowire.AppendTag(dst, 2, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(extension))
	dst = protowire.AppendTag(dst, 1, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(object))
	return appendProtobufObject(dst, head, item)
}
