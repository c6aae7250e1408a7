// Package ownership records who set which field of an object, in metadata.managedFields (KEP-555).
//
// What is recorded is what upstream's FieldManager records, to the byte, and that is what answers
// for whatever is out of the ordinary: server-side apply, types whose form depends on their content, records that
// a client made by hand. A [Recorder] does the ordinary creations and updates in its stead, since they are most of
// what a cluster writes: it walks both objects once along a shape that is made of their Go type and its schema, where
// upstream makes a typed value of each and compares these, for thirty times as much.
package ownership

import (
	"bytes"
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// maxUpdaters is how many managers are kept apart before upstream puts the oldest together.
const maxUpdaters = 10

// maxEntries is how long a record may be that is looked at here: each of it is compared with those before it. A client may
// have written a longer one, which is upstream's business.
const maxEntries = 64

// Config configures a Recorder.
type Config struct {
	// Stock is upstream's.
	Stock *managedfields.FieldManager
	// APIVersion is that of the objects whose fields are recorded, and Subresource what they are written through.
	APIVersion  string
	Subresource string
	// Typed gives an object its schema; nil leaves everything to upstream's.
	Typed func(runtime.Object) (*typed.TypedValue, error)
	// Convert brings an object to the version; it may share memory with what it was made of.
	Convert func(runtime.Object) (runtime.Object, error)
	// Reset are the fields that requests cannot set; nil for none.
	Reset *fieldpath.Set
}

// A Recorder records who sets fields of objects of one version of a kind, through the resource itself or one of its
// subresources. It is safe for concurrent use.
type Recorder struct {
	cfg   Config
	shape func() typeShape
	read  memory
}

// typeShape is what a Recorder knows of its type; none where it leaves all to upstream.
type typeShape struct {
	typ    reflect.Type
	shape  *shape
	schema *typed.TypedValue
	// created is the shape of new objects; nil if they have to be compared with an empty one. zero is that, without
	// its kind.
	created *shape
	zero    reflect.Value
}

// New returns a Recorder for objects like sample.
func New(cfg Config, sample runtime.Object) *Recorder {
	return &Recorder{cfg: cfg, shape: sync.OnceValue(func() typeShape {
		if cfg.Typed == nil {
			return typeShape{}
		}
		t, err := cfg.Typed(sample)
		if err != nil {
			return typeShape{}
		}
		c := compiler{schema: t.Schema(), made: map[seen]*shape{}}
		s, err := c.root(reflect.TypeOf(sample), t.TypeRef())
		if err != nil {
			return typeShape{}
		}
		typ := reflect.TypeOf(sample)
		return typeShape{typ: typ, shape: s, schema: t, created: s.creation(cfg.Reset), zero: reflect.Zero(typ.Elem())}
	})}
}

// Walks tells whether the Recorder does what is ordinary itself, and does not leave everything to upstream's.
func (r *Recorder) Walks() bool { return r.shape().shape != nil }

// Apply merges a configuration into live (server-side apply).
func (r *Recorder) Apply(live, wanted runtime.Object, manager string, force bool) (runtime.Object, error) {
	return r.cfg.Stock.Apply(live, wanted, manager, force)
}

// UpdateNoErrors returns obj with the record of who set its fields, now that manager makes it of live, which is an
// empty object when obj is new. It may change obj, and does not change live. Where fields cannot be told, as in lists whose
// elements lack their keys, the record stays as it was.
func (r *Recorder) UpdateNoErrors(live, obj runtime.Object, manager string) runtime.Object {
	if r.record(live, obj, manager) {
		return obj
	}
	return r.cfg.Stock.UpdateNoErrors(live, obj, manager)
}

// record does what is ordinary, or nothing at all.
func (r *Recorder) record(live, obj runtime.Object, manager string) bool {
	before, err := meta.Accessor(live)
	if err != nil {
		return false
	}
	after, err := meta.Accessor(obj)
	if err != nil {
		return false
	}
	entries, ok := r.entries(before, after)
	if !ok {
		return false
	}
	if len(entries) == 0 && before.GetUID() != "" {
		after.SetManagedFields(nil) // what was never tracked is not tracked
		return true
	}
	found, ok := r.compare(live, obj)
	if !ok {
		return false
	}
	if entries, err = r.transfer(entries, found, cmp.Or(manager, "unknown")); err != nil {
		return false
	}
	after.SetManagedFields(entries)
	return true
}

// entries are the record so far. It is false if it isn't one that the server wrote for this version.
func (r *Recorder) entries(before, after metav1.Object) ([]metav1.ManagedFieldsEntry, bool) {
	entries, sent := before.GetManagedFields(), after.GetManagedFields()
	if r.cfg.Subresource == "" && sent != nil && !SameRecord(entries, sent) {
		return nil, false
	}
	if len(entries) > maxEntries {
		return nil, false
	}
	updaters := 1
	for i, e := range entries {
		if e.Operation == metav1.ManagedFieldsOperationUpdate {
			updaters++
		} else if e.Operation != metav1.ManagedFieldsOperationApply {
			return nil, false
		}
		if e.APIVersion != r.cfg.APIVersion || e.FieldsType != "FieldsV1" || e.FieldsV1 == nil {
			return nil, false
		}
		if slices.ContainsFunc(entries[:i], func(o metav1.ManagedFieldsEntry) bool { return sameManager(e, o) }) {
			return nil, false
		}
	}
	return entries, updaters <= maxUpdaters
}

func sameManager(a, b metav1.ManagedFieldsEntry) bool {
	return a.Manager == b.Manager && a.Operation == b.Operation && a.APIVersion == b.APIVersion && a.Subresource == b.Subresource
}

// SameRecord tells whether two records say the same.
func SameRecord(a, b []metav1.ManagedFieldsEntry) bool { return slices.EqualFunc(a, b, sameEntry) }

func sameEntry(a, b metav1.ManagedFieldsEntry) bool {
	return sameManager(a, b) && a.Time.Equal(b.Time) && a.FieldsType == b.FieldsType && a.FieldsV1 != nil && b.FieldsV1 != nil &&
		a.FieldsV1.Equal(*b.FieldsV1)
}

// compare tells what obj changes in live, of what can be set.
func (r *Recorder) compare(live, obj runtime.Object) (comparison, bool) {
	if !r.Walks() {
		return comparison{}, false
	}
	known := r.shape()
	var sides [2]reflect.Value
	for i, o := range []runtime.Object{live, obj} {
		converted, err := r.cfg.Convert(o)
		if err != nil || reflect.TypeOf(converted) != known.typ {
			return comparison{}, false
		}
		sides[i] = reflect.ValueOf(converted)
	}
	found, err := compare(known.shape, sides[0], sides[1])
	if err != nil {
		return comparison{}, false
	}
	if r.cfg.Reset != nil && !found.empty() {
		for i := range found {
			found[i] = found[i].RecursiveDifference(r.cfg.Reset)
		}
	}
	return found, true
}

// transfer gives what was found to the manager, and takes it from everybody else.
func (r *Recorder) transfer(entries []metav1.ManagedFieldsEntry, found comparison, manager string) ([]metav1.ManagedFieldsEntry, error) {
	entries = slices.Clone(entries)
	if found.empty() {
		return entries, nil
	}
	gained := found[added].Union(found[modified])
	own := gained.Difference(unowned())
	self := metav1.ManagedFieldsEntry{
		Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: r.cfg.APIVersion, FieldsType: "FieldsV1",
		Subresource: r.cfg.Subresource,
	}
	kept := entries[:0]
	for _, e := range entries {
		owned, err := r.decode(e)
		if err != nil {
			return nil, err
		}
		rest := owned.Difference(found[removed]).Difference(gained)
		if sameManager(e, self) && !own.Empty() {
			own = own.Union(rest)
			continue
		}
		if rest.Empty() {
			continue
		}
		if !rest.Equals(owned) {
			if e.FieldsV1, err = encode(rest); err != nil {
				return nil, err
			}
		}
		kept = append(kept, e)
	}
	if !own.Empty() {
		var err error
		if self.FieldsV1, err = encode(own); err != nil {
			return nil, err
		}
		self.Time = &metav1.Time{Time: time.Now().UTC()}
		kept = append(kept, self)
	}
	if len(kept) == 0 {
		return nil, nil
	}
	slices.SortStableFunc(kept, compareEntries)
	return kept, nil
}

// unowned are the fields that the server sets.
var unowned = sync.OnceValue(func() *fieldpath.Set {
	s := fieldpath.NewSet(fieldpath.MakePathOrDie("apiVersion"), fieldpath.MakePathOrDie("kind"), fieldpath.MakePathOrDie("metadata"))
	for _, name := range []string{
		"name", "namespace", "creationTimestamp", "selfLink", "uid", "clusterName", "generation", "managedFields", "resourceVersion",
	} {
		s.Insert(fieldpath.MakePathOrDie("metadata", name))
	}
	return s
})

// decode reads an entry. An entry of another schema, where what is one field now was several, is for upstream. The set may be
// shared, and is not to be changed.
func (r *Recorder) decode(e metav1.ManagedFieldsEntry) (*fieldpath.Set, error) {
	raw := e.FieldsV1.GetRawBytes()
	if known := r.read.get(raw); known != nil {
		return known, nil
	}
	owned := &fieldpath.Set{}
	if err := owned.FromJSON(bytes.NewReader(raw)); err != nil {
		return nil, fmt.Errorf("read the fields of %s: %w", e.Manager, err)
	}
	changed, err := typed.ReconcileFieldSetWithSchema(owned, r.shape().schema)
	if err == nil && changed != nil {
		err = fmt.Errorf("the fields of %s are of another schema", e.Manager)
	}
	if err != nil {
		return nil, err
	}
	r.read.put(raw, owned)
	return owned, nil
}

func encode(s *fieldpath.Set) (*metav1.FieldsV1, error) {
	raw, err := s.ToJSON()
	if err != nil {
		return nil, err
	}
	fields := &metav1.FieldsV1{}
	fields.SetRawBytes(raw)
	return fields, nil
}

// compareEntries is upstream's order.
func compareEntries(a, b metav1.ManagedFieldsEntry) int {
	seconds := func(e metav1.ManagedFieldsEntry) int64 {
		if e.Time == nil {
			return 0
		}
		return e.Time.Unix()
	}
	return cmp.Or(cmp.Compare(a.Operation, b.Operation), cmp.Compare(seconds(a), seconds(b)), cmp.Compare(a.Manager, b.Manager),
		cmp.Compare(a.APIVersion, b.APIVersion), cmp.Compare(a.Subresource, b.Subresource))
}
