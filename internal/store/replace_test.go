package store_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
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

// TestReplacedTableIsAnotherNameForItsHeir: who took a table and was held up meets what is there now, never old content under
// a new revision.
func TestReplacedTableIsAnotherNameForItsHeir(t *testing.T) {
	s, _ := newStore(t)
	old := register(t, s, configMaps())
	one := mustCreate(t, old, key("a", "one"), "1")
	old.Snapshot() // which is kept as long as nothing changes
	// Twice, so that there is a chain to follow.
	middle, err := s.Replace(old, configMaps())
	if err != nil {
		t.Fatal(err)
	}
	now, err := s.Replace(middle, configMaps())
	if err != nil {
		t.Fatal(err)
	}
	two := mustCreate(t, now, key("a", "two"), "2")
	changed := mustUpdate(t, now, key("a", "one"), "3", one.Revision())

	for name, held := range map[string]*store.Table{"first": old, "second": middle} {
		if e, _ := held.Get(key("a", "one")); e != changed {
			t.Errorf("%s: Get = %v", name, e)
		}
		snapshot := held.Snapshot()
		want := content(now.Snapshot(), "")
		if got := content(snapshot, ""); !reflect.DeepEqual(got, want) || snapshot.Revision() != changed.Revision() {
			t.Errorf("%s: the snapshot of revision %d shows %v, want %v", name, snapshot.Revision(), got, want)
		}
		if found := snapshot.ByIndex("v", "3"); len(found) != 1 {
			t.Errorf("%s: the index finds %v", name, found)
		}
		for _, revision := range []int64{0, one.Revision(), two.Revision(), changed.Revision()} {
			got, err := held.At(t.Context(), revision)
			if err != nil {
				t.Fatal(err)
			}
			want, err := now.At(t.Context(), revision)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(content(got, ""), content(want, "")) || got.Revision() != want.Revision() {
				t.Errorf("%s: At(%d) shows %v", name, revision, content(got, ""))
			}
		}
		if revision, objects := held.Changed(); revision != changed.Revision() || objects != 2 {
			t.Errorf("%s: Changed = %d, %d", name, revision, objects)
		}
		if _, err := held.Watch(s.Revision()); !errors.Is(err, store.ErrClosed) {
			t.Errorf("%s: Watch: %v", name, err)
		}
	}
}

// TestUnregisteredTableEndsWhereItWent: its last content is never taken for that of a later revision.
func TestUnregisteredTableEndsWhereItWent(t *testing.T) {
	s, _ := newStore(t)
	old := register(t, s, configMaps())
	one := mustCreate(t, old, key("a", "one"), "1")
	cursor, err := old.Watch(one.Revision())
	if err != nil {
		t.Fatal(err)
	}
	s.Unregister(old)
	now := register(t, s, configMaps())
	two := mustCreate(t, now, key("a", "two"), "2")
	if snapshot := old.Snapshot(); snapshot.Revision() != one.Revision() || snapshot.Len("") != 1 {
		t.Errorf("%d objects at revision %d", snapshot.Len(""), snapshot.Revision())
	}
	for _, revision := range []int64{0, two.Revision()} {
		if snapshot, err := old.At(t.Context(), revision); !errors.Is(err, store.ErrClosed) {
			t.Errorf("At(%d) = %v, %v", revision, snapshot, err)
		}
	}
	if snapshot, err := old.At(t.Context(), one.Revision()); err != nil || snapshot.Len("") != 1 {
		t.Errorf("At(%d) = %v, %v", one.Revision(), snapshot, err)
	}
	if _, progress, err := cursor.Next(t.Context()); !errors.Is(err, store.ErrClosed) || progress > one.Revision() {
		t.Errorf("the watch went on to %d: %v", progress, err)
	}
}

// TestUnansweredWriteOverReplacement: a write whose proposal gets no answer learns what became of it, though the table was
// replaced before or after it took effect, and though somebody changed the object since.
func TestUnansweredWriteOverReplacement(t *testing.T) {
	for _, verb := range []string{"create", "update", "delete"} {
		for _, late := range []bool{false, true} {
			for _, o := range []outcome{lost, applied, appliedChanged, overtaken} {
				if verb == "delete" && o == appliedChanged {
					continue
				}
				t.Run(fmt.Sprintf("%s, replaced late %v, %s", verb, late, o), func(t *testing.T) { unanswered(t, verb, o, late) })
			}
		}
	}
}

func unanswered(t *testing.T, verb string, o outcome, late bool) {
	s, tbl, f := faultyStore(t, store.Config{})
	k := key("ns", "a")
	var before *store.Entry
	if verb != "create" {
		before = mustCreate(t, tbl, k, "before")
	}
	put := func(value string) {
		if _, err := f.Member.Server().Put(context.Background(), &etcdserverpb.PutRequest{Key: []byte("/registry/configmaps/ns/a"), Value: []byte(value)}); err != nil {
			t.Error(err)
		}
	}
	replace := func() {
		if _, err := s.ReadIndex(context.Background()); err != nil {
			t.Error(err)
		}
		if _, err := s.Replace(tbl, configMaps()); err != nil {
			t.Error(err)
		}
	}
	f.next(func(ctx context.Context, req *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
		if !late {
			replace()
		}
		switch o {
		case overtaken:
			put("theirs")
		case applied, appliedChanged:
			if resp, err := f.Member.Txn(context.Background(), req); err != nil || !resp.Succeeded {
				t.Errorf("%v %v", resp, err)
			}
		}
		if o == appliedChanged {
			put("changed")
		}
		if late {
			replace()
		}
		f.newLeader()
		<-ctx.Done() // the answer never comes
		return nil, ctx.Err()
	})
	checkUnanswered(t, tbl, verb, o, before)
}

// checkUnanswered makes a write of which o becomes.
func checkUnanswered(t *testing.T, tbl *store.Table, verb string, o outcome, before *store.Entry) {
	t.Helper()
	var e *store.Entry
	var err error
	want := error(nil)
	k := key("ns", "a")
	switch verb {
	case "create":
		e, err = tbl.Create(t.Context(), k, []byte("mine"), store.WriteOptions{})
		want = store.ErrExists
	case "update":
		e, err = tbl.Update(t.Context(), k, []byte("mine"), before.Revision(), store.WriteOptions{})
		want = store.ErrConflict
	case "delete":
		e, _, err = tbl.Delete(t.Context(), k, before.Revision())
		want = store.ErrConflict
	}
	switch {
	case o == overtaken:
		if !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	case err != nil:
		t.Error(err)
	case verb == "delete":
		if e.Revision() != before.Revision() {
			t.Errorf("removed revision %d", e.Revision())
		}
	case string(e.Raw()) != "mine":
		t.Errorf("wrote %q", e.Raw())
	}
}

// TestUnansweredWriteBeyondTheLog: the log has lost what the write did, but its bytes stand at the key.
func TestUnansweredWriteBeyondTheLog(t *testing.T) {
	for _, verb := range []string{"create", "update"} {
		for _, o := range []outcome{applied, overtaken} {
			s, tbl, f := faultyStore(t, store.Config{EventLimit: 10})
			var before *store.Entry
			if verb == "update" {
				before = mustCreate(t, tbl, key("ns", "a"), "before")
			}
			member := f.Member
			f.next(func(ctx context.Context, req *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
				begin := s.Revision()
				if o == applied {
					if resp, err := member.Txn(context.Background(), req); err != nil || !resp.Succeeded {
						t.Errorf("%v %v", resp, err)
					}
				} else if _, err := member.Server().Put(context.Background(), &etcdserverpb.PutRequest{Key: []byte("/registry/configmaps/ns/a"), Value: []byte("theirs")}); err != nil {
					t.Error(err)
				}
				other := mustCreate(t, tbl, key("ns", "b"), "0")
				for i := range 300 {
					other = mustUpdate(t, tbl, key("ns", "b"), strconv.Itoa(i), other.Revision())
				}
				if _, err := tbl.Watch(begin); !errors.Is(err, store.ErrCompacted) {
					t.Errorf("the log goes back to %d: %v", begin, err)
				}
				f.newLeader()
				<-ctx.Done()
				return nil, ctx.Err()
			})
			checkUnanswered(t, tbl, verb, o, before)
		}
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
	if snapshot, err := none.At(t.Context(), s.Revision()); !errors.Is(err, store.ErrClosed) {
		t.Errorf("At(%d) = %v, %v", s.Revision(), snapshot, err)
	}
	if _, err := none.Create(t.Context(), key("", "x"), nil, store.WriteOptions{}); !errors.Is(err, store.ErrClosed) {
		t.Errorf("write: %v", err)
	}
}

// What a table was able to decrypt its heir can read too, though the key service is away.
func TestReplaceKeepsWhatWasDecrypted(t *testing.T) {
	s, _ := newStore(t)
	remote := &service{}
	schema := configMaps()
	schema.Transform = remote
	old := register(t, s, schema)
	if got := string(mustCreate(t, old, key("ns", "a"), "v").Raw()); got != "v" {
		t.Fatalf("read %q", got)
	}
	remote.away.Store(true)
	heir, err := s.Replace(old, schema)
	if err != nil {
		t.Fatal(err)
	}
	e, ok := heir.Get(key("ns", "a"))
	if !ok {
		t.Fatal("it is gone")
	}
	if _, err := e.Object(); err != nil {
		t.Error(err)
	}
}
