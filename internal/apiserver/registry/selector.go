package registry

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"barque.dev/internal/api"
	"barque.dev/internal/store"
)

// A selector decides which objects a list or watch shows. It is immutable.
type selector struct {
	resource  *api.Resource
	namespace string // "" is all
	name      string // "" is all
	labels    labels.Selector
	fields    fields.Selector // without what namespace and name say already
	// index and value are a field requirement that the store has an index for.
	index, value string
}

// newSelector understands a request's selectors in the version that it speaks.
func newSelector(req Request, opts *metainternalversion.ListOptions) (*selector, error) {
	s := &selector{resource: req.Resource, name: req.Name, labels: labels.Everything(), fields: fields.Everything()}
	if req.Resource.Namespaced {
		s.namespace = req.Namespace
	}
	if opts == nil {
		return s, nil
	}
	if opts.LabelSelector != nil {
		s.labels = opts.LabelSelector
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
	if !s.fields.Empty() && !s.fields.Matches(s.resource.Fields(obj)) {
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
	default:
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
