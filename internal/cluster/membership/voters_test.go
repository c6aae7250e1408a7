package membership

import (
	"maps"
	"slices"
	"testing"
	"time"

	"barque.dev/internal/store/etcd"
)

// servers are voters with the IDs 1 to n, and then learners: of a name, they have started.
func servers(voters int, learners ...string) []etcd.MemberInfo {
	var ids []uint64
	for i := range voters {
		ids = append(ids, uint64(i+1))
	}
	list := of(ids...)
	for i, name := range learners {
		list = append(list, etcd.MemberInfo{ID: uint64(voters + i + 1), Name: name, Learner: true})
	}
	return list
}

func TestPromotions(t *testing.T) {
	for _, c := range []struct {
		what    string
		members []etcd.MemberInfo
		dead    []uint64
		want    []uint64
	}{
		{"the first alone", servers(1), nil, nil},
		{"a second one joins", servers(1, "b"), nil, []uint64{2}},
		{"it has not started", servers(1, ""), nil, nil},
		{"two join at once", servers(1, "b", "c"), nil, []uint64{2, 3}},
		{"one of them died", servers(1, "b", "c"), []uint64{2}, []uint64{3}},
		{"the fourth votes", servers(3, "d"), nil, []uint64{4}},
		{"the fifth votes", servers(4, "e"), nil, []uint64{5}},
		{"the sixth stands by", servers(5, "f"), nil, nil},
		{"and the seventh", servers(5, "f", "g"), nil, nil},
		{"a dead voter keeps its vote until it is removed", servers(5, "f"), []uint64{2}, nil},
		{"a voter is gone, and one of two steps in", servers(4, "f", "g"), nil, []uint64{5, 6}},
		{"whoever lives", servers(4, "f", "g"), []uint64{5}, []uint64{6}},
		{"nobody who lives", servers(4, "f"), []uint64{5}, nil},
		{"more voters than that are left alone", servers(7, "h"), nil, nil},
	} {
		asked := 0
		got := promotions(c.members, func() map[uint64]bool {
			asked++
			well := map[uint64]bool{}
			for _, mb := range c.members {
				well[mb.ID] = !slices.Contains(c.dead, mb.ID)
			}
			return well
		})
		if !slices.Equal(got, c.want) || asked > 1 {
			t.Errorf("%s: %v, want %v (asked %d times who is well)", c.what, got, c.want, asked)
		}
	}
}

func TestBounds(t *testing.T) {
	const hour = time.Hour
	voter, learner := etcd.MemberInfo{ID: 1}, etcd.MemberInfo{ID: 1, Learner: true}
	for _, c := range []struct {
		what     string
		bounds   Bounds
		member   etcd.MemberInfo
		standsBy bool
		want     time.Duration
	}{
		{"a voter that nobody can replace", Bounds{Remove: 72 * hour, Replace: hour}, voter, false, 72 * hour},
		{"a voter that somebody can", Bounds{Remove: 72 * hour, Replace: hour}, voter, true, hour},
		{"one without a vote", Bounds{Remove: 72 * hour, Replace: hour}, learner, true, 72 * hour},
		{"no difference is made", Bounds{Remove: 72 * hour}, voter, true, 72 * hour},
		{"replacing is slower", Bounds{Remove: hour, Replace: 2 * hour}, voter, true, hour},
	} {
		if got := c.bounds.of(c.member, c.standsBy); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
	if got := (Bounds{Remove: 72 * hour, Replace: hour}).shortest(); got != hour {
		t.Errorf("the shortest is %v", got)
	}
}

// A voter makes room for one that stands by soon, and keeps its place for long where nobody does.
func TestGoneMakesRoom(t *testing.T) {
	bounds := Bounds{Remove: 72 * time.Hour, Replace: time.Hour}
	for _, c := range []struct {
		what    string
		members []etcd.MemberInfo
		told    []uint64
		silence map[uint64]time.Duration
		want    uint64
	}{
		{"nobody stands by", servers(5), []uint64{1, 2, 3, 4}, map[uint64]time.Duration{5: 2 * time.Hour}, 0},
		{"one stands by", servers(5, "f"), []uint64{1, 2, 3, 4, 6}, map[uint64]time.Duration{5: 2 * time.Hour}, 5},
		{"not for long enough", servers(5, "f"), []uint64{1, 2, 3, 4, 6}, map[uint64]time.Duration{5: time.Hour - 1}, 0},
		{"it doesn't tell", servers(5, "f"), []uint64{1, 2, 3, 4}, map[uint64]time.Duration{5: 2 * time.Hour}, 0},
		{"it has not started", servers(5, ""), []uint64{1, 2, 3, 4, 6}, map[uint64]time.Duration{5: 2 * time.Hour}, 0},
		{"it joins a cluster with room", servers(4, "f"), []uint64{1, 2, 3, 5}, map[uint64]time.Duration{4: 2 * time.Hour}, 0},
		{"two are lost, one stands by: the longest first", servers(5, "f"), []uint64{1, 2, 3, 6}, map[uint64]time.Duration{4: 3 * time.Hour, 5: 2 * time.Hour}, 4},
		{"three are lost", servers(5, "f"), []uint64{1, 2, 6}, map[uint64]time.Duration{4: 3 * time.Hour}, 0},
		{"one that stands by is lost", servers(5, "f", "g"), []uint64{1, 2, 3, 4, 5, 6}, map[uint64]time.Duration{7: 2 * time.Hour}, 0},
		{"for good", servers(5, "f", "g"), []uint64{1, 2, 3, 4, 5, 6}, map[uint64]time.Duration{7: 72 * time.Hour}, 7},
	} {
		told := reports{}
		for _, id := range c.told {
			told[id] = []uint64{id}
		}
		if got := gone(c.members, told, maps.Clone(c.silence), bounds); got != c.want {
			t.Errorf("%s: %d, want %d", c.what, got, c.want)
		}
	}
}
