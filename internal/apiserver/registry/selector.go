package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"

	"barque.dev/internal/api"
	"barque.dev/internal/store"
)

// A selector decides which objects a list or watch shows. It is immutable.
type selector struct {
	resource  *api.Resource
	kind      schema.GroupVersionKind // in the version that the client speaks
	namespace string                  // "" is all
	name      string                  // "" is all
	labels    labels.Selector
	fields    fields.Selector // without what namespace and name say already
	// index and value are a field requirement that the store has an index for.
	index, value string
	// terms are requirements by any of which the store may find what fulfils it without looking at every object.
	terms []term
}

// term is a requirement that one trait of an object has one of some values.
type term struct {
	trait  store.Trait
	values []string
}

// newSelector understands a request's selectors in the version that it speaks.
func newSelector(req Request, opts *metainternalversion.ListOptions) (*selector, error) {
	s := &selector{resource: req.Resource, kind: req.gv().WithKind(req.Resource.Kind), name: req.Name, labels: labels.Everything(), fields: fields.Everything()}
	if req.Resource.Namespaced {
		s.namespace = req.Namespace
	}
	if opts == nil {
		return s, nil
	}
	if opts.LabelSelector != nil {
		s.labels = opts.LabelSelector
		s.labelTerms()
	}
	if opts.FieldSelector == nil || opts.FieldSelector.Empty() {
		return s, nil
	}
	converted, err := opts.FieldSelector.Transform(func(label, value string) (string, string, error) {
		return req.Resource.Codec().ConvertField(req.gv(), label, value)
	})
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if req.Name != "" {
		// A name in the URL and another in the selector select nothing at all, and stock
		// calls it a mistake.
		if name, ok := converted.RequiresExactMatch("metadata.name"); ok && name != req.Name {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("fieldSelector metadata.name=%q doesn't match the name %q in the URL", name, req.Name))
		}
	}
	return s, s.narrow(converted)
}

// narrow takes out of the field selector what keys and indexes answer.
func (s *selector) narrow(all fields.Selector) error {
	var rest []fields.Selector
	known := s.resource.Fields
	for _, want := range all.Requirements() {
		exact := want.Operator == selection.Equals || want.Operator == selection.DoubleEquals
		switch {
		case exact && want.Field == "metadata.name" && (s.name == "" || s.name == want.Value) && want.Value != "":
			s.name = want.Value
			continue
		case exact && want.Field == "metadata.namespace" && s.resource.Namespaced && (s.namespace == "" || s.namespace == want.Value) && want.Value != "":
			s.namespace = want.Value
			continue
		case exact && s.index == "" && s.resource.Indexes[want.Field] != nil:
			s.index, s.value = want.Field, want.Value
		case exact && s.resource.FillFields != nil:
			s.terms = append(s.terms, s.fieldTerm(want.Field, want.Value))
		}
		if exact {
			rest = append(rest, fields.OneTermEqualSelector(want.Field, want.Value))
		} else {
			rest = append(rest, fields.OneTermNotEqualSelector(want.Field, want.Value))
		}
	}
	if len(rest) > 0 && known == nil {
		return apierrors.NewBadRequest("field selectors are not supported on this resource")
	}
	if len(rest) > 0 {
		s.fields = fields.AndSelectors(rest...)
	}
	return nil
}

// labelTerms notes which labels the selector wants one of some values of.
func (s *selector) labelTerms() {
	requirements, _ := s.labels.Requirements()
	for _, r := range requirements {
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In:
			s.terms = append(s.terms, term{store.LabelTrait(r.Key()), r.ValuesUnsorted()})
		}
	}
}

// fieldTerm is the requirement that a field of a built-in kind has a value. Two kinds may be kept in one table and know other fields
// (events), so the trait has the group's name.
func (s *selector) fieldTerm(field, value string) term {
	fill := s.resource.FillFields
	return term{values: []string{value}, trait: store.Trait{Name: "field " + s.resource.Group + " " + field, Value: func(obj runtime.Object) (string, bool) {
		set := fieldSets.Get().(fields.Set)
		fill(obj, set)
		value := set[field] // what an object lacks is "" to a field selector
		clear(set)
		fieldSets.Put(set)
		return value, true
	}}}
}

// fieldSets are empty sets for the fields of one object, which a list looks at for thousands.
var fieldSets = sync.Pool{New: func() any { return make(fields.Set, 16) }}

// fieldsMatch tells whether the field selector shows an object, which is the entry's.
func (s *selector) fieldsMatch(entry *store.Entry, obj runtime.Object) bool {
	if s.resource.FillFields == nil {
		return s.fields.Matches(s.keptFields(entry, obj))
	}
	set := fieldSets.Get().(fields.Set)
	s.resource.FillFields(obj, set)
	matches := s.fields.Matches(set)
	clear(set)
	fieldSets.Put(set)
	return matches
}

// fieldsID is the key under which versions of custom resources keep the fields that one of the resource's versions shows.
type fieldsID struct{ kind schema.GroupVersionKind }

// errNoFields is why fields are not kept: they could not be found out this time.
var errNoFields = errors.New("no fields")

// keptFields are the fields of a custom resource. To find them a webhook may have to convert it, so they are kept with the entry.
func (s *selector) keptFields(entry *store.Entry, obj runtime.Object) fields.Set {
	kind := s.kind
	if obj.GetObjectKind().GroupVersionKind() == kind {
		return s.resource.Fields(obj)
	}
	kept, err := entry.Wire(fieldsID{kind}, func() ([]byte, error) {
		set := s.resource.Fields(obj)
		if len(set) == 0 {
			return nil, errNoFields
		}
		return json.Marshal(set)
	})
	set := fields.Set{}
	if err != nil || json.Unmarshal(kept, &set) != nil {
		return fields.Set{}
	}
	return set
}

// everything tells whether key and namespace alone decide.
func (s *selector) everything() bool { return s.labels.Empty() && s.fields.Empty() }

// inScope tells whether key and namespace let an entry through.
func (s *selector) inScope(key store.Key) bool {
	return (s.namespace == "" || s.namespace == key.Namespace) && (s.name == "" || s.name == key.Name)
}

// matches tells whether the selector shows an entry.
func (s *selector) matches(entry *store.Entry) (bool, error) {
	if !s.inScope(entry.Key()) {
		return false, nil
	}
	if s.everything() {
		return true, nil
	}
	obj, err := entry.Object()
	if err != nil {
		return false, err
	}
	if s.index != "" && !slices.Contains(s.resource.Indexes[s.index](obj), s.value) {
		return false, nil // nearly always so for a node's agent, of which there are many: no need to know all fields
	}
	if !s.fields.Empty() && !s.fieldsMatch(entry, obj) {
		return false, nil
	}
	if s.labels.Empty() {
		return true, nil
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return false, err
	}
	return s.labels.Matches(labels.Set(m.GetLabels())), nil
}

// scan calls f with what the selector shows of a snapshot, in key order behind after, until f
// returns false.
func (s *selector) scan(snapshot *store.Snapshot, after store.Key, f func(*store.Entry) bool) error {
	var failure error
	visit := func(entry *store.Entry) bool {
		ok, err := s.matches(entry)
		if err != nil {
			failure = err
			return false
		}
		return !ok || f(entry)
	}
	switch {
	case s.name != "" && (s.namespace != "" || !s.resource.Namespaced):
		key := store.Key{Namespace: s.namespace, Name: s.name}
		if entry, ok := snapshot.Get(key); ok && (after == store.Key{}) {
			visit(entry)
		}
	case s.index != "":
		for _, entry := range snapshot.ByIndex(s.index, s.value) {
			if before(entry.Key(), after) {
				continue
			}
			if !visit(entry) {
				break
			}
		}
	case s.everything() && s.name == "":
		snapshot.Ascend(s.namespace, after, f)
	default:
		for _, t := range s.terms {
			if snapshot.AscendTrait(t.trait, t.values, s.namespace, after, visit) {
				return failure
			}
		}
		snapshot.Ascend(s.namespace, after, visit)
	}
	return failure
}

// before tells whether key is not behind after, in the order of keys in etcd.
func before(key, after store.Key) bool {
	return after != store.Key{} && path(key) <= path(after)
}

// path is where a key stands below its table's prefix.
func path(key store.Key) string {
	if key.Namespace == "" {
		return key.Name
	}
	return key.Namespace + "/" + key.Name
}
