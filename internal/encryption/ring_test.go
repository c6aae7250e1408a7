package encryption

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func key(name string) Key { return Key{Name: namePrefix + name} }

func TestWaits(t *testing.T) {
	fresh := newRing("ca", key("1"))
	rotating, err := Ring{Version: 1, Keys: []Key{key("1")}, Writes: key("1").Name}.Rotate(key("2"))
	if err != nil {
		t.Fatal(err)
	}
	one, both := []string{key("1").Name}, []string{key("1").Name, key("2").Name}
	for _, c := range []struct {
		name    string
		ring    Ring
		servers []Server
		waits   []string
	}{
		{"nobody", fresh, nil, nil},
		{"alone", fresh, []Server{{"a", true, one}}, nil},
		{"one of an older version", fresh, []Server{{"a", true, one}, {"b", true, nil}}, []string{"b"}},
		{"one of an older version that is away", fresh, []Server{{"a", true, one}, {"b", false, nil}}, []string{"b"}},
		{"one that lags", rotating, []Server{{"a", true, both}, {"b", true, one}}, []string{"b"}},
		{"one that is away and has read the ring before", rotating, []Server{{"a", true, both}, {"b", false, one}}, nil},
		{"one that read keys which are gone", rotating, []Server{{"a", true, both}, {"b", false, []string{"gone"}}}, nil},
		{"nothing to wait with", Ring{Keys: []Key{key("1")}}, []Server{{"b", true, nil}}, nil},
	} {
		if got := c.ring.Waits(c.servers); !slices.Equal(got, c.waits) {
			t.Errorf("%s: waits for %v, want %v", c.name, got, c.waits)
		}
		if _, ok := c.ring.Promote(c.servers); ok != (c.ring.Next != "" && len(c.waits) == 0) {
			t.Errorf("%s: promoted %v", c.name, ok)
		}
	}
}

func TestRingRefuses(t *testing.T) {
	r := newRing("ca", key("1"))
	if _, err := r.Rotate(key("2")); !errors.Is(err, ErrRotating) {
		t.Errorf("rotate while rotating: %v", err)
	}
	if _, err := r.Drop(key("1").Name); !errors.Is(err, ErrInUse) {
		t.Errorf("drop of the next key: %v", err)
	}
	r, _ = r.Promote(nil)
	for i := 2; i <= maxKeys; i++ {
		var err error
		if r, err = r.Rotate(key(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		r, _ = r.Promote(nil)
	}
	if _, err := r.Rotate(key("more")); !errors.Is(err, ErrTooMany) {
		t.Errorf("a ring of %d keys takes another: %v", len(r.Keys), err)
	}
	if _, err := r.Drop(r.Writes); !errors.Is(err, ErrInUse) {
		t.Errorf("drop of the key in use: %v", err)
	}
	off := Ring{Version: 1, Keys: []Key{key("1"), key("2")}}.Disable()
	if idle := off.Idle(); !slices.Equal(idle, []string{key("1").Name}) {
		t.Errorf("without encryption %v are idle: the newest key must stay", idle)
	}
	last := Ring{Version: 1, Keys: []Key{key("1")}}
	if _, err := last.Drop(key("1").Name); !errors.Is(err, ErrInUse) {
		t.Errorf("drop of the only key: %v", err)
	}
	for what, r := range map[string]Ring{
		"of a newer version": {Version: 2, Keys: []Key{key("1")}}, "without keys": {Version: 1},
		"without the key in use": {Version: 1, Keys: []Key{key("1")}, Writes: "x"}, "without the next": {Version: 1, Keys: []Key{key("1")}, Next: "x"},
	} {
		if r.check() == nil {
			t.Errorf("a ring %s is taken", what)
		}
	}
}

// state is what etcd holds at a revision. It is immutable.
type state struct {
	ring   Ring  // no keys: there is none
	ringAt int64 // the revision of its record
	notes  map[string][]string
	values map[int]string // the key that each object stands under, "" for plain
	at     map[int]int64  // when each was written
}

// replica is a server: what it has applied of etcd, and what it knows by itself.
type replica struct {
	old     bool // of a version that does not know of encryption
	applied int
	clean   history // as leader
}

// proposal is a write that was made by one state and reaches etcd later, or never.
type proposal struct {
	object   int
	value    string
	expected int64 // -1: whatever there is
	guarded  bool
	ringAt   int64
}

// machine is a cluster that changes its keys while its servers lag, die and are upgraded, and while what they
// proposed arrives late.
type machine struct {
	states    []state // by revision
	compacted int
	servers   []*replica
	inFlight  []proposal
	keys      int
}

func (m *machine) now() state { return m.states[len(m.states)-1] }

func (m *machine) commit(change func(*state)) {
	s := m.now()
	s.notes, s.values, s.at = maps.Clone(s.notes), maps.Clone(s.values), maps.Clone(s.at)
	change(&s)
	m.states = append(m.states, s)
}

// setRing replaces the record on the condition that it is the one that was seen.
func (m *machine) setRing(seen state, next Ring) {
	if m.now().ringAt != seen.ringAt {
		return
	}
	m.commit(func(s *state) { s.ring, s.ringAt = next, int64(len(m.states)) })
}

func (m *machine) newKey() Key {
	m.keys++
	return key(fmt.Sprint(m.keys))
}

// knows tells whether a server of a state has a part in encryption: it knows of it, and has read the ring.
func (r *replica) knows(s state) bool { return !r.old && len(s.ring.Keys) > 0 }

func (m *machine) pick(t *rapid.T) (*replica, string, state) {
	i := rapid.IntRange(0, len(m.servers)-1).Draw(t, "server")
	r := m.servers[i]
	return r, fmt.Sprint("server-", i), m.states[r.applied]
}

func (m *machine) apply(t *rapid.T) {
	r, _, _ := m.pick(t)
	r.applied = rapid.IntRange(r.applied, len(m.states)-1).Draw(t, "applied")
}

func (m *machine) upgrade(t *rapid.T) {
	r, _, _ := m.pick(t)
	r.old, r.clean = false, history{}
}

// restart loses what a server had in memory; what it has applied stays.
func (m *machine) restart(t *rapid.T) {
	r, _, _ := m.pick(t)
	r.clean = history{}
}

func (m *machine) write(t *rapid.T) {
	r, _, s := m.pick(t)
	p := proposal{object: rapid.IntRange(0, 3).Draw(t, "object"), expected: -1}
	if !r.old {
		p.value, p.guarded, p.ringAt = s.ring.Writes, true, s.ringAt
	}
	m.inFlight = append(m.inFlight, p)
}

func (m *machine) rewrite(t *rapid.T) {
	r, _, _ := m.pick(t)
	m.rewriteBy(r)
}

func (m *machine) rewriteBy(r *replica) {
	s := m.states[r.applied]
	if !r.knows(s) {
		return
	}
	for object, value := range s.values {
		if value != s.ring.Writes {
			m.inFlight = append(m.inFlight, proposal{object, s.ring.Writes, s.at[object], true, s.ringAt})
		}
	}
}

func (m *machine) arrive(t *rapid.T) {
	if len(m.inFlight) == 0 {
		return
	}
	m.arriveOf(rapid.IntRange(0, len(m.inFlight)-1).Draw(t, "proposal"))
}

func (m *machine) arriveOf(i int) {
	p := m.inFlight[i]
	m.inFlight = slices.Delete(m.inFlight, i, i+1)
	now := m.now()
	if p.guarded && p.ringAt != now.ringAt || p.expected >= 0 && p.expected != now.at[p.object] {
		return
	}
	m.commit(func(s *state) { s.values[p.object], s.at[p.object] = p.value, int64(len(m.states)) })
}

func (m *machine) found(t *rapid.T) {
	r, _, _ := m.pick(t)
	m.foundBy(r, t)
}

func (m *machine) foundBy(r *replica, _ *rapid.T) {
	s := m.states[r.applied]
	if !r.old && len(s.ring.Keys) == 0 {
		m.setRing(s, newRing("ca", m.newKey()))
	}
}

func (m *machine) note(t *rapid.T) {
	r, _, _ := m.pick(t)
	m.noteBy(r, t)
}

func (m *machine) noteBy(r *replica, _ *rapid.T) {
	s := m.states[r.applied]
	if !r.knows(s) {
		return
	}
	name := fmt.Sprint("server-", slices.Index(m.servers, r))
	m.commit(func(now *state) { now.notes[name] = s.ring.Names() })
}

func (m *machine) promote(t *rapid.T) {
	r, _, _ := m.pick(t)
	m.promoteBy(r, t)
}

func (m *machine) promoteBy(r *replica, t *rapid.T) {
	s := m.states[r.applied]
	if r.old || s.ring.Next == "" {
		return
	}
	var servers []Server
	for i := range m.servers {
		name := fmt.Sprint("server-", i)
		servers = append(servers, Server{name, rapid.Bool().Draw(t, "alive"), s.notes[name]})
	}
	if next, ok := s.ring.Promote(servers); ok {
		m.setRing(s, next)
	}
}

func (m *machine) rotate(t *rapid.T) {
	r, _, s := m.pick(t)
	if !r.knows(s) {
		return
	}
	if next, err := s.ring.Rotate(m.newKey()); err == nil {
		m.setRing(s, next)
	}
}

func (m *machine) disable(t *rapid.T) {
	if r, _, s := m.pick(t); r.knows(s) {
		m.setRing(s, s.ring.Disable())
	}
}

func (m *machine) compact(t *rapid.T) {
	m.compacted = rapid.IntRange(m.compacted, len(m.states)-1).Draw(t, "compacted")
}

func (m *machine) drop(t *rapid.T) {
	r, _, _ := m.pick(t)
	m.dropBy(r, t)
}

func (m *machine) dropBy(r *replica, t *rapid.T) {
	s := m.states[r.applied]
	if !r.knows(s) {
		return
	}
	c := census{revision: int64(r.applied), values: map[string]int{}}
	for _, value := range s.values {
		c.values[value]++
	}
	r.clean.note(s.ring, c)
	// It knows of compactions that it has seen.
	names := r.clean.droppable(s.ring, int64(min(m.compacted, r.applied)))
	if len(names) == 0 {
		return
	}
	next, err := s.ring.Drop(names[0])
	if err != nil {
		t.Fatalf("droppable, but %v", err)
	}
	m.setRing(s, next)
}

// tend is what a server that works does: it catches up and does its part.
func (m *machine) tend(t *rapid.T) {
	r, _, _ := m.pick(t)
	for _, do := range []func(*replica, *rapid.T){m.foundBy, m.noteBy, m.promoteBy} {
		r.applied = len(m.states) - 1
		do(r, t)
	}
}

// lead is what a leader does: it writes again what is stale, and drops what it may.
func (m *machine) lead(t *rapid.T) {
	r, _, _ := m.pick(t)
	for range 2 {
		r.applied = len(m.states) - 1
		late := m.inFlight
		m.inFlight = nil
		m.rewriteBy(r)
		for len(m.inFlight) > 0 {
			m.arriveOf(0)
		}
		m.inFlight = late
		r.applied = len(m.states) - 1
		m.dropBy(r, t)
	}
}

// check: whatever a server may ever be asked for, it has the key of.
func (m *machine) check(t *rapid.T) {
	now := m.now()
	readable := func(s state, ring Ring, what string) {
		for object, value := range s.values {
			if value != "" && !ring.Has(value) {
				t.Fatalf("%s: object %d stands under %s, the ring has %v", what, object, value, ring.Names())
			}
		}
	}
	for i, r := range m.servers {
		seen := m.states[r.applied]
		readable(seen, seen.ring, fmt.Sprintf("server %d at revision %d", i, r.applied))
	}
	for revision := m.compacted; revision < len(m.states); revision++ {
		readable(m.states[revision], now.ring, fmt.Sprintf("history, revision %d", revision))
	}
	for i, r := range m.servers {
		for object, value := range now.values {
			if r.old && value != "" {
				t.Fatalf("object %d is encrypted while server %d does not know of that", object, i)
			}
		}
	}
}

// Whatever servers do and however late, whichever die, and whoever is upgraded when: all that is kept can be
// read by all.
func TestKeysChangeSafely(t *testing.T) {
	var dropped, rewritten, waited int
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{states: []state{{notes: map[string][]string{}, values: map[int]string{}, at: map[int]int64{}}}}
		old := rapid.Bool().Draw(t, "an upgrade")
		for range rapid.IntRange(1, 3).Draw(t, "servers") {
			m.servers = append(m.servers, &replica{old: old && rapid.Bool().Draw(t, "old"), clean: history{}})
		}
		actions := map[string]func(*rapid.T){
			"apply": m.apply, "apply again": m.apply, "upgrade": m.upgrade, "restart": m.restart, "write": m.write, "rewrite": m.rewrite,
			"arrive": m.arrive, "arrive again": m.arrive, "found": m.found, "note": m.note, "promote": m.promote, "rotate": m.rotate,
			"disable": m.disable, "compact": m.compact, "drop": m.drop, "tend": m.tend, "tend more": m.tend, "tend most": m.tend,
			"lead": m.lead, "lead more": m.lead, "": m.check,
		}
		for range 8 { // rapid's own number of steps is short for a life with several rotations
			t.Repeat(actions)
		}
		for i := 1; i < len(m.states); i++ {
			was, is := m.states[i-1], m.states[i]
			if len(is.ring.Keys) < len(was.ring.Keys) {
				dropped++
			}
			for object, value := range is.values {
				if before, ok := was.values[object]; ok && value != before && before != "" && value != "" {
					rewritten++
				}
			}
			if is.ring.Next != "" {
				waited++
			}
		}
	})
	t.Logf("states in which a key was dropped %d, a value moved to another key %d, a key waited %d", dropped, rewritten, waited)
	if dropped == 0 || rewritten == 0 || waited == 0 {
		t.Error("the test no longer reaches what it is about")
	}
}

// A cluster that is left alone comes to rest: the new key is in use, everything stands under it, and the old
// one is gone.
func TestRotationEnds(t *testing.T) {
	ring := newRing("ca", key("1"))
	servers := []Server{{"a", true, ring.Names()}, {"b", true, ring.Names()}, {"c", false, ring.Names()}}
	ring, _ = ring.Promote(servers)
	ring, err := ring.Rotate(key("2"))
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := ring.Promote(servers); ok {
		t.Fatal("promoted before the living servers have the key")
	}
	servers[0].Keys, servers[1].Keys = ring.Names(), ring.Names()
	ring, ok := ring.Promote(servers)
	if !ok || ring.Writes != key("2").Name {
		t.Fatalf("not promoted though all that live have the key: %+v", ring)
	}
	old, clean := key("1").Name, history{}
	clean.note(ring, census{10, map[string]int{old: 3}})
	if got := clean.droppable(ring, 100); len(got) != 0 {
		t.Fatalf("%v would be dropped while 3 objects stand under it", got)
	}
	clean.note(ring, census{20, map[string]int{}})
	if got := clean.droppable(ring, 19); len(got) != 0 {
		t.Fatalf("%v would be dropped while history from revision 19 needs it", got)
	}
	if got := clean.droppable(ring, 20); !slices.Equal(got, []string{old}) {
		t.Fatalf("droppable: %v", got)
	}
	// A value that came back takes the chance away again.
	clean.note(ring, census{30, map[string]int{old: 1}})
	if got := clean.droppable(ring, 100); len(got) != 0 {
		t.Fatalf("%v would be dropped while an object stands under it", got)
	}
}
