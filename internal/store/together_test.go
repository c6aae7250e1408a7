package store_test

import (
	"errors"
	"strconv"
	"sync"
	"testing"

	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
)

func TestChangesAreMadeTogetherOrNotAtAll(t *testing.T) {
	s, _ := newStore(t)
	maps, counters := register(t, s, configMaps()), register(t, s, nodes())
	counter := mustCreate(t, counters, key("", "counter"), "0")
	with := func(value string, expected int64) store.WriteOptions {
		return store.WriteOptions{With: []store.Change{{Table: counters, Key: key("", "counter"), Value: []byte(value), Expected: expected}}}
	}
	value := func() string {
		e, ok := counters.Get(key("", "counter"))
		if !ok {
			t.Fatal("no counter")
		}
		return string(e.Raw())
	}
	one, err := maps.Create(t.Context(), key("a", "one"), []byte("x"), with("1", counter.Revision()))
	if err != nil || value() != "1" {
		t.Fatalf("create: %v, counter %s", err, value())
	}
	newer, _ := counters.Get(key("", "counter"))
	if newer.Revision() != one.Revision() {
		t.Errorf("revisions %d and %d", newer.Revision(), one.Revision())
	}
	if _, err := maps.Create(t.Context(), key("a", "two"), []byte("x"), with("2", counter.Revision())); !errors.Is(err, store.ErrOvertaken) {
		t.Errorf("create with an old counter: %v", err)
	}
	if _, ok := maps.Get(key("a", "two")); ok {
		t.Error("created without the counter")
	}
	if _, err := maps.Create(t.Context(), key("a", "one"), []byte("x"), with("2", newer.Revision())); !errors.Is(err, store.ErrExists) || value() != "1" {
		t.Errorf("create again: %v, counter %s", err, value())
	}
	if _, err := maps.Update(t.Context(), key("a", "one"), []byte("y"), one.Revision(), with("2", counter.Revision())); !errors.Is(err, store.ErrOvertaken) {
		t.Errorf("update with an old counter: %v", err)
	}
	if _, err := maps.Update(t.Context(), key("a", "one"), []byte("y"), one.Revision()-1, with("2", newer.Revision())); !errors.Is(err, store.ErrConflict) || value() != "1" {
		t.Errorf("update of an old version: %v, counter %s", err, value())
	}
	if _, err := maps.Update(t.Context(), key("a", "gone"), []byte("y"), 0, with("2", newer.Revision())); !errors.Is(err, store.ErrNotFound) || value() != "1" {
		t.Errorf("update of nothing: %v, counter %s", err, value())
	}
	if _, err := maps.Update(t.Context(), key("a", "one"), []byte("y"), one.Revision(), with("2", newer.Revision())); err != nil || value() != "2" {
		t.Errorf("update: %v, counter %s", err, value())
	}
}

func TestWritesAreOvertakenByWhatTheyDidNotSee(t *testing.T) {
	s, _ := newStore(t)
	maps := register(t, s, configMaps())
	mustCreate(t, maps, key("a", "seen"), "x")
	seen := maps.Snapshot().Revision()
	since := func(namespace string) store.WriteOptions {
		return store.WriteOptions{Since: store.Since{Table: maps, Namespace: namespace, Revision: seen}}
	}
	if _, err := maps.Create(t.Context(), key("b", "one"), nil, since("a")); err != nil {
		t.Fatal(err)
	}
	newer := mustCreate(t, maps, key("ab", "other"), "x")
	if _, err := maps.Update(t.Context(), key("b", "one"), []byte("y"), 0, since("a")); err != nil {
		t.Errorf("another namespace counts: %v", err)
	}
	if _, err := maps.Create(t.Context(), key("b", "two"), nil, since("ab")); !errors.Is(err, store.ErrOvertaken) {
		t.Errorf("created without what came at revision %d: %v", newer.Revision(), err)
	}
	mustUpdate(t, maps, key("a", "seen"), "y", 0)
	if _, err := maps.Create(t.Context(), key("b", "two"), nil, since("a")); !errors.Is(err, store.ErrOvertaken) {
		t.Errorf("created without a change: %v", err)
	}
}

// Two servers count what they create, while a third looks: nobody ever sees a count without the
// objects, and none is lost.
func TestCountsAreExact(t *testing.T) {
	m := startMember(t, etcd.Config{UnsafeNoSync: true})
	const servers, each = 2, 60
	var wg sync.WaitGroup
	for i := range servers + 1 {
		s, run := openStore(t, store.Config{Backend: m})
		run()
		maps, counters := register(t, s, configMaps()), register(t, s, nodes())
		if i == 0 {
			mustCreate(t, counters, key("", "counter"), "0")
		}
		if i < servers {
			wg.Go(func() { count(t, s, maps, counters, i, each) })
			continue
		}
		for seen := 0; seen < servers*each; {
			e, ok := counters.Get(key("", "counter"))
			if !ok {
				continue
			}
			seen = number(t, e)
			if n := maps.Snapshot().Len("a"); n < seen {
				t.Fatalf("%d objects of %d", n, seen)
			}
		}
	}
	wg.Wait()
}

func number(t *testing.T, e *store.Entry) int {
	n, err := strconv.Atoi(string(e.Raw()))
	if err != nil {
		t.Error(err)
	}
	return n
}

func count(t *testing.T, s *store.Store, maps, counters *store.Table, server, each int) {
	for i := range each {
		for {
			if _, err := s.ReadIndex(t.Context()); err != nil {
				t.Error(err)
				return
			}
			e, ok := counters.Get(key("", "counter"))
			if !ok {
				continue
			}
			next := store.Change{Table: counters, Key: key("", "counter"), Value: []byte(strconv.Itoa(number(t, e) + 1)), Expected: e.Revision()}
			_, err := maps.Create(t.Context(), key("a", strconv.Itoa(server)+"-"+strconv.Itoa(i)), []byte("x"), store.WriteOptions{With: []store.Change{next}})
			if err == nil {
				break
			}
			if !errors.Is(err, store.ErrOvertaken) {
				t.Error(err)
				return
			}
		}
	}
}
