package registry

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	kjson "sigs.k8s.io/json"

	"barque.dev/internal/api"
)

// A patch that merges names the fields at an object's top that it changes, often one of them: the
// labels of a pod, or its status. Only those have to become JSON and an object again; the others
// are copied. Whatever is not plain (fields that do not exist or come twice, values of a wrong type,
// directives at the top) is left to the patch of the whole object, which also finds the words for
// what is wrong.

// division is a built-in object, divided into what a patch touches and the rest.
type division struct {
	part runtime.Object // what is touched; it shares with the object
	rest reflect.Value  // a copy of the rest
	// touched are the indexes of the fields.
	touched []int
	// owned are the managed fields, which the part goes without; nil if it has them.
	owned []metav1.ManagedFieldsEntry
}

// divide divides an object by the names at the top of a patch. It fails for what only the whole
// object can be patched with.
func divide(obj runtime.Object, changes map[string]any) (division, bool) {
	value := reflect.ValueOf(obj)
	if value.Kind() != reflect.Pointer || value.Elem().Kind() != reflect.Struct {
		return division{}, false
	}
	value = value.Elem()
	part, rest := reflect.New(value.Type()), reflect.New(value.Type())
	rest.Elem().Set(value)
	d := division{}
	for i := range value.NumField() {
		name, _, _ := strings.Cut(value.Type().Field(i).Tag.Get("json"), ",")
		if name == "" { // the type, which part and rest both have
			part.Elem().Field(i).Set(value.Field(i))
			continue
		}
		if _, ok := changes[name]; ok {
			d.touched = append(d.touched, i)
			part.Elem().Field(i).Set(value.Field(i))
			rest.Elem().Field(i).SetZero()
		}
	}
	// What the type has no field for is wrong, or a directive, or the type itself.
	if len(d.touched) != len(changes) {
		return division{}, false
	}
	whole, ok := obj.(metav1.Object)
	made, isObject := part.Interface().(runtime.Object)
	if !ok || !isObject {
		return division{}, false
	}
	if patched, ok := changes["metadata"]; ok {
		if fields, ok := patched.(map[string]any); !ok || !plain(fields) {
			return division{}, false
		}
		d.owned = whole.GetManagedFields()
		made.(metav1.Object).SetManagedFields(nil)
	}
	d.part, d.rest = made, reflect.ValueOf(rest.Interface().(runtime.Object).DeepCopyObject())
	return d, true
}

// plain tells whether a patch of metadata leaves the managed fields alone.
func plain(metadata map[string]any) bool {
	for name := range metadata {
		if name == "managedFields" || strings.HasPrefix(name, "$") {
			return false
		}
	}
	return true
}

// join puts the patched part and the rest together, with defaults.
func (d division) join(patched runtime.Object) runtime.Object {
	from, to := reflect.ValueOf(patched).Elem(), d.rest.Elem()
	for _, i := range d.touched {
		to.Field(i).Set(from.Field(i))
	}
	out := d.rest.Interface().(runtime.Object)
	if d.owned != nil {
		out.(metav1.Object).SetManagedFields(slices.Clone(d.owned))
	}
	api.Scheme().Default(out)
	return out
}

// patchPart makes the patched object by the part that a merge patch touches; false means that the
// whole object has to be patched.
func (p *patch) patchPart(live runtime.Object, merge func(part, out runtime.Object, changes map[string]any) bool) (runtime.Object, bool) {
	changes := map[string]any{}
	if complaints, err := kjson.UnmarshalStrict(p.body, &changes); err != nil || len(complaints) > 0 {
		return nil, false
	}
	if out, ok := patchStrings(live, changes); ok {
		return out, true
	}
	d, ok := divide(live, changes)
	if !ok {
		return nil, false
	}
	out := reflect.New(reflect.TypeOf(live).Elem()).Interface().(runtime.Object)
	if !merge(d.part, out, changes) {
		return nil, false
	}
	return d.join(out), true
}

// patchStrings makes the patched object if labels and annotations are all that is patched, which need not become JSON at all: both
// kinds of merge patches set them and, by null, take them away.
func patchStrings(live runtime.Object, changes map[string]any) (runtime.Object, bool) {
	metadata, _ := changes["metadata"].(map[string]any)
	if len(changes) != 1 || len(metadata) == 0 {
		return nil, false
	}
	for name, content := range metadata {
		if name != "labels" && name != "annotations" || !plainStrings(content) {
			return nil, false
		}
	}
	value := reflect.ValueOf(live)
	was, ok := live.(metav1.Object)
	if _, raw := live.(runtime.Unstructured); !ok || raw || value.Kind() != reflect.Pointer || value.Elem().Kind() != reflect.Struct {
		return nil, false
	}
	// A copy of what is not patched: the record of fields is about to be made anew, of the old one's parts.
	rest := reflect.New(value.Elem().Type())
	rest.Elem().Set(value.Elem())
	flat := rest.Interface().(metav1.Object)
	flat.SetManagedFields(nil)
	out := rest.Interface().(runtime.Object).DeepCopyObject()
	m := out.(metav1.Object)
	m.SetManagedFields(slices.Clone(was.GetManagedFields()))
	if labels, ok := metadata["labels"]; ok {
		m.SetLabels(mergeStrings(was.GetLabels(), labels.(map[string]any)))
	}
	if annotations, ok := metadata["annotations"]; ok {
		m.SetAnnotations(mergeStrings(was.GetAnnotations(), annotations.(map[string]any)))
	}
	api.Scheme().Default(out)
	return out, true
}

// plainStrings tells whether a patch sets and removes strings by their names, without directives.
func plainStrings(content any) bool {
	entries, ok := content.(map[string]any)
	for name, value := range entries {
		if _, isString := value.(string); !isString && value != nil || strings.HasPrefix(name, "$") {
			return false
		}
	}
	return ok
}

func mergeStrings(before map[string]string, changes map[string]any) map[string]string {
	after := make(map[string]string, len(before)+len(changes))
	maps.Copy(after, before)
	for name, value := range changes {
		if text, ok := value.(string); ok {
			after[name] = text
		} else {
			delete(after, name)
		}
	}
	return after
}

// mergePart is a JSON merge patch of a part (RFC 7386).
func (p *patch) mergePart(part, out runtime.Object, _ map[string]any) bool {
	before, err := json.Marshal(part)
	if err != nil {
		return false
	}
	after, err := jsonpatch.MergePatch(before, p.body)
	if err != nil {
		return false
	}
	complaints, err := kjson.UnmarshalStrict(after, out)
	return err == nil && len(complaints) == 0
}

// mergePartStrategic is a strategic merge patch of a part.
func mergePartStrategic(part, out runtime.Object, changes map[string]any) bool {
	before, err := runtime.DefaultUnstructuredConverter.ToUnstructured(part)
	if err != nil {
		return false
	}
	maps.DeleteFunc(before, func(name string, _ any) bool { _, ok := changes[name]; return !ok })
	after, err := strategicpatch.StrategicMergeMapPatch(before, changes, out)
	return err == nil && runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(after, out, true) == nil
}
