package membership

import (
	"errors"
	"slices"
	"testing"
	"time"

	"barque.dev/internal/store/etcd"
)

func TestAdmit(t *testing.T) {
	members := []etcd.MemberInfo{
		{ID: 1, Name: "a", PeerURLs: []string{"http://a"}},
		{ID: 2, Name: "b", PeerURLs: []string{"http://b"}},
		{ID: 3, PeerURLs: []string{"http://c"}, Learner: true},
	}
	for _, c := range []struct {
		name, url string
		alive     []uint64
		want      decision
		old       uint64
		err       error
	}{
		{"d", "http://d", nil, add, 0, nil},
		{"c", "http://c", nil, present, 3, nil},
		{"b", "http://b", nil, replace, 2, nil},
		{"b", "http://elsewhere", nil, replace, 2, nil},
		{"b", "http://b", []uint64{2}, add, 0, ErrNameTaken},
		{"d", "http://b", nil, add, 0, ErrAddressTaken},
	} {
		alive := map[uint64]bool{}
		for _, id := range c.alive {
			alive[id] = true
		}
		got, old, err := admit(members, func() map[uint64]bool { return alive }, c.name, c.url)
		if got != c.want || old != c.old || !errors.Is(err, c.err) {
			t.Errorf("%s at %s: %d, %d, %v", c.name, c.url, got, old, err)
		}
	}
}

func TestAbsent(t *testing.T) {
	members := []etcd.MemberInfo{{ID: 1, Name: "a"}, {ID: 2, Name: "b", Learner: true}, {ID: 3, Learner: true}}
	waiting := map[uint64]time.Time{}
	now := time.Unix(0, 0)
	for _, c := range []struct {
		after   time.Duration
		missing []uint64
	}{{0, nil}, {neverStarted, nil}, {neverStarted + 1, []uint64{3}}} {
		if missing := absent(members, waiting, now.Add(c.after)); !slices.Equal(missing, c.missing) {
			t.Errorf("after %v: %v never came, want %v", c.after, missing, c.missing)
		}
	}
	for what, members := range map[string][]etcd.MemberInfo{"it went": members[:2], "it came": {members[0], {ID: 3, Name: "c", Learner: true}}} {
		waiting := map[uint64]time.Time{3: now}
		if missing := absent(members, waiting, now.Add(2*neverStarted)); len(missing) > 0 || len(waiting) > 0 {
			t.Errorf("%s: %v never came, it remembers %v", what, missing, waiting)
		}
	}
}
