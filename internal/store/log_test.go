package store

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The log against a plain slice of everything that was appended.
func TestLogAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := eventLog{limits: logLimits{
			events: rapid.IntRange(1, 300).Draw(t, "events"),
			bytes:  rapid.Int64Range(1, 100_000).Draw(t, "bytes"),
			age:    time.Minute,
		}}
		var all []Event // every event since the last reset
		now := time.Unix(0, 0)
		revision := int64(10)
		l.reset(revision)
		type reader struct{ next, seen int64 }
		var readers []reader
		t.Repeat(map[string]func(*rapid.T){
			"append": func(t *rapid.T) {
				revision += rapid.Int64Range(1, 3).Draw(t, "gap")
				n := rapid.IntRange(1, 200).Draw(t, "n")
				var events []Event
				for range n {
					e := &Entry{space: &keyspace{}, stored: make([]byte, rapid.IntRange(0, 500).Draw(t, "size")), mod: revision}
					events = append(events, Event{Revision: revision, Entry: e})
				}
				l.append(events, now)
				all = append(all, events...)
			},
			"expire": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "s")) * time.Second)
				l.expire(now)
			},
			"reset": func(t *rapid.T) {
				revision++
				l.reset(revision)
				all = nil
			},
			"seek": func(t *rapid.T) {
				since := rapid.Int64Range(max(0, revision-20), revision+3).Draw(t, "since")
				n, ok := l.seek(since)
				if ok != (since >= l.floor) {
					t.Fatalf("seek(%d) = %v with floor %d", since, ok, l.floor)
				}
				if ok {
					readers = append(readers, reader{n, min(since, revision)})
				}
			},
			"read": func(t *rapid.T) {
				for i := range readers {
					r := &readers[i]
					events, ok := l.read(r.next)
					if !ok {
						if r.seen >= l.floor {
							t.Fatalf("reader at %d fell off, floor %d", r.seen, l.floor)
						}
						continue
					}
					r.next += int64(len(events))
					for _, e := range events {
						if e.Revision < r.seen {
							t.Fatalf("revision %d after %d", e.Revision, r.seen)
						}
					}
					if len(events) == 0 {
						continue
					}
					// All events of the last revision came, none is left behind or repeated.
					last := events[len(events)-1].Revision
					if rest, _ := l.read(r.next); len(rest) > 0 && rest[0].Revision == last {
						t.Fatalf("revision %d was split", last)
					}
					want := 0
					for _, e := range all {
						if e.Revision > r.seen && e.Revision <= last {
							want++
						}
					}
					if want != len(events) {
						t.Fatalf("read %d events in (%d, %d], want %d", len(events), r.seen, last, want)
					}
					r.seen = last
				}
			},
			"": func(t *rapid.T) {
				var bytes int64
				count := 0
				for _, c := range l.chunks {
					count += len(c.events)
					for i := range c.events {
						bytes += c.events[i].cost()
					}
				}
				if count != l.count || bytes != l.bytes {
					t.Fatalf("count %d bytes %d, kept %d %d", count, bytes, l.count, l.bytes)
				}
				if len(l.chunks) > 1 && (l.count > l.limits.events || l.bytes > l.limits.bytes) {
					t.Fatalf("over the limits: %d events, %d bytes in %d chunks", l.count, l.bytes, len(l.chunks))
				}
				n := 0
				l.backwards(l.floor, func(*Event) bool { n++; return true })
				if n != count {
					t.Fatalf("backwards visits %d of %d", n, count)
				}
			},
		})
	})
}

// A reader that saw everything has missed nothing when old events expire.
func TestLogExpiryKeepsReadersThatKeepUp(t *testing.T) {
	l := eventLog{limits: logLimits{events: 100, bytes: 1 << 20, age: time.Minute}}
	l.reset(5)
	l.append([]Event{{Revision: 6, Entry: &Entry{space: &keyspace{}}}}, time.Unix(0, 0))
	end := l.end()
	l.expire(time.Unix(3600, 0))
	if l.count != 0 || l.floor != 6 {
		t.Fatalf("count %d floor %d", l.count, l.floor)
	}
	if _, ok := l.read(end); !ok {
		t.Error("a reader at the end fell off")
	}
	if _, ok := l.seek(5); ok {
		t.Error("a reader before the expired event was let in")
	}
	if n, ok := l.seek(6); !ok || n != end {
		t.Error("a reader after it was not")
	}
	l.reset(9)
	if _, ok := l.read(end); ok {
		t.Error("after a reset a reader at the end missed nothing?")
	}
}
