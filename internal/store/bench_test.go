package store_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"barque.dev/internal/store"
)

const benchValue = 2000 // bytes, a small pod

func BenchmarkCreate(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			m := startMember(b, fsyncConfig())
			s, run := openStore(b, store.Config{Backend: m})
			run()
			schema := configMaps()
			schema.Indexes = nil
			tbl := register(b, s, schema)
			value := make([]byte, benchValue)
			var next atomic.Int64
			b.ReportAllocs()
			b.ResetTimer()
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for {
						n := next.Add(1)
						if n > int64(b.N) {
							return
						}
						if _, err := tbl.Create(b.Context(), key("ns", fmt.Sprint(n)), value, store.WriteOptions{}); err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
		})
	}
}

// filled is a store with n objects.
func filled(b *testing.B, n int) (*store.Store, *store.Table) {
	m := startMember(b, emptyConfig())
	s, run := openStore(b, store.Config{Backend: m})
	run()
	schema := configMaps()
	schema.Indexes = nil
	tbl := register(b, s, schema)
	value := make([]byte, benchValue)
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := w; i < n; i += 32 {
				mustCreate(b, tbl, key("ns", fmt.Sprint(i)), string(value))
			}
		})
	}
	wg.Wait()
	return s, tbl
}

func BenchmarkGet(b *testing.B) {
	_, tbl := filled(b, 10_000)
	k := key("ns", "5000")
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, ok := tbl.Get(k); !ok {
				b.Error("not found")
			}
		}
	})
}

func BenchmarkReadIndexGet(b *testing.B) {
	s, tbl := filled(b, 100)
	k := key("ns", "50")
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := s.ReadIndex(b.Context()); err != nil {
				b.Error(err)
			}
			tbl.Get(k)
		}
	})
}

func BenchmarkSnapshotList(b *testing.B) {
	_, tbl := filled(b, 10_000)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		n := 0
		tbl.Snapshot().Ascend("", store.Key{}, func(e *store.Entry) bool { n += e.Size(); return true })
		if n == 0 {
			b.Fatal("empty")
		}
	}
}

// BenchmarkCursors: what one event costs that 1,000 cursors see.
func BenchmarkCursors(b *testing.B) {
	const cursors = 1000
	s, tbl := filled(b, 1)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	var wg sync.WaitGroup
	var seen atomic.Int64
	for range cursors {
		c, err := tbl.Watch(s.Revision())
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			for {
				events, _, err := c.Next(ctx)
				if err != nil {
					return
				}
				if n := seen.Add(int64(len(events))); n == int64(b.N)*cursors {
					cancel()
				}
			}
		})
	}
	b.ResetTimer()
	e, _ := tbl.Get(key("ns", "0"))
	value := string(make([]byte, benchValue))
	for range b.N {
		e = mustUpdate(b, tbl, key("ns", "0"), value, e.Revision())
	}
	wg.Wait()
	b.ReportMetric(float64(b.N*cursors)/b.Elapsed().Seconds(), "events/s")
}
