package ownership

import (
	"errors"
	"reflect"

	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"barque.dev/internal/api/alike"
)

// errNoKey says that an element of a list cannot be told from others.
var errNoKey = errors.New("an element of a list has no key")

// comparison is what one object has and another has not, or has otherwise.
type comparison [3]*fieldpath.Set

const (
	added = iota
	modified
	removed
)

func (c *comparison) empty() bool {
	return c[added].Empty() && c[modified].Empty() && c[removed].Empty()
}

// compare compares two objects of a shape, which are pointers to structs. What it finds is what
// TypedValue.Compare of structured-merge-diff finds.
func compare(s *shape, before, after reflect.Value) (comparison, error) {
	c := comparison{&fieldpath.Set{}, &fieldpath.Set{}, &fieldpath.Set{}}
	root := place{found: c}
	err := root.compare(s, before, after)
	return c, err
}

// place is where in two objects the comparison is.
type place struct {
	above   *place // nil at the root
	element fieldpath.PathElement
	// found is what was found below; a set is made when it gets its first member.
	found comparison
}

func (p *place) below(which int) *fieldpath.Set {
	if p.found[which] == nil {
		p.found[which] = p.above.below(which).Children.Descend(p.element)
	}
	return p.found[which]
}

func (p *place) mark(which int) {
	if p.above != nil {
		p.above.below(which).Members.Insert(p.element)
	}
}

// compare compares what is at the place. An invalid value is none at all, in contrast to a nil one, which is
// written as null.
func (p *place) compare(s *shape, l, r reflect.Value) error {
	if s.kind != leaf && l.IsValid() && r.IsValid() && alike.Equal(l, r) {
		return s.keyless(l) // nothing to be found, and nothing to be told but that it can't be
	}
	parts := false
	var err error
	switch s.kind {
	case object:
		parts, err = p.objects(s, solid(l), solid(r))
	case mapping:
		parts, err = p.mappings(s, solid(l), solid(r))
	case keyed, set:
		parts, err = p.lists(s, solid(l), solid(r))
	}
	switch {
	case err != nil:
		return err
	case !l.IsValid():
		p.mark(added)
	case !r.IsValid():
		p.mark(removed)
	case parts:
	case s.kind == leaf:
		if !equal(s, l, r) {
			p.mark(modified)
		}
	case solid(l).IsValid() != solid(r).IsValid():
		p.mark(modified) // one is empty, the other null
	}
	return nil
}

// solid is what pointers lead to; nothing for nil of any kind.
func solid(v reflect.Value) reflect.Value {
	for v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if (v.Kind() == reflect.Map || v.Kind() == reflect.Slice) && v.IsNil() {
		return reflect.Value{}
	}
	return v
}

// objects compares the fields of two structs and tells whether there is any.
func (p *place) objects(s *shape, l, r reflect.Value) (bool, error) {
	any := false
	for i := range s.fields {
		f := &s.fields[i]
		fl, fr := f.of(l), f.of(r)
		if !fl.IsValid() && !fr.IsValid() {
			continue
		}
		any = true
		child := place{above: p, element: f.element}
		if err := child.compare(f.shape, fl, fr); err != nil {
			return any, err
		}
	}
	return any, nil
}

// of is the field of a struct as it is written: none if it is left out.
func (f *field) of(v reflect.Value) reflect.Value {
	if !v.IsValid() || f.omitted >= 0 && v.Field(f.omitted).IsZero() {
		return reflect.Value{}
	}
	out := f.entry.GetFrom(v)
	if f.entry.CanOmit(out) {
		return reflect.Value{}
	}
	return out
}

func (p *place) mappings(s *shape, l, r reflect.Value) (bool, error) {
	entry := func(k, fl, fr reflect.Value) error {
		name := k.String()
		child := place{above: p, element: fieldpath.PathElement{FieldName: &name}}
		return child.compare(s.element, fl, fr)
	}
	lookup := func(m, k reflect.Value) reflect.Value {
		if !m.IsValid() {
			return m
		}
		return m.MapIndex(k)
	}
	any := false
	if r.IsValid() {
		for it := r.MapRange(); it.Next(); {
			any = true
			if err := entry(it.Key(), lookup(l, it.Key()), it.Value()); err != nil {
				return any, err
			}
		}
	}
	if l.IsValid() {
		for it := l.MapRange(); it.Next(); {
			any = true
			if lookup(r, it.Key()).IsValid() {
				continue
			}
			if err := entry(it.Key(), it.Value(), reflect.Value{}); err != nil {
				return any, err
			}
		}
	}
	return any, nil
}

// twins are the elements of two lists that have the same key: one each as a rule.
type twins struct {
	element fieldpath.PathElement
	l, r    []reflect.Value
}

func (p *place) lists(s *shape, l, r reflect.Value) (bool, error) {
	all, err := pair(s, l, r)
	if err != nil {
		return false, err
	}
	for i := range all {
		if err := p.twins(s, &all[i]); err != nil {
			return true, err
		}
	}
	return len(all) > 0, nil
}

// pair finds the elements that belong together.
func pair(s *shape, l, r reflect.Value) ([]twins, error) {
	var all []twins
	index := fieldpath.MakePathElementMap(0)
	for side, list := range []reflect.Value{l, r} {
		if !list.IsValid() {
			continue
		}
		for i := range list.Len() {
			v := list.Index(i)
			element, err := s.elementOf(v)
			if err != nil {
				return nil, err
			}
			at, ok := index.Get(element)
			if !ok {
				at = len(all)
				all = append(all, twins{element: element})
				index.Insert(element, at)
			}
			t := &all[at.(int)]
			if side == 0 {
				t.l = append(t.l, v)
			} else {
				t.r = append(t.r, v)
			}
		}
	}
	return all, nil
}

// twins compares elements that have the same key. Those that occur more than once on a side are
// one thing, whatever they are.
func (p *place) twins(s *shape, t *twins) error {
	child := place{above: p, element: t.element}
	one := func(all []reflect.Value) reflect.Value {
		if len(all) == 0 {
			return reflect.Value{}
		}
		return all[0]
	}
	switch {
	case len(t.l) < 2 && len(t.r) < 2:
		return child.compare(s.element, one(t.l), one(t.r))
	case len(t.l) > 1 && len(t.r) > 1:
		same := len(t.l) == len(t.r)
		for i := 0; same && i < len(t.l); i++ {
			same = equalValues(t.l[i], t.r[i])
		}
		if !same {
			child.mark(modified)
		}
	case len(t.l) > 1:
		child.mark(removed)
		if len(t.r) > 0 {
			return child.compare(s.element, reflect.Value{}, t.r[0])
		}
	default:
		child.mark(added)
		if len(t.l) > 0 {
			return child.compare(s.element, t.l[0], reflect.Value{})
		}
	}
	return nil
}

// elementOf tells an element of a list from the others.
func (s *shape) elementOf(v reflect.Value) (fieldpath.PathElement, error) {
	v = solid(v)
	if !v.IsValid() {
		return fieldpath.PathElement{}, errNoKey
	}
	if s.kind == set {
		return fieldpath.ValueElement(value.NewValueInterface(plain(v))), nil
	}
	fields := make(value.FieldList, 0, len(s.keys))
	for i := range s.keys {
		k := &s.keys[i]
		field := k.entry.GetFrom(v)
		content := k.missing
		if !k.entry.CanOmit(field) {
			if field = solid(field); !field.IsValid() || !basic(field.Kind()) {
				return fieldpath.PathElement{}, errNoKey
			}
			content = plain(field)
		}
		if content != nil {
			fields = append(fields, value.Field{Name: k.name, Value: value.NewValueInterface(content)})
		}
	}
	if len(fields) == 0 {
		return fieldpath.PathElement{}, errNoKey
	}
	return fieldpath.PathElement{Key: &fields}, nil
}

// keyless fails for what holds an element that cannot be told from others.
func (s *shape) keyless(v reflect.Value) error {
	if v = solid(v); !s.lists || !v.IsValid() {
		return nil
	}
	switch s.kind {
	case object:
		for i := range s.fields {
			if f := &s.fields[i]; f.shape.lists {
				if err := f.shape.keyless(f.of(v)); err != nil {
					return err
				}
			}
		}
	case mapping:
		for it := v.MapRange(); it.Next(); {
			if err := s.element.keyless(it.Value()); err != nil {
				return err
			}
		}
	case keyed, set:
		for i := range v.Len() {
			if !s.hasKey(v.Index(i)) {
				return errNoKey
			}
			if err := s.element.keyless(v.Index(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

// hasKey tells whether elementOf can tell an element from others.
func (s *shape) hasKey(v reflect.Value) bool {
	if v = solid(v); !v.IsValid() {
		return false
	}
	found := s.kind == set
	for i := range s.keys {
		k := &s.keys[i]
		field := k.entry.GetFrom(v)
		if k.entry.CanOmit(field) {
			found = found || k.missing != nil
			continue
		}
		if field = solid(field); !field.IsValid() || !basic(field.Kind()) {
			return false
		}
		found = true
	}
	return found
}

// plain is a value of a basic type as JSON knows it.
func plain(v reflect.Value) any {
	switch {
	case v.CanInt():
		return v.Int()
	case v.CanUint():
		return int64(v.Uint())
	case v.CanFloat():
		return v.Float()
	case v.Kind() == reflect.Bool:
		return v.Bool()
	default:
		return v.String()
	}
}

// equal tells whether two leaves are written alike.
func equal(s *shape, l, r reflect.Value) bool {
	if !s.simple {
		return equalValues(l, r)
	}
	l, r = solid(l), solid(r)
	if !l.IsValid() || !r.IsValid() {
		return l.IsValid() == r.IsValid()
	}
	return l.Equal(r)
}

// equalValues compares what two values of the same type are written as.
func equalValues(l, r reflect.Value) bool {
	if l.CanAddr() && r.CanAddr() && l.Addr() == r.Addr() {
		return true
	}
	lv, lerr := value.NewValueReflect(pointer(l))
	rv, rerr := value.NewValueReflect(pointer(r))
	return lerr == nil && rerr == nil && value.Equals(lv, rv)
}

// pointer is one to the value, or to a copy of it.
func pointer(v reflect.Value) any {
	if v.Kind() == reflect.Pointer && !v.IsNil() {
		return v.Interface()
	}
	if v.CanAddr() {
		return v.Addr().Interface()
	}
	p := reflect.New(v.Type())
	p.Elem().Set(v)
	return p.Interface()
}
