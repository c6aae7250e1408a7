package ownership

import (
	"cmp"
	"reflect"
	"slices"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// Create records in obj, which is new, that manager set its fields, as [Recorder.UpdateNoErrors] does given an empty object.
// It is false, and obj is as it was, where that has to be asked: about what Walks is false for, names that JSON would
// spell otherwise, and clients that send a record of their own.
//
// A new object has one owner, and nothing to compare with but the zero value of its type. So what is owned is written down in the
// course of the walk, in the record's own form, where an update has to make sets of both sides first.
func (r *Recorder) Create(obj runtime.Object, manager string) bool {
	m, err := meta.Accessor(obj)
	if err != nil || len(m.GetManagedFields()) > 0 || r.cfg.Subresource != "" {
		return false
	}
	known := r.shape()
	if known.created == nil {
		return false
	}
	converted, err := r.cfg.Convert(obj)
	if err != nil || reflect.TypeOf(converted) != known.typ {
		return false
	}
	var room [1024]byte
	c := creation{buf: append(room[:0], '{')}
	c.objects(known.created, known.zero, reflect.ValueOf(converted).Elem())
	if c.odd {
		return false
	}
	if len(c.buf) == 1 {
		m.SetManagedFields(nil)
		return true
	}
	c.buf[len(c.buf)-1] = '}'
	fields := &metav1.FieldsV1{}
	fields.SetRawBytes(c.buf) // copies them
	m.SetManagedFields([]metav1.ManagedFieldsEntry{{
		Manager: cmp.Or(manager, "unknown"), Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: r.cfg.APIVersion,
		Time: &metav1.Time{Time: time.Now().UTC()}, FieldsType: "FieldsV1", FieldsV1: fields,
	}})
	return true
}

// creation is the record of a new object in the making.
type creation struct {
	// buf ends with the opening brace of a set, or with the comma behind its last member, which becomes the closing brace.
	buf []byte
	// odd says that something came up which is left to the long way.
	odd bool
}

// value writes the set of what is owned of a value, whose name stands in buf already, and tells whether that is anything. What is
// owned, and when, is what place.compare finds for added and modified values.
func (c *creation) value(s *shape, l, r reflect.Value, server bool) bool {
	c.buf = append(c.buf, '{')
	open := len(c.buf)
	owned := !l.IsValid() && !server
	if owned {
		c.buf = append(c.buf, `".":{},`...)
	}
	inside := len(c.buf)
	parts := false
	switch s.kind {
	case object:
		parts = c.objects(s, solid(l), solid(r))
	case mapping:
		parts = c.mappings(s, solid(l), solid(r))
	case keyed, set:
		parts = c.lists(s, solid(l), solid(r))
	}
	if l.IsValid() && !parts && !server {
		if s.kind == leaf {
			owned = !equal(s, l, r)
		} else {
			owned = solid(l).IsValid() != solid(r).IsValid()
		}
	}
	switch {
	case len(c.buf) > inside:
		c.buf[len(c.buf)-1] = '}'
	case owned:
		c.buf = append(c.buf[:open], '}')
	default:
		return false
	}
	c.buf = append(c.buf, ',')
	return true
}

// objects writes the fields of a struct, and tells whether it has any.
func (c *creation) objects(s *shape, l, r reflect.Value) bool {
	any := false
	for i := range s.fields {
		f := &s.fields[i]
		fl, fr := f.of(l), f.of(r)
		if !fl.IsValid() && !fr.IsValid() {
			continue
		}
		any = true
		if !fr.IsValid() || f.role == reset {
			continue
		}
		start := len(c.buf)
		c.buf = append(c.buf, f.label...)
		if !c.value(f.shape, fl, fr, f.role == serverSet) {
			c.buf = c.buf[:start]
		}
	}
	return any
}

// mappings writes the entries of a map, and tells whether it has any.
func (c *creation) mappings(s *shape, l, r reflect.Value) bool {
	if l.IsValid() {
		c.odd = true // the zero value has none
		return true
	}
	if !r.IsValid() || r.Len() == 0 {
		return false
	}
	var room [16]string
	names := room[:0]
	if texts, ok := r.Interface().(map[string]string); ok {
		for name := range texts {
			names = append(names, name)
		}
	} else {
		for it := r.MapRange(); it.Next(); {
			names = append(names, it.Key().String())
		}
	}
	slices.Sort(names)
	for _, name := range names {
		c.buf = append(c.buf, `"f:`...)
		c.text(name)
		c.buf = append(c.buf, `":`...)
		if s.element.kind == leaf {
			c.buf = append(c.buf, `{},`...)
			continue
		}
		key := reflect.ValueOf(name).Convert(r.Type().Key())
		c.value(s.element, reflect.Value{}, r.MapIndex(key), false)
	}
	return true
}

// member is an element of a list, and what tells it from the others.
type member struct {
	element fieldpath.PathElement
	value   reflect.Value
}

// lists writes the elements of a list, and tells whether it has any. Those that occur more than once are one thing,
// whatever they are.
func (c *creation) lists(s *shape, l, r reflect.Value) bool {
	if l.IsValid() {
		c.odd = true // the zero value has none
		return true
	}
	if !r.IsValid() || r.Len() == 0 {
		return false
	}
	if r.Len() == 1 {
		c.member(s, r.Index(0), false)
		return true
	}
	all := make([]member, r.Len())
	for i := range all {
		all[i].value = r.Index(i)
		var err error
		if all[i].element, err = s.elementOf(all[i].value); err != nil {
			c.odd = true
			return true
		}
	}
	slices.SortStableFunc(all, func(a, b member) int { return a.element.Compare(b.element) })
	for i := 0; i < len(all); {
		next := i + 1
		for next < len(all) && all[next].element.Equals(all[i].element) {
			next++
		}
		c.member(s, all[i].value, next > i+1)
		i = next
	}
	return true
}

// member writes an element of a list.
func (c *creation) member(s *shape, v reflect.Value, repeated bool) {
	c.key(s, v)
	if repeated {
		c.buf = append(c.buf, `{},`...)
		return
	}
	c.value(s.element, reflect.Value{}, v, false)
}

// key writes what tells an element of a list from the others: what shape.elementOf finds. It is JSON in a JSON string.
func (c *creation) key(s *shape, v reflect.Value) {
	v = solid(v)
	if !v.IsValid() {
		c.odd = true
		return
	}
	if s.kind == set {
		c.buf = append(c.buf, `"v:`...)
		c.scalar(plain(v))
		c.buf = append(c.buf, `":`...)
		return
	}
	c.buf = append(c.buf, `"k:{`...)
	start := len(c.buf)
	for i := range s.keys {
		k := &s.keys[i]
		field := k.entry.GetFrom(v)
		content := k.missing
		if !k.entry.CanOmit(field) {
			if field = solid(field); !field.IsValid() || !basic(field.Kind()) {
				c.odd = true
				return
			}
			content = plain(field)
		}
		if content == nil {
			continue
		}
		c.buf = append(c.buf, `\"`...)
		c.text(k.name)
		c.buf = append(c.buf, `\":`...)
		c.scalar(content)
		c.buf = append(c.buf, ',')
	}
	if len(c.buf) == start {
		c.odd = true
		return
	}
	c.buf[len(c.buf)-1] = '}'
	c.buf = append(c.buf, `":`...)
}

// scalar writes a value within a key.
func (c *creation) scalar(content any) {
	switch v := content.(type) {
	case string:
		c.buf = append(c.buf, `\"`...)
		c.text(v)
		c.buf = append(c.buf, `\"`...)
	case int64:
		c.buf = strconv.AppendInt(c.buf, v, 10)
	case bool:
		c.buf = strconv.AppendBool(c.buf, v)
	default:
		c.odd = true
	}
}

// text writes a text that every JSON encoder writes as it is.
func (c *creation) text(s string) {
	if !spelledAlike(s) {
		c.odd = true
		return
	}
	c.buf = append(c.buf, s...)
}

func spelledAlike(s string) bool {
	for i := range len(s) {
		switch b := s[i]; {
		case b < ' ' || b > '~', b == '"', b == '\\', b == '<', b == '>', b == '&':
			return false
		}
	}
	return true
}
