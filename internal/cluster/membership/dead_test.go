package membership

import (
	"maps"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"barque.dev/internal/store/etcd"
)

func of(ids ...uint64) []etcd.MemberInfo {
	var list []etcd.MemberInfo
	for _, id := range ids {
		list = append(list, etcd.MemberInfo{ID: id, Name: string(rune('a' - 1 + id))})
	}
	return list
}

type reports = map[uint64][]uint64

func TestListen(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		what    string
		members []etcd.MemberInfo
		reports reports
		before  map[uint64]time.Duration
		after   map[uint64]time.Duration
	}{
		{"all are well", of(1, 2, 3), reports{1: {1, 2, 3}, 2: {1, 2, 3}, 3: {1, 2, 3}}, nil, nil},
		{"one falls silent", of(1, 2, 3), reports{1: {1, 2}, 2: {1, 2}}, nil, map[uint64]time.Duration{3: 0}},
		{"and stays so", of(1, 2, 3), reports{1: {1, 2}, 2: {1, 2}}, map[uint64]time.Duration{3: 8 * s}, map[uint64]time.Duration{3: 9 * s}},
		{"one server still reaches it", of(1, 2, 3), reports{1: {1, 2}, 2: {1, 2, 3}}, map[uint64]time.Duration{3: 8 * s}, nil},
		{"it tells by itself", of(1, 2, 3), reports{1: {1, 2}, 3: {3}}, map[uint64]time.Duration{3: 8 * s}, map[uint64]time.Duration{}},
		{"nobody but the leader told", of(1, 2, 3), reports{1: {1}}, map[uint64]time.Duration{3: 8 * s}, map[uint64]time.Duration{3: 8 * s}},
		{"two of five told", of(1, 2, 3, 4, 5), reports{1: {1}, 2: {2}}, nil, nil},
		{"it was removed", of(1, 2), reports{1: {1, 2}, 2: {1, 2}}, map[uint64]time.Duration{3: 8 * s}, nil},
	} {
		got := maps.Clone(c.before)
		if got == nil {
			got = map[uint64]time.Duration{}
		}
		listen(c.members, c.reports, got, s)
		if !maps.Equal(got, c.after) {
			t.Errorf("%s: %v, want %v", c.what, got, c.after)
		}
	}
}

func TestGone(t *testing.T) {
	const grace = time.Hour
	learner := append(of(1, 2, 3), etcd.MemberInfo{ID: 4, Name: "d", Learner: true})
	for _, c := range []struct {
		what    string
		members []etcd.MemberInfo
		told    []uint64
		silence map[uint64]time.Duration
		want    uint64
	}{
		{"nobody is silent", of(1, 2, 3), []uint64{1, 2, 3}, nil, 0},
		{"not for long enough", of(1, 2, 3), []uint64{1, 2}, map[uint64]time.Duration{3: grace - 1}, 0},
		{"for the grace", of(1, 2, 3), []uint64{1, 2}, map[uint64]time.Duration{3: grace}, 3},
		{"but one alone says so", of(1, 2, 3), []uint64{1}, map[uint64]time.Duration{3: grace}, 0},
		{"the other one of two", of(1, 2), []uint64{1}, map[uint64]time.Duration{2: grace}, 0},
		{"the longest first", of(1, 2, 3, 4, 5), []uint64{1, 2, 3}, map[uint64]time.Duration{4: grace, 5: 2 * grace}, 5},
		{"of equals the first", of(1, 2, 3, 4, 5), []uint64{1, 2, 3}, map[uint64]time.Duration{4: grace, 5: grace}, 4},
		{"too few are left", of(1, 2, 3, 4, 5), []uint64{1, 2}, map[uint64]time.Duration{3: grace, 4: grace, 5: grace}, 0},
		{"one that joins", append(of(1, 2, 3), etcd.MemberInfo{ID: 4, Learner: true}), []uint64{1, 2}, map[uint64]time.Duration{4: grace}, 0},
		{"a learner", learner, []uint64{1, 2}, map[uint64]time.Duration{4: grace}, 4},
		{"a learner's word is none", learner, []uint64{1, 4}, map[uint64]time.Duration{3: grace}, 0},
	} {
		told := reports{}
		for _, id := range c.told {
			told[id] = []uint64{id}
		}
		if got := gone(c.members, told, c.silence, Bounds{Remove: grace}); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
}

// Whatever happens, and whoever tells what: only members that nobody reached for the whole grace are removed, with a living
// majority that says so, and the cluster that is left can lose as many servers as before, or more.
func TestRemovalIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const watched, soon = time.Second, 3 * time.Second
		bounds := Bounds{Remove: 5 * time.Second, Replace: soon}
		members := of(slices.Sorted(maps.Keys(rapid.MapOfN(rapid.Uint64Range(1, 9), rapid.Bool(), 1, 8).Draw(t, "members")))...)
		for i := range members {
			members[i].Learner = rapid.IntRange(0, 4).Draw(t, "learner") == 0
		}
		silence, rounds := map[uint64]time.Duration{}, map[uint64]int{}
		for range rapid.IntRange(1, 40).Draw(t, "rounds") {
			told, heard := reports{}, map[uint64]bool{}
			for _, mb := range members {
				if rapid.IntRange(0, 3).Draw(t, "tells") == 0 {
					continue
				}
				told[mb.ID] = []uint64{mb.ID}
				heard[mb.ID] = true
				for _, other := range members {
					if rapid.IntRange(0, 9).Draw(t, "reaches") == 0 {
						told[mb.ID] = append(told[mb.ID], other.ID)
						heard[other.ID] = true
					}
				}
			}
			for _, mb := range members {
				if rounds[mb.ID]++; heard[mb.ID] {
					rounds[mb.ID] = 0
				}
			}
			listen(members, told, silence, watched)
			id := gone(members, told, silence, bounds)
			if id == 0 {
				continue
			}
			bound := bounds.Remove
			if voters(members) >= MaxVoters {
				bound = soon
			}
			if time.Duration(rounds[id])*watched < bound || heard[id] {
				t.Fatalf("%d was removed after %d rounds of silence", id, rounds[id])
			}
			alive := map[uint64]bool{}
			for from := range told {
				alive[from] = true
			}
			before := Spare(members, alive)
			members = slices.DeleteFunc(slices.Clone(members), func(mb etcd.MemberInfo) bool { return mb.ID == id })
			if after := Spare(members, alive); before < 0 || after < before {
				t.Fatalf("the cluster could lose %d before %d was removed, and can lose %d now", before, id, after)
			}
		}
	})
}
