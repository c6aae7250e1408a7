package pods

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"reflect"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/utils/dump"
)

// EqualTemplates compares two templates but for the label pod-template-hash.
func EqualTemplates(a, b *corev1.PodTemplateSpec) bool {
	return equality.Semantic.DeepEqual(withoutHash(a), withoutHash(b))
}

const templateHashLabel = "pod-template-hash"

func withoutHash(t *corev1.PodTemplateSpec) *corev1.PodTemplateSpec {
	if _, has := t.Labels[templateHashLabel]; !has {
		return t
	}
	c := *t
	c.Labels = maps.Clone(t.Labels)
	delete(c.Labels, templateHashLabel)
	return &c
}

// TemplateHash is the hash that upstream gives a pod template: FNV-1a of the template's dump,
// then of the collision count, if any, as eight little-endian bytes. ReplicaSets and pods are
// named and labelled by it, so it has to be the same here.
//
// The dump shows unexported fields too. A quantity keeps its text there, which depends on who
// made it and who has printed it; here it is as in an object fresh from the store.
func TemplateHash(template *corev1.PodTemplateSpec, collisions *int32) string {
	h := fnv.New32a()
	fmt.Fprintf(h, "%v", dump.ForHash(*withParsedQuantities(template)))
	if collisions != nil {
		var b [8]byte
		binary.LittleEndian.PutUint32(b[:], uint32(*collisions))
		h.Write(b[:])
	}
	return rand.SafeEncodeString(fmt.Sprint(h.Sum32()))
}

// withParsedQuantities returns a copy whose quantities are as if parsed from their own text.
func withParsedQuantities(template *corev1.PodTemplateSpec) *corev1.PodTemplateSpec {
	c := template.DeepCopy()
	reparseAll(reflect.ValueOf(c).Elem())
	return c
}

var quantityType = reflect.TypeFor[resource.Quantity]()

func reparseAll(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			reparseAll(v.Elem())
		}
	case reflect.Slice:
		for i := range v.Len() {
			reparseAll(v.Index(i))
		}
	case reflect.Map:
		if v.Type().Elem() != quantityType {
			return
		}
		for _, key := range v.MapKeys() {
			q := v.MapIndex(key).Interface().(resource.Quantity)
			reparse(&q)
			v.SetMapIndex(key, reflect.ValueOf(q))
		}
	case reflect.Struct:
		if v.Type() == quantityType {
			reparse(v.Addr().Interface().(*resource.Quantity))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				reparseAll(v.Field(i))
			}
		}
	}
}

func reparse(q *resource.Quantity) {
	// A quantity's own text always parses.
	*q = resource.MustParse(q.String())
}
