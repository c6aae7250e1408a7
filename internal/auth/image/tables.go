package image

import (
	"slices"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/store"
)

// Tables is a Reader over the store's tables. It is safe for concurrent use.
type Tables struct {
	table   func(schema.GroupResource) *store.Table
	indexes map[tableIndex]func(runtime.Object) []string
}

type tableIndex struct {
	gr   schema.GroupResource
	name string
}

var _ Reader = (*Tables)(nil)

// NewTables reads from the tables that table finds, which returns nil for what is not served.
// The tables should have these indexes; one that has not is searched through instead.
func NewTables(table func(schema.GroupResource) *store.Table, indexes ...Index) *Tables {
	t := &Tables{table: table, indexes: map[tableIndex]func(runtime.Object) []string{}}
	for _, ix := range indexes {
		t.indexes[tableIndex{ix.Resource, ix.Name}] = ix.Values
	}
	return t
}

// Get implements Reader. An object that cannot be decoded counts as absent: access is refused
// rather than guessed.
func (t *Tables) Get(gr schema.GroupResource, namespace, name string) runtime.Object {
	table := t.table(gr)
	if table == nil {
		return nil
	}
	entry, ok := table.Get(store.Key{Namespace: namespace, Name: name})
	if !ok {
		return nil
	}
	obj, err := entry.Object()
	if err != nil {
		return nil
	}
	return obj
}

// ByIndex implements Reader.
func (t *Tables) ByIndex(gr schema.GroupResource, index, value string, f func(runtime.Object) bool) {
	table := t.table(gr)
	if table == nil {
		return
	}
	if _, ok := table.Schema().Indexes[index]; !ok {
		t.search(table, gr, index, value, f)
		return
	}
	for _, entry := range table.Snapshot().ByIndex(index, value) {
		if obj, err := entry.Object(); err == nil && !f(obj) {
			return
		}
	}
}

func (t *Tables) search(table *store.Table, gr schema.GroupResource, index, value string, f func(runtime.Object) bool) {
	values := t.indexes[tableIndex{gr, index}]
	if values == nil {
		return
	}
	table.Snapshot().Ascend("", store.Key{}, func(entry *store.Entry) bool {
		obj, err := entry.Object()
		if err != nil || !slices.Contains(values(obj), value) {
			return true
		}
		return f(obj)
	})
}
