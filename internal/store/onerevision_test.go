package store_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver"

	"barque.dev/internal/store"
)

// pair is what two tables hold under the same name.
func pair(maps, counters *store.Table, name string) string {
	value := func(t *store.Table, k store.Key) string {
		if e, ok := t.Get(k); ok {
			return string(e.Raw())
		}
		return "-"
	}
	return value(maps, key("ns", name)) + value(counters, key("", name))
}

func putBoth(t *testing.T, ctx context.Context, member *etcdserver.EtcdServer, name, value string) (last int64) {
	t.Helper()
	for _, k := range []string{"/registry/configmaps/ns/", "/registry/minions/"} {
		resp, err := member.Put(ctx, &etcdserverpb.PutRequest{Key: []byte(k + name), Value: []byte(value)})
		if err != nil {
			t.Fatal(err)
		}
		last = resp.Header.Revision
	}
	return last
}

// When everything is loaded again, nobody sees one table as it is beside another as it was, and a load that does not
// get to its end shows nothing at all.
func TestResyncShowsAllTablesAtOnce(t *testing.T) {
	f := newFaulty(startMember(t, emptyConfig()))
	f.breaks = make(chan struct{})
	s, run := openStore(t, store.Config{Backend: f})
	run()
	maps, counters := register(t, s, configMaps()), register(t, s, nodes())
	mustCreate(t, maps, key("ns", "a"), "1")
	mustCreate(t, counters, key("", "a"), "1")
	var ranges atomic.Int32
	f.mu.Lock()
	f.ranged = func() error {
		if got := pair(maps, counters, "a"); got != "11" {
			t.Errorf("while everything was loaded: %s", got)
		}
		if ranges.Add(1) == 3 { // the second table of the first attempt
			return errors.New("not now")
		}
		return nil
	}
	f.mu.Unlock()
	f.gap(t, func(ctx context.Context, member *etcdserver.EtcdServer) int64 {
		return putBoth(t, ctx, member, "a", "2")
	})
	if _, err := s.ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := pair(maps, counters, "a"); got != "22" {
		t.Errorf("once everything was loaded: %s", got)
	}
	if n := ranges.Load(); n != 6 {
		t.Errorf("%d reads of etcd, want two attempts of three", n)
	}
}

// A table that is added shows no more than the others do, however far behind etcd they are.
func TestNewTableIsOfTheRevisionOfTheOthers(t *testing.T) {
	f := newFaulty(startMember(t, emptyConfig()))
	f.watching = make(chan struct{})
	s, run := openStore(t, store.Config{Backend: f})
	run()
	maps := register(t, s, configMaps())
	putBoth(t, t.Context(), f.Member.Server(), "a", "1")
	counters := register(t, s, nodes())
	if got := pair(maps, counters, "a"); got != "--" {
		t.Errorf("before the image has it: %s", got)
	}
	close(f.watching)
	if _, err := s.ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := pair(maps, counters, "a"); got != "11" {
		t.Errorf("once the image has it: %s", got)
	}
}

// A table can be added although etcd no longer has the revision of the others.
func TestNewTableAfterCompaction(t *testing.T) {
	f := newFaulty(startMember(t, emptyConfig()))
	f.watching = make(chan struct{})
	s, run := openStore(t, store.Config{Backend: f})
	run()
	maps := register(t, s, configMaps())
	putBoth(t, t.Context(), f.Member.Server(), "a", "1")
	if err := f.Compact(t.Context(), putBoth(t, t.Context(), f.Member.Server(), "a", "2")); err != nil {
		t.Fatal(err)
	}
	counters := register(t, s, nodes())
	close(f.watching)
	if _, err := s.ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := pair(maps, counters, "a"); got != "22" {
		t.Errorf("got %s", got)
	}
}

// What one transaction changes in several tables, readers see in all or in none.
func TestReadersSeeWholeTransactions(t *testing.T) {
	s, _ := newStore(t)
	k := key("", "a")
	var tables []*store.Table
	var entries []*store.Entry
	for i := range 40 { // the more there are, the longer it takes to change them all
		schema := nodes()
		schema.Prefix = fmt.Sprintf("/registry/t%d/", i)
		tables = append(tables, register(t, s, schema))
		entries = append(entries, mustCreate(t, tables[i], k, "0"))
	}
	read := func(t *store.Table) (int, error) {
		e, _ := t.Get(k)
		return strconv.Atoi(string(e.Raw()))
	}
	var stop atomic.Bool
	done := make(chan error, 1)
	go func() {
		for !stop.Load() {
			first, err := read(tables[0])
			last, err2 := read(tables[len(tables)-1])
			if err = errors.Join(err, err2); err == nil && last < first {
				err = fmt.Errorf("%d in the first table, then %d in the last", first, last)
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for i := range 500 {
		value := strconv.AppendInt(nil, int64(i), 10)
		var with []store.Change
		for j, e := range entries[1:] {
			with = append(with, store.Change{Table: tables[j+1], Key: k, Value: value, Expected: e.Revision()})
		}
		e, err := tables[0].Update(t.Context(), k, value, entries[0].Revision(), store.WriteOptions{With: with})
		if err != nil {
			t.Fatal(err)
		}
		entries[0] = e
		for j, table := range tables[1:] {
			entries[j+1], _ = table.Get(k)
		}
	}
	stop.Store(true)
	if err := <-done; err != nil {
		t.Error(err)
	}
}
