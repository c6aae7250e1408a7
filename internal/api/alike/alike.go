// Package alike finds out what two objects of one type have in common, and lets them have it in common in memory too.
//
// Most changes touch little of an object, and nearly everything that looks at a change asks first what is the same:
// validation, which spares what was valid before, and the record of who set what. The general comparisons that these
// ask cost tens of microseconds a pod each, but are over at once where both sides are the same memory. One cheap pass
// that brings that about pays for all of them.
//
// Alike is narrower than equal: nothing that anybody could tell apart, such as an absent list and an empty one, is alike.
// What may not be compared cheaply (an interface, a function) is alike only if it is nil. So "alike" can be relied on,
// and "not alike" means that a thorough comparison has to decide.
package alike

import (
	"bytes"
	"math"
	"reflect"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Equal tells whether two values of one type are alike. Types that contain themselves are fine, values that do are not:
// no API object is one.
func Equal(a, b reflect.Value) bool { return pass{}.compare(a, b) }

// Share makes two objects, which are pointers to structs of one type, share what is alike in them: wherever both hold a
// list, a map or a pointer of like content, into has from's afterwards. It tells whether all is alike. Whoever shares must
// not change either of them in place.
func Share(into, from any) bool {
	a, b := reflect.ValueOf(into), reflect.ValueOf(from)
	if a.Type() != b.Type() || a.Kind() != reflect.Pointer || a.IsNil() || b.IsNil() {
		return false
	}
	return pass{share: true}.compare(a.Elem(), b.Elem())
}

// pass is one walk over two values.
type pass struct{ share bool }

func (p pass) compare(a, b reflect.Value) bool {
	switch a.Kind() {
	case reflect.String:
		return a.String() == b.String()
	case reflect.Bool:
		return a.Bool() == b.Bool()
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return a.Int() == b.Int()
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		return a.Uint() == b.Uint()
	case reflect.Float32, reflect.Float64: // zeros have signs
		return math.Float64bits(a.Float()) == math.Float64bits(b.Float())
	case reflect.Struct:
		return p.structs(a, b)
	case reflect.Pointer:
		return p.pointers(a, b)
	case reflect.Slice:
		return p.slices(a, b)
	case reflect.Map:
		return p.maps(a, b)
	case reflect.Interface, reflect.Func, reflect.Chan:
		return a.IsNil() && b.IsNil()
	default: // arrays, complex numbers
		return a.Comparable() && b.Comparable() && a.Equal(b)
	}
}

// quantity is a type that caches its text inside it: [resource.Quantity].
var quantity = reflect.TypeFor[resource.Quantity]()

// cachedText is the index of that text.
const cachedText = 2

// quantities compares two quantities. One that has no text yet is alike to one that has the text that it will have,
// which is not always so: a few odd spellings stay as they came.
func quantities(a, b reflect.Value) bool {
	for i := range a.NumField() {
		if i != cachedText && !(pass{}).compare(a.Field(i), b.Field(i)) {
			return false
		}
	}
	x, y := a.Field(cachedText).String(), b.Field(cachedText).String()
	if x == y || x != "" && y != "" || !a.CanInterface() || !b.CanInterface() {
		return x == y
	}
	p, q := a.Interface().(resource.Quantity), b.Interface().(resource.Quantity) // copies: others may be reading
	return p.String() == q.String()
}

// structs goes on after a difference only to share what comes later.
func (p pass) structs(a, b reflect.Value) bool {
	if a.Type() == quantity {
		return quantities(a, b)
	}
	same := true
	for i := range a.NumField() {
		if p.compare(a.Field(i), b.Field(i)) {
			continue
		}
		if same = false; !p.share {
			break
		}
	}
	return same
}

func (p pass) pointers(a, b reflect.Value) bool {
	switch {
	case a.Pointer() == b.Pointer():
		return true
	case a.IsNil() || b.IsNil() || !p.compare(a.Elem(), b.Elem()):
		return false
	}
	p.take(a, b)
	return true
}

func (p pass) slices(a, b reflect.Value) bool {
	n := a.Len()
	same := n == b.Len() && a.IsNil() == b.IsNil()
	if same && a.Pointer() == b.Pointer() {
		return true
	}
	if !same && !p.share {
		return false
	}
	if a.Type().Elem().Kind() == reflect.Uint8 {
		same = same && bytes.Equal(a.Bytes(), b.Bytes())
	} else if !p.elements(a, b) {
		same = false
	}
	if same && n > 0 {
		p.take(a, b)
	}
	return same
}

// elements compares the elements that two lists have, place by place.
func (p pass) elements(a, b reflect.Value) bool {
	same := true
	for i := range min(a.Len(), b.Len()) {
		if p.compare(a.Index(i), b.Index(i)) {
			continue
		}
		if same = false; !p.share {
			break
		}
	}
	return same
}

// strings is the type of nearly all maps, and goes without reflection.
type strings = map[string]string

func (p pass) maps(a, b reflect.Value) bool {
	switch {
	case a.Pointer() == b.Pointer():
		return true
	case a.Len() != b.Len() || a.IsNil() != b.IsNil():
		return false
	}
	if a.CanInterface() && b.CanInterface() {
		if x, ok := a.Interface().(strings); ok {
			for key, value := range x {
				if other, ok := b.Interface().(strings)[key]; !ok || other != value {
					return false
				}
			}
			p.take(a, b)
			return true
		}
	}
	for it := a.MapRange(); it.Next(); {
		// Values of maps cannot be set: there is nothing to share below them.
		other := b.MapIndex(it.Key())
		if !other.IsValid() || !(pass{}).compare(it.Value(), other) {
			return false
		}
	}
	p.take(a, b)
	return true
}

// take makes a be b, unless it is of a type that keeps its fields to itself.
func (p pass) take(a, b reflect.Value) {
	if p.share && a.CanSet() {
		a.Set(b)
	}
}
