package ownership

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

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
	// lists says that there are lists in it whose elements are told apart: itself or parts of it.
	lists bool
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
	// omitted is the index of a field that is left out when it is zero, which most are; -1 of others.
	omitted int
	// role is who sets the field of a new object, and label is how the record names it.
	role  role
	label string
}

// role is who sets a field of a new object.
type role int

const (
	client    role = iota // whoever sends it, who then owns it
	serverSet             // the server, and nobody owns it, though what is in it may be owned
	reset                 // the server, with everything in it
)

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
	findLists(whole)
	return whole, nil
}

// findLists sets what shapes say of lists in them, from the inside out until nothing changes: some contain themselves.
func findLists(root *shape) {
	var all []*shape
	met := map[*shape]bool{}
	var collect func(*shape)
	collect = func(s *shape) {
		if s == nil || met[s] {
			return
		}
		met[s] = true
		collect(s.element)
		for i := range s.fields {
			collect(s.fields[i].shape)
		}
		all = append(all, s)
	}
	collect(root)
	for changed := true; changed; {
		changed = false
		for _, s := range all {
			if !s.lists && s.holdsLists() {
				s.lists, changed = true, true
			}
		}
	}
}

func (s *shape) holdsLists() bool {
	return s.kind == keyed || s.kind == set || s.element != nil && s.element.lists ||
		slices.ContainsFunc(s.fields, func(f field) bool { return f.shape.lists })
}

// with is the shape with another one for a field, or without the field.
func (s *shape) with(name string, change func(*shape) *shape) *shape {
	if change == nil {
		out := *s
		out.fields = slices.DeleteFunc(slices.Clone(s.fields), func(f field) bool { return *f.element.FieldName == name })
		return &out
	}
	return s.withField(name, func(f *field) { f.shape = change(f.shape) })
}

// withField is the shape with a field that is changed.
func (s *shape) withField(name string, change func(*field)) *shape {
	out := *s
	out.fields = slices.Clone(s.fields)
	for i := range out.fields {
		if *out.fields[i].element.FieldName == name {
			change(&out.fields[i])
		}
	}
	return &out
}

// creation is the shape of new objects: it tells which fields nobody owns, and which are reset. It is nil if these are
// not fields of structs.
func (s *shape) creation(resets *fieldpath.Set) *shape {
	ok := true
	unowned().Iterate(func(p fieldpath.Path) { s = s.withRole(p, serverSet, &ok) })
	if resets != nil {
		resets.Iterate(func(p fieldpath.Path) { s = s.withRole(p, reset, &ok) })
	}
	if !ok {
		return nil
	}
	return s
}

// withRole is the shape with another role for the field at a path, if the type has it.
func (s *shape) withRole(path fieldpath.Path, r role, ok *bool) *shape {
	if len(path) == 0 || path[0].FieldName == nil || s.kind != object {
		*ok = false
		return s
	}
	return s.withField(*path[0].FieldName, func(f *field) {
		if len(path) == 1 {
			f.role = max(f.role, r)
			return
		}
		f.shape = f.shape.withRole(path[1:], r, ok)
	})
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
		s.fields = append(s.fields, field{
			element: fieldpath.FieldNameElement(entry.JsonName), entry: entry, shape: part, omitted: omittedIndex(t, entry),
			label: `"f:` + entry.JsonName + `":`,
		})
	}
	return nil
}

// omittedIndex is the index of a field of t, not of a struct inside it, if it is left out when it is zero; -1 otherwise.
func omittedIndex(t reflect.Type, entry *value.FieldCacheEntry) int {
	zero := reflect.Zero(t)
	if !entry.CanOmit(entry.GetFrom(zero)) {
		return -1
	}
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == entry.JsonName && t.Field(i).IsExported() {
			return i
		}
	}
	return -1
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
