package store_test

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"barque.dev/internal/store"
)

// TestReplaceDecodesAnew: what is kept is read by the new schema, watches of the old table end, and a writer that still
// holds it loses nothing.
func TestReplaceDecodesAnew(t *testing.T) {
	s, _ := newStore(t)
	old := register(t, s, configMaps())
	one := mustCreate(t, old, key("a", "one"), "1")
	if _, err := one.Object(); err != nil {
		t.Fatal(err)
	}
	cursor, err := old.Watch(one.Revision())
	if err != nil {
		t.Fatal(err)
	}
	schema := configMaps()
	schema.Decode = func(value []byte, _ int64) (runtime.Object, error) {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "anew"}, Data: map[string]string{"v": "new " + string(value)}}, nil
	}
	now, err := s.Replace(old, schema)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := cursor.Next(t.Context()); !errors.Is(err, store.ErrClosed) {
		t.Errorf("a watch of the old table: %v", err)
	}
	entry, ok := now.Get(key("a", "one"))
	if !ok || entry.Revision() != one.Revision() || entry.CreateRevision() != one.CreateRevision() {
		t.Fatalf("the object is %+v", entry)
	}
	obj, err := entry.Object()
	if err != nil || obj.(*corev1.ConfigMap).Data["v"] != "new 1" {
		t.Errorf("decoded %+v, %v", obj, err)
	}
	if found := now.Snapshot().ByIndex("v", "new 1"); len(found) != 1 {
		t.Errorf("the index holds %v", found)
	}
	since := now.Snapshot().Revision()
	two := mustCreate(t, old, key("a", "two"), "2")
	if got, ok := now.Get(key("a", "two")); !ok || got.Revision() != two.Revision() {
		t.Errorf("written through the old table: %+v", got)
	}
	if cursor, err = now.Watch(since); err != nil {
		t.Fatal(err)
	}
	if events, _, err := cursor.Next(t.Context()); err != nil || len(events) != 1 || events[0].Entry.Revision() != two.Revision() {
		t.Errorf("watched %v, %v", events, err)
	}
	if _, err := s.Replace(old, schema); err == nil {
		t.Error("a table was replaced twice")
	}
}

func TestAbsentTable(t *testing.T) {
	s, _ := newStore(t)
	none := s.Absent()
	if _, ok := none.Get(key("", "x")); ok || none.Snapshot().Len("") != 0 {
		t.Error("it holds something")
	}
	if _, err := none.Watch(0); !errors.Is(err, store.ErrClosed) {
		t.Errorf("watch: %v", err)
	}
	if _, err := none.Create(t.Context(), key("", "x"), nil, store.WriteOptions{}); !errors.Is(err, store.ErrClosed) {
		t.Errorf("write: %v", err)
	}
}
