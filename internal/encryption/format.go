package encryption

import (
	"bytes"
	"strings"
)

// What stands before encrypted values, as kube-apiserver has it: k8s:enc:PROVIDER:VERSION:NAME:
const (
	encryptedPrefix = "k8s:enc:"
	ringPrefix      = encryptedPrefix + "secretbox:v1:"
	prefixParts     = 5
	// maxLabel bounds a label, in bytes: a value may hold anything.
	maxLabel = 128
)

// encrypted tells whether a value is.
func encrypted(stored []byte) bool { return bytes.HasPrefix(stored, []byte(encryptedPrefix)) }

// keyOf names the key of a ring that a value stands under, or "".
func keyOf(stored []byte) string {
	rest, ok := bytes.CutPrefix(stored, []byte(ringPrefix))
	if !ok {
		return ""
	}
	name, _, ok := bytes.Cut(rest[:min(len(rest), maxLabel)], []byte{':'})
	if !ok || !bytes.HasPrefix(name, []byte(namePrefix)) {
		return ""
	}
	return string(name)
}

// Plain is the label of values that are not encrypted.
const Plain = "plain"

// labelOf tells how a value stands: "secretbox:v1:NAME", or Plain.
func labelOf(stored []byte) string {
	if !encrypted(stored) {
		return Plain
	}
	parts := strings.SplitN(string(stored[:min(len(stored), maxLabel)]), ":", prefixParts+1)
	if len(parts) <= prefixParts {
		return "unknown"
	}
	return strings.ToValidUTF8(strings.Join(parts[2:prefixParts], ":"), "?")
}

// label is that of a key of a ring.
func label(key string) string {
	if key == "" {
		return Plain
	}
	return strings.TrimPrefix(ringPrefix, encryptedPrefix) + key
}
