package ownership

import (
	"errors"
	"fmt"
	"reflect"

	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/value"
)

// errNoShape says that a type has parts whose form depends on their content.
var errNoShape = errors.New("the form of a part depends on its content")

// A shape is a Go type seen through its schema: how its values are compared, and what can be owned in
// them. Shapes refer to themselves where types do.
type shape struct {
	kind kind
	// simple says that a leaf is of a basic Go type, or a pointer to one, and is written as it is.
	simple bool
	// fields are those of an object, by the order of their names.
	fields []field
	// element is what a mapping or a list holds.
	element *shape
	// keys tell the elements of a keyed list apart, by the order of their names.
	keys []key
}

// kind is how the parts of a value are owned.
type kind int

const (
	leaf    kind = iota // as a whole
	object              // a struct, each field for itself
	mapping             // a map, each entry for itself
	keyed               // a list, each element for itself, told apart by keys
	set                 // a list of scalars, each for itself
)

// field is one of a struct's.
type field struct {
	element fieldpath.PathElement
	entry   *value.FieldCacheEntry
	shape   *shape
}

// key is a field that tells the elements of a list apart.
type key struct {
	name  string
	entry *value.FieldCacheEntry
	// missing is the value of an element that lacks the field; nil for none.
	missing any
}

// compiler makes shapes. The same type may be seen through several schemas.
type compiler struct {
	schema *schema.Schema
	made   map[seen]*shape
}

type seen struct {
	typ reflect.Type
	ref string
}

// root makes the shape of a whole object, without the record of who owns what, which nobody owns.
func (c *compiler) root(t reflect.Type, ref schema.TypeRef) (*shape, error) {
	whole, err := c.compile(t, ref)
	if err != nil {
		return nil, err
	}
	whole = whole.with("metadata", func(s *shape) *shape { return s.with("managedFields", nil) })
	return whole, nil
}

// with is the shape with another one for a field, or without the field.
func (s *shape) with(name string, change func(*shape) *shape) *shape {
	out := *s
	out.fields = nil
	for _, f := range s.fields {
		if *f.element.FieldName == name {
			if change == nil {
				continue
			}
			f.shape = change(f.shape)
		}
		out.fields = append(out.fields, f)
	}
	return &out
}

func (c *compiler) compile(t reflect.Type, ref schema.TypeRef) (*shape, error) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	id := seen{typ: t}
	if ref.NamedType != nil {
		id.ref = *ref.NamedType
		if ref.ElementRelationship != nil {
			id.ref += " " + string(*ref.ElementRelationship)
		}
		if s, ok := c.made[id]; ok {
			return s, nil
		}
	}
	atom, ok := c.schema.Resolve(ref)
	if !ok {
		return nil, fmt.Errorf("%s: no schema %q", t, id.ref)
	}
	s := &shape{}
	if id.ref != "" {
		c.made[id] = s // before its parts, which may be of the same type
	}
	return s, c.fill(s, t, atom)
}

func (c *compiler) fill(s *shape, t reflect.Type, atom schema.Atom) error {
	custom := value.TypeReflectEntryOf(t).CanConvertToUnstructured()
	forms := 0
	for _, has := range []bool{atom.Scalar != nil, atom.List != nil, atom.Map != nil} {
		if has {
			forms++
		}
	}
	switch {
	case forms != 1 || t.Kind() == reflect.Interface:
		return fmt.Errorf("%s: %w", t, errNoShape)
	case atom.Scalar != nil:
		s.simple = !custom && basic(t.Kind())
		return nil
	case custom:
		return fmt.Errorf("%s: %w", t, errNoShape)
	case atom.List != nil:
		return c.list(s, t, atom.List)
	case atom.Map.ElementRelationship == schema.Atomic:
		return nil
	case t.Kind() == reflect.Struct:
		return c.object(s, t, atom.Map)
	case t.Kind() == reflect.Map && t.Key().Kind() == reflect.String:
		s.kind = mapping
		var err error
		s.element, err = c.compile(t.Elem(), atom.Map.ElementType)
		return err
	default:
		return fmt.Errorf("%s: %w", t, errNoShape)
	}
}

func basic(k reflect.Kind) bool {
	return k >= reflect.Bool && k <= reflect.Float64 && k != reflect.Uintptr || k == reflect.String
}

func (c *compiler) object(s *shape, t reflect.Type, m *schema.Map) error {
	s.kind = object
	for _, entry := range value.TypeReflectEntryOf(t).OrderedFields() {
		ref := m.ElementType
		if f, ok := m.FindField(entry.JsonName); ok {
			ref = f.Type
		}
		part, err := c.compile(entry.GetFrom(reflect.New(t).Elem()).Type(), ref)
		if err != nil {
			return fmt.Errorf("%s.%w", entry.JsonName, err)
		}
		s.fields = append(s.fields, field{element: fieldpath.FieldNameElement(entry.JsonName), entry: entry, shape: part})
	}
	return nil
}

func (c *compiler) list(s *shape, t reflect.Type, l *schema.List) error {
	if l.ElementRelationship == schema.Atomic {
		return nil
	}
	if t.Kind() != reflect.Slice {
		return fmt.Errorf("%s: %w", t, errNoShape)
	}
	var err error
	if s.element, err = c.compile(t.Elem(), l.ElementType); err != nil {
		return err
	}
	if len(l.Keys) == 0 {
		if s.kind = set; !s.element.simple {
			return fmt.Errorf("%s: %w", t, errNoShape)
		}
		return nil
	}
	s.kind = keyed
	return c.keys(s, t.Elem(), l)
}

func (c *compiler) keys(s *shape, element reflect.Type, l *schema.List) error {
	for element.Kind() == reflect.Pointer {
		element = element.Elem()
	}
	atom, ok := c.schema.Resolve(l.ElementType)
	if !ok || atom.Map == nil || element.Kind() != reflect.Struct {
		return fmt.Errorf("%s: %w", element, errNoShape)
	}
	for _, entry := range value.TypeReflectEntryOf(element).OrderedFields() {
		for _, name := range l.Keys {
			if name != entry.JsonName {
				continue
			}
			f, _ := atom.Map.FindField(name)
			s.keys = append(s.keys, key{name: name, entry: entry, missing: f.Default})
		}
	}
	if len(s.keys) != len(l.Keys) {
		return fmt.Errorf("%s has no fields %q: %w", element, l.Keys, errNoShape)
	}
	return nil
}
