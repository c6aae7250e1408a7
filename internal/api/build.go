package api

import (
	"slices"
	"strings"
	"time"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
)

// standardVerbs are what a kept resource has unless its definition says otherwise.
func standardVerbs() []string {
	return []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
}

// viewVerbs are what a subresource that is a view of its parent has.
func viewVerbs() []string { return []string{"get", "patch", "update"} }

// definition is a line of the table. What is left out takes the usual value.
type definition struct {
	resource, kind string
	singular       string   // the kind in lower case
	short          []string // none
	categories     []string // none
	cluster        bool     // namespaced
	verbs          []string // standardVerbs
	served         []string // v1
	storage        string   // the first served version
	storageGroup   *string  // the group itself
	prefix         string   // the resource's name
	json           string   // the version that is kept as JSON; "" keeps the storage version as protobuf
	printer        Printer  // the borrowed printers' columns
	ttl            time.Duration
	returns        bool

	strategy strategy                // nil for a virtual resource
	status   rest.RESTUpdateStrategy // nil without a status subresource
	subs     []*Subresource

	fields  func(obj runtime.Object, set fields.Set)
	indexes map[string]func(obj runtime.Object) []string
	onRead  func(obj runtime.Object)
	order   func(a, b runtime.Object) int // of tables
}

// define turns the lines of one group into resources.
func define(group string, definitions ...definition) []*Resource {
	out := make([]*Resource, len(definitions))
	for i, d := range definitions {
		out[i] = d.build(group)
	}
	return out
}

func (d definition) build(group string) *Resource {
	if d.served == nil {
		d.served = []string{"v1"}
	}
	storage := schema.GroupVersion{Group: group, Version: d.served[0]}
	if d.storage != "" {
		storage.Version = d.storage
	}
	if d.storageGroup != nil {
		storage.Group = *d.storageGroup
	}
	if d.verbs == nil {
		d.verbs = standardVerbs()
	}
	if d.singular == "" {
		d.singular = strings.ToLower(d.kind)
	}
	r := &Resource{
		GroupResource: schema.GroupResource{Group: group, Resource: d.resource},
		Kind:          d.kind, ListKind: d.kind + "List", Singular: d.singular, ShortNames: d.short, Categories: d.categories,
		Namespaced: !d.cluster, Verbs: d.verbs, Served: d.served, Storage: storage,
		TTL: d.ttl, ReturnsDeleted: d.returns,
		FillFields: selectableFields(!d.cluster, d.fields), Indexes: d.indexes,
		codec:   &builtinCodec{kind: d.kind, storage: storage, json: d.json, onRead: d.onRead},
		printer: d.printer, TableOrder: d.order,
	}
	r.Fields = func(obj runtime.Object) fields.Set {
		set := make(fields.Set, 12)
		r.FillFields(obj, set)
		return set
	}
	r.Kept = storage
	if d.json != "" {
		r.Kept.Version = d.json
	}
	if r.printer == nil {
		r.printer = printerOf(d.kind, storage)
	}
	r.Prefix = d.prefix
	if d.strategy != nil {
		if r.Prefix == "" {
			r.Prefix = d.resource
		}
		r.Rules = rulesFor(d.strategy, storage)
	}
	subs := d.subs
	if d.status != nil {
		subs = append(slices.Clone(subs), view("status", d.kind, d.status))
	}
	r.Subresources = make(map[string]*Subresource, len(subs))
	for _, sub := range subs {
		own := *sub
		if own.Kind.Version == "" {
			own.Kind.Group = group
		}
		if own.Rules != nil {
			bindHub(own.Rules, storage)
		}
		r.Subresources[own.Name] = &own
	}
	return r
}

// view is a subresource that shows its parent and updates a part of it.
func view(name, kind string, s rest.RESTUpdateStrategy) *Subresource {
	return &Subresource{Name: name, Kind: schema.GroupVersionKind{Kind: kind}, Verbs: viewVerbs(),
		Rules: updateRulesFor(s, schema.GroupVersion{})}
}

// viewWithoutReset is a view whose updates may touch any field, as far as field managers are
// concerned, although its rules ignore most of them.
func viewWithoutReset(name, kind string, s rest.RESTUpdateStrategy) *Subresource {
	sub := view(name, kind, s)
	sub.Rules.reset = nil
	return sub
}

// scale is the subresource that reads and sets the number of replicas.
func scale() *Subresource {
	return &Subresource{Name: "scale", Kind: autoscalingv1.SchemeGroupVersion.WithKind("Scale"), Verbs: viewVerbs()}
}

// action is a subresource that is only created.
func action(name string, kind schema.GroupVersionKind) *Subresource {
	return &Subresource{Name: name, Kind: kind, Verbs: []string{"create"}}
}

// connect is a subresource whose requests are passed on.
func connect(name, kind string, verbs ...string) *Subresource {
	return &Subresource{Name: name, Kind: schema.GroupVersionKind{Kind: kind}, Verbs: verbs, Connect: true}
}

func proxy(kind string) *Subresource {
	return connect("proxy", kind, "create", "delete", "get", "patch", "update")
}
