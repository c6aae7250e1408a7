package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"pgregory.net/rapid"

	"barque.dev/internal/store"
)

// dataTrait is the first part of a config map's data "v", up to a dash; one that starts with one has none.
func dataTrait() store.Trait {
	return store.Trait{Name: "v", Value: func(obj runtime.Object) (string, bool) {
		part, _, _ := strings.Cut(obj.(*corev1.ConfigMap).Data["v"], "-")
		return part, part != ""
	}}
}

// walked is what AscendTrait has to find, the long way.
func walked(s *store.Snapshot, trait store.Trait, values []string, namespace string, after store.Key) (found []*store.Entry, readable bool) {
	readable = true
	s.Ascend("", store.Key{}, func(e *store.Entry) bool {
		_, err := e.Object()
		readable = readable && err == nil
		return true
	})
	s.Ascend(namespace, after, func(e *store.Entry) bool {
		obj, err := e.Object()
		if err != nil {
			return true
		}
		if v, ok := trait.Value(obj); ok && slices.Contains(values, v) {
			found = append(found, e)
		}
		return true
	})
	return found, readable
}

// agrees compares an answer of AscendTrait, if there is one, with the walk's.
func agrees(tb rapid.TB, s *store.Snapshot, values []string, namespace string, after store.Key, most int) (answered bool) {
	trait := dataTrait()
	want, readable := walked(s, trait, values, namespace, after)
	want = want[:min(len(want), most)]
	var got []*store.Entry
	answered = s.AscendTrait(trait, values, namespace, after, func(e *store.Entry) bool {
		got = append(got, e)
		return len(got) < most
	})
	switch {
	case !answered && len(got) > 0:
		tb.Fatal("no answer, but objects")
	case answered && !readable:
		tb.Fatal("an answer although an object can't be read")
	case answered && !slices.Equal(got, want):
		tb.Fatalf("%v in %q behind %v: %d objects, the walk finds %d", values, namespace, after, len(got), len(want))
	}
	return answered
}

// fill makes objects enough for an index.
func fill(tb testing.TB, t *store.Table, n int) {
	var group sync.WaitGroup
	for w := range 16 {
		group.Go(func() {
			for i := w; i < n; i += 16 {
				mustCreate(tb, t, key(fmt.Sprintf("ns%d", i%3), fmt.Sprintf("f%04d", i)), fmt.Sprintf("%d-x", i%10))
			}
		})
	}
	group.Wait()
}

func drawQuery(t *rapid.T) (values []string, namespace string, after store.Key, most int) {
	values = rapid.SliceOfN(rapid.SampledFrom([]string{"0", "1", "2", "7", "none", ""}), 0, 3).Draw(t, "values")
	namespace = rapid.SampledFrom([]string{"", "ns0", "ns1", "ns", "zz"}).Draw(t, "namespace")
	if rapid.Bool().Draw(t, "continued") {
		after = key(fmt.Sprintf("ns%d", rapid.IntRange(0, 3).Draw(t, "ns")), fmt.Sprintf("f%04d", rapid.IntRange(0, 400).Draw(t, "name")))
	}
	return values, namespace, after, rapid.SampledFrom([]int{1, 5, 10_000}).Draw(t, "most")
}

// TestTraitsEqualTheWalk: whatever is written, and by whom, an index of a trait finds what a walk over the same snapshot finds.
func TestTraitsEqualTheWalk(t *testing.T) {
	s, _ := newStore(t)
	tbl := register(t, s, configMaps())
	fill(t, tbl, 300)
	ctx := context.Background()
	answers := 0
	rapid.Check(t, func(t *rapid.T) {
		var kept []*store.Snapshot
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			k := key(fmt.Sprintf("ns%d", rapid.IntRange(0, 2).Draw(t, "ns")), fmt.Sprintf("f%04d", rapid.IntRange(0, 320).Draw(t, "name")))
			var err error
			switch rapid.SampledFrom([]string{"put", "put", "delete", "keep", "ask", "ask", "ask kept"}).Draw(t, "do") {
			case "put":
				v := rapid.SampledFrom([]string{"0-a", "1-b", "2-c", "2-d", "7-e", "-none", "bad"}).Draw(t, "value")
				if e, ok := tbl.Get(k); ok {
					_, err = tbl.Update(ctx, k, []byte(v), e.Revision(), store.WriteOptions{})
				} else {
					_, err = tbl.Create(ctx, k, []byte(v), store.WriteOptions{})
				}
			case "delete":
				if e, ok := tbl.Get(k); ok {
					_, _, err = tbl.Delete(ctx, k, e.Revision())
				}
			case "keep":
				kept = append(kept, tbl.Snapshot())
			case "ask":
				values, namespace, after, most := drawQuery(t)
				if agrees(t, tbl.Snapshot(), values, namespace, after, most) {
					answers++
				}
			case "ask kept":
				if len(kept) > 0 {
					values, namespace, after, most := drawQuery(t)
					agrees(t, kept[0], values, namespace, after, most)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		// Nothing unreadable stays: it silences the index.
		tbl.Snapshot().Ascend("", store.Key{}, func(e *store.Entry) bool {
			if string(e.Raw()) == "bad" {
				if _, err := tbl.Update(ctx, e.Key(), []byte("1-mended"), e.Revision(), store.WriteOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			return true
		})
	})
	if answers < 20 {
		t.Errorf("only %d questions were answered by the index", answers)
	}
}

// TestTraitsWhileOthersWrite: every answer is that of its snapshot, however many write and ask meanwhile.
func TestTraitsWhileOthersWrite(t *testing.T) {
	s, _ := newStore(t)
	tbl := register(t, s, configMaps())
	fill(t, tbl, 400)
	var writers, readers sync.WaitGroup
	stop := make(chan struct{})
	for w := range 4 {
		writers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				k := key("ns1", fmt.Sprintf("w%d-%d", w, i%40))
				v := fmt.Appendf(nil, "%d-y", (i*7+w)%10)
				e, ok := tbl.Get(k)
				var err error
				switch {
				case !ok:
					_, err = tbl.Create(t.Context(), k, v, store.WriteOptions{})
				case i%5 == 0:
					_, _, err = tbl.Delete(t.Context(), k, e.Revision())
				default:
					_, err = tbl.Update(t.Context(), k, v, e.Revision(), store.WriteOptions{})
				}
				if err != nil && !errors.Is(err, store.ErrConflict) {
					t.Error(err)
					return
				}
			}
		})
	}
	for r := range 4 {
		readers.Go(func() {
			for i := range 300 {
				agrees(t, tbl.Snapshot(), []string{fmt.Sprint(i % 10), fmt.Sprint(r)}, []string{"", "ns1"}[i%2], store.Key{}, 10_000)
			}
		})
	}
	readers.Wait()
	close(stop)
	writers.Wait()
	if !agrees(t, tbl.Snapshot(), []string{"3"}, "", store.Key{}, 10_000) {
		t.Error("the index does not answer")
	}
}

// TestTraitsAreMadeByNeed: the second question makes an index, and there are never more than are allowed.
func TestTraitsAreMadeByNeed(t *testing.T) {
	s, _ := newStore(t)
	tbl := register(t, s, configMaps())
	fill(t, tbl, 300)
	named := func(i int) store.Trait {
		trait := dataTrait()
		trait.Name = fmt.Sprint(i)
		return trait
	}
	ask := func(i int) bool {
		return tbl.Snapshot().AscendTrait(named(i), []string{"1"}, "", store.Key{}, func(*store.Entry) bool { return true })
	}
	if ask(0) || !ask(0) || !ask(0) {
		t.Error("the second question should make an index")
	}
	answered := 0
	for i := range 20 {
		ask(i)
		if ask(i) {
			answered++
		}
	}
	if answered != 8 {
		t.Errorf("%d traits are indexed", answered)
	}
	small := register(t, s, nodes())
	mustCreate(t, small, store.Key{Name: "one"}, "1")
	for range 3 {
		if agrees(t, small.Snapshot(), []string{"1"}, "", store.Key{}, 10) {
			t.Error("a small table needs no index")
		}
	}
}

func BenchmarkTrait(b *testing.B) {
	_, tbl := filled(b, 5000)
	trait := store.Trait{Name: "t", Value: func(obj runtime.Object) (string, bool) { return fmt.Sprint(len(obj.(*corev1.ConfigMap).Data)), true }}
	count := func() (n int) {
		tbl.Snapshot().AscendTrait(trait, []string{"1"}, "", store.Key{}, func(*store.Entry) bool { n++; return true })
		return n
	}
	count()
	b.ReportAllocs()
	for b.Loop() {
		count()
	}
}
