// Package nesting bounds what it may cost to tell where the fields of a document are.
//
// Decoders name each field that is unknown or repeated, and validation each that is wrong, by the names of all that it is
// in. One name of a megabyte that a hundred thousand fields are in makes that a hundred gigabytes: a document that is
// within the limit of a request's body would keep a server busy for minutes, or take its memory. What is refused here is
// far from what anybody writes: the largest CustomResourceDefinitions that are in use come to a few megabytes, with no path
// beyond a kilobyte.
package nesting

import (
	"bytes"
	"encoding/json"
	"fmt"

	"sigs.k8s.io/yaml"
)

// Bounds, in bytes, of the paths of a document's fields. A path is the names of a field and of all that it is in, as they
// stand in the document, with a separator between each two.
const (
	// MaxPath bounds the longest.
	MaxPath = 64 << 10
	// MaxPaths bounds the sum of all.
	MaxPaths = 64 << 20
)

const (
	// small is a document, in bytes, in which there is no room for paths beyond the bounds.
	small = 8 << 10
	// maxDepth is how deep decoders of JSON go. What is deeper is for them to refuse.
	maxDepth = 10_000
	// index is how long one in a list is taken to be: a request has no list of more than some millions.
	index = len("[1234567]")
)

// CheckJSON tells whether the paths of a document are within the bounds. One that is no JSON is for its decoder to refuse.
// A small document costs nothing, one below 64 KiB mostly the count of its colons, a large one a pass over its bytes.
func CheckJSON(document []byte) error {
	if len(document) <= small {
		return nil
	}
	// Each name is followed by a colon, and no path is longer than the document.
	if len(document) <= MaxPath && bytes.Count(document, []byte(":"))*len(document) <= MaxPaths {
		return nil
	}
	return (&scan{document: document}).run()
}

// CheckYAML is CheckJSON of a document in YAML, which may be JSON. If it is not it is converted, unless it is small and
// refers to no part of itself.
func CheckYAML(document []byte) error {
	if len(document) <= small && bytes.IndexByte(document, '*') < 0 {
		return nil
	}
	if json.Valid(document) {
		return CheckJSON(document)
	}
	converted, err := yaml.YAMLToJSON(document)
	if err != nil {
		return nil //nolint:nilerr // for its decoder to tell
	}
	return CheckJSON(converted)
}

// scan goes through the tokens of a JSON document.
type scan struct {
	document []byte
	// in are the objects and lists that the next token is in.
	in []container
	// path is how long that of the next value is, and paths the sum of those of all names so far.
	path, paths int
	// name tells that the next string is a name.
	name bool
	// refused says which bound is exceeded.
	refused error
}

type container struct {
	path   int // of the container itself
	object bool
}

func (s *scan) run() error {
	for i := 0; i < len(s.document); i++ {
		switch s.document[i] {
		case '"':
			end := s.endOfString(i + 1)
			s.text(end - i - 1)
			i = end
		case '{':
			s.open(container{s.path, true})
		case '[':
			s.open(container{s.path, false})
			s.path += index
		case '}', ']':
			if len(s.in) > 0 {
				s.in = s.in[:len(s.in)-1]
			}
		case ',':
			s.next()
		}
		if len(s.in) > maxDepth {
			return nil
		}
	}
	return s.refused
}

func (s *scan) open(c container) {
	s.in = append(s.in, c)
	s.name = c.object
}

// next begins another member of the container.
func (s *scan) next() {
	if len(s.in) == 0 {
		return
	}
	c := s.in[len(s.in)-1]
	if s.path, s.name = c.path, c.object; !c.object {
		s.path += index
	}
}

// text takes a string of n bytes.
func (s *scan) text(n int) {
	if !s.name {
		return
	}
	s.name = false
	s.path = s.in[len(s.in)-1].path + len(".") + n
	s.paths += s.path
	switch {
	case s.refused != nil:
	case s.path > MaxPath:
		s.refused = fmt.Errorf("the path of a field, which is its name and those of all that it is in, may have %d bytes", MaxPath)
	case s.paths > MaxPaths:
		s.refused = fmt.Errorf("the paths of all fields, which are their names and those of all that they are in, may have %d bytes together", MaxPaths)
	}
}

// endOfString is where a string ends that begins at a place: at its closing quote, or where the document ends.
func (s *scan) endOfString(from int) int {
	for at := from; ; {
		n := bytes.IndexByte(s.document[at:], '"')
		if n < 0 {
			return len(s.document)
		}
		quote := at + n
		slashes := 0
		for quote-slashes > from && s.document[quote-slashes-1] == '\\' {
			slashes++
		}
		if slashes%2 == 0 {
			return quote
		}
		at = quote + 1
	}
}
