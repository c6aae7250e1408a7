package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// feeder gives a table changes, each a revision of its own.
type feeder struct {
	table    *Table
	revision int64
}

func (f *feeder) put(key, value string, at time.Time) {
	f.apply(&mvccpb.Event{Type: mvccpb.Event_PUT, Kv: &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value)}}, at)
}

func (f *feeder) remove(key string, at time.Time) {
	f.apply(&mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte(key)}}, at)
}

func (f *feeder) apply(ev *mvccpb.Event, at time.Time) {
	f.revision++
	ev.Kv.ModRevision, ev.Kv.CreateRevision = f.revision, f.revision
	f.table.mu.Lock()
	defer f.table.mu.Unlock()
	f.table.takeLocked(changeset{f.revision, []change{f.table.read(ev)}}, at)
}

// TestSweepForgetsWhatIsPast: of versions that only the history has, the bytes stay; what was made of
// them goes after a while, and is made again for who asks.
func TestSweepForgetsWhatIsPast(t *testing.T) {
	decodes := 0
	s := &Store{limits: logLimits{events: 100, bytes: 1 << 20, age: time.Hour}}
	table := newTable(s, Schema{
		Prefix: "/pods/", Decode: func(b []byte, _ int64) (runtime.Object, error) {
			decodes++
			return &corev1.Pod{Spec: corev1.PodSpec{NodeName: string(b)}}, nil
		},
		Indexes: map[string]IndexFunc{"node": func(o runtime.Object) []string { return []string{o.(*corev1.Pod).Spec.NodeName} }},
	})
	table.loading = false
	start := time.Unix(1000, 0)
	f := feeder{table: table}
	put := func(name, node string, at time.Time) { f.put("/pods/"+name, node, at) }
	remove := func(name string, at time.Time) { f.remove("/pods/"+name, at) }
	put("a", "one", start)
	put("a", "two", start)
	put("b", "one", start)
	remove("b", start)
	for i := range firstChunk { // so that what is new stands in another chunk
		put(fmt.Sprintf("c-%d", i), "one", start)
	}
	put("d", "one", start.Add(time.Hour/2))
	put("d", "two", start.Add(time.Hour/2))

	kept := func() string {
		var out []string
		for _, c := range table.log.chunks {
			for _, ev := range c.events {
				if e := ev.Entry; e != nil && !strings.HasPrefix(e.path, "c-") {
					out = append(out, fmt.Sprintf("%s@%s=%v", e.path, e.stored, e.object.Load() != nil))
				}
			}
		}
		return strings.Join(out, " ")
	}
	if got, want := kept(), "a@one=true a@two=true b@one=true d@one=true d@two=true"; got != want {
		t.Fatalf("before: %s, want %s", got, want)
	}
	table.sweep(start.Add(time.Hour/2), 0)
	if got, want := kept(), "a@one=false a@two=true b@one=false d@one=true d@two=true"; got != want {
		t.Fatalf("after: %s, want %s", got, want)
	}
	before := decodes
	past := table.find("b", 3)
	if past == nil {
		t.Fatal("the history lost b")
	}
	for range 2 {
		if obj, err := past.Object(); err != nil || obj.(*corev1.Pod).Spec.NodeName != "one" {
			t.Fatalf("b is %v (%v)", obj, err)
		}
	}
	if decodes != before+1 {
		t.Errorf("decoded %d times", decodes-before)
	}
	// The index still finds what is there, and lets go of it.
	remove("a", start.Add(time.Hour))
	if n := table.indexes["node"].Len(); n != firstChunk+1 {
		t.Errorf("%d in the index", n)
	}
}

// vault decrypts as long as it has the key.
type vault struct {
	open   bool
	remote bool
	asked  int
}

func (v *vault) ToStorage(_ context.Context, plain []byte, _ string) ([]byte, error) {
	return plain, nil
}

func (v *vault) FromStorage(_ context.Context, stored []byte, _ string) ([]byte, error) {
	if v.asked++; !v.open {
		return nil, errors.New("no key")
	}
	return bytes.TrimPrefix(stored, []byte("enc:")), nil
}

func (v *vault) Remote() bool { return v.remote }

// TestHistoryOutlivesItsKey: what the history has of encrypted objects can be read after their key was dropped, or while
// who has it is away; a service that is away is asked once a sweep.
func TestHistoryOutlivesItsKey(t *testing.T) {
	for _, remote := range []bool{false, true} {
		v := &vault{remote: remote}
		s := &Store{limits: logLimits{events: 100, bytes: 1 << 20, age: time.Hour}}
		table := newTable(s, Schema{Prefix: "/secrets/", Transform: v, Decode: func(b []byte, _ int64) (runtime.Object, error) {
			return &corev1.Secret{Type: corev1.SecretType(b)}, nil
		}})
		table.loading = false
		f := feeder{table: table}
		start := time.Unix(1000, 0)
		for i := range 3 {
			f.put("/secrets/a", fmt.Sprintf("enc:%d", i), start)
		}
		f.remove("/secrets/a", start)
		later := start.Add(time.Minute)
		table.sweep(later, 0)
		if want := map[bool]int{true: 1, false: 6}[remote]; v.asked != want {
			t.Errorf("remote %v, and away: asked %d times, want %d", remote, v.asked, want)
		}
		v.open = true
		if obj, err := table.find("a", 1).Object(); err != nil || obj.(*corev1.Secret).Type != "0" {
			t.Fatalf("remote %v: %v, %v", remote, obj, err)
		}
		table.sweep(later, 0)
		v.open, v.asked = false, 0
		for i := range int64(3) {
			e := table.find("a", i+1)
			if e.object.Load() != nil {
				t.Errorf("remote %v: version %d is kept decoded", remote, i)
			}
			if obj, err := e.Object(); err != nil || obj.(*corev1.Secret).Type != corev1.SecretType(fmt.Sprint(i)) {
				t.Errorf("remote %v: version %d is %v, %v", remote, i, obj, err)
			}
		}
		if v.asked != 0 {
			t.Errorf("remote %v: asked %d times for what is known", remote, v.asked)
		}
	}
}
