package etcd

import (
	"errors"
	"reflect"
	"testing"
)

func TestCheckRemoval(t *testing.T) {
	voters := func(n int) (list []MemberInfo) {
		for i := range n {
			list = append(list, MemberInfo{ID: uint64(i + 1)})
		}
		return list
	}
	alive := func(ids ...uint64) map[uint64]bool {
		m := map[uint64]bool{}
		for _, id := range ids {
			m[id] = true
		}
		return m
	}
	withLearner := append(voters(1), MemberInfo{ID: 9, Learner: true})
	withWitness := voters(3)
	withWitness[2].Witness = "https://c"
	for _, c := range []struct {
		what    string
		members []MemberInfo
		alive   map[uint64]bool
		id      uint64
		refused bool
	}{
		{"the dead one of three", voters(3), alive(1, 2), 3, false},
		{"a living one of three", voters(3), alive(1, 2, 3), 3, false},
		{"a living one while another is dead", voters(3), alive(1, 3), 3, true},
		{"the last", voters(1), alive(1), 1, true},
		{"the dead one of two", voters(2), alive(1), 2, false},
		{"one of four with one dead", voters(4), alive(1, 2, 3), 3, false},
		{"one of four with two dead", voters(4), alive(1, 3), 3, true},
		{"a learner", withLearner, alive(1), 9, false},
		{"the only voter beside a learner", withLearner, alive(1, 9), 1, true},
		{"nobody", voters(3), alive(1, 2), 7, false},
		{"one of two servers with a witness", withWitness, alive(1, 2, 3), 2, false},
		{"the witness", withWitness, alive(1, 2), 3, false},
		{"a living server, while the other is dead", withWitness, alive(1, 3), 1, true},
		{"the dead one of them", withWitness, alive(1, 3), 2, false},
		{"the only server beside a witness", withWitness[1:], alive(2, 3), 2, true},
	} {
		if err := CheckRemoval(c.members, c.alive, c.id); errors.Is(err, ErrQuorum) != c.refused {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

func TestInitialCluster(t *testing.T) {
	got := InitialCluster([]MemberInfo{
		{ID: 1, Name: "a", PeerURLs: []string{"http://a"}},
		{ID: 2, PeerURLs: []string{"http://b"}},
		{ID: 3, Name: "c", PeerURLs: []string{"http://c", "http://c2"}},
		{ID: 4, PeerURLs: []string{"http://d"}},
	}, "b", "http://b")
	want := map[string]string{"a": "http://a", "b": "http://b", "c": "http://c", "3-1": "http://c2", "4-0": "http://d"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// A member that joins believes what others say of the members, but not those who have not heard of it yet.
func TestLearnMembers(t *testing.T) {
	a, b, c := MemberInfo{ID: 1, Name: "a", PeerURLs: []string{"http://a"}}, MemberInfo{ID: 2, PeerURLs: []string{"http://b"}}, MemberInfo{ID: 3, Name: "c", PeerURLs: []string{"http://c"}}
	told := map[string]string{"a": "http://a", "b": "http://b"}
	for _, test := range []struct {
		what    string
		members []MemberInfo
		want    map[string]string
	}{
		{"nobody answers", nil, told},
		{"another joined", []MemberInfo{a, b, c}, map[string]string{"a": "http://a", "b": "http://b", "c": "http://c"}},
		{"one is behind", []MemberInfo{a, c}, told},
		{"another has the name", []MemberInfo{a, {ID: 4, Name: "b", PeerURLs: []string{"http://d"}}}, told},
	} {
		cfg := Config{Name: "b", PeerURL: "http://b", InitialCluster: told}
		if cfg.learn(test.members); !reflect.DeepEqual(cfg.InitialCluster, test.want) {
			t.Errorf("%s: %v, want %v", test.what, cfg.InitialCluster, test.want)
		}
	}
}
