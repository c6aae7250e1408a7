package membership_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/store/etcd"
)

// fake is a member of a cluster that exists in memory alone.
type fake struct {
	id uint64

	mu       sync.Mutex
	leader   uint64
	members  []etcd.MemberInfo
	alive    map[uint64]bool
	frozen   map[uint64]bool // of those alive: they accept connections, and do nothing
	failures []error         // of the next changes, one each
	calls    []string
}

func (f *fake) ID() uint64 { return f.id }

func (f *fake) Leader() uint64 { f.mu.Lock(); defer f.mu.Unlock(); return f.leader }

func (f *fake) Members() []etcd.MemberInfo {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.members)
}

func (f *fake) Reachable(context.Context) map[uint64]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.alive)
}

func (f *fake) Responding(context.Context) map[uint64]bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	well := maps.Clone(f.alive)
	maps.DeleteFunc(well, func(id uint64, alive bool) bool { return !alive || f.frozen[id] })
	return well
}

// did lists the changes that were tried.
func (f *fake) did() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// change notes a call, fails if it is to, or else does what it is for.
func (f *fake) change(do func(), format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	if len(f.failures) > 0 {
		err := f.failures[0]
		f.failures = f.failures[1:]
		return err
	}
	do()
	return nil
}

func (f *fake) AddLearner(_ context.Context, url string) ([]etcd.MemberInfo, error) {
	err := f.change(func() {
		f.members = append(f.members, etcd.MemberInfo{ID: 100, PeerURLs: []string{url}, Learner: true})
	}, "add %s", url)
	if err != nil {
		return nil, err
	}
	return f.Members(), nil
}

func (f *fake) Promote(_ context.Context, id uint64) error {
	return f.change(func() {
		for i := range f.members {
			if f.members[i].ID == id {
				f.members[i].Learner = false
			}
		}
	}, "promote %d", id)
}

func (f *fake) Remove(_ context.Context, id uint64) error {
	return f.change(func() {
		f.members = slices.DeleteFunc(f.members, func(m etcd.MemberInfo) bool { return m.ID == id })
	}, "remove %d", id)
}

func (f *fake) MoveLeader(_ context.Context, to uint64) error {
	return f.change(func() { f.leader = to }, "move to %d", to)
}

func three() *fake {
	return &fake{id: 1, leader: 1, alive: map[uint64]bool{1: true, 2: true, 3: true}, members: []etcd.MemberInfo{
		{ID: 1, Name: "a", PeerURLs: []string{"http://a"}}, {ID: 2, Name: "b", PeerURLs: []string{"http://b"}}, {ID: 3, Name: "c", PeerURLs: []string{"http://c"}},
	}}
}

func TestRemove(t *testing.T) {
	busy := errors.New("another change is under way")
	for name, tt := range map[string]struct {
		who    string
		change func(*fake)
		want   error
		calls  []string
	}{
		"another":            {who: "b", calls: []string{"remove 2"}},
		"nobody":             {who: "x", want: membership.ErrUnknown},
		"when it takes more": {who: "b", change: func(f *fake) { f.failures = []error{busy, busy} }, calls: []string{"remove 2", "remove 2", "remove 2"}},
		"when it endangers the quorum": {who: "b", want: etcd.ErrQuorum, calls: []string{"remove 2"},
			change: func(f *fake) { f.failures = []error{fmt.Errorf("no: %w", etcd.ErrQuorum)} }},
		"itself, leading":                  {who: "a", calls: []string{"move to 2", "remove 1"}},
		"itself, following":                {who: "a", change: func(f *fake) { f.leader = 2 }, calls: []string{"remove 1"}},
		"itself, beside a dead server":     {who: "a", change: func(f *fake) { f.alive[2] = false }, calls: []string{"move to 3", "remove 1"}},
		"itself, beside a learner":         {who: "a", change: func(f *fake) { f.members[1].Learner = true }, calls: []string{"move to 3", "remove 1"}},
		"itself, when the next won't lead": {who: "a", change: func(f *fake) { f.failures = []error{busy} }, calls: []string{"move to 2", "move to 3", "remove 1"}},
		"itself, beside a witness":         {who: "a", change: func(f *fake) { f.members[1].Witness = "https://b" }, calls: []string{"move to 3", "remove 1"}},
		"itself, beside a frozen server":   {who: "a", change: func(f *fake) { f.frozen = map[uint64]bool{2: true} }, calls: []string{"move to 3", "remove 1"}},
		"itself, alone":                    {who: "a", want: etcd.ErrQuorum, change: func(f *fake) { f.alive = map[uint64]bool{1: true} }},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := three()
				if tt.change != nil {
					tt.change(f)
				}
				err := membership.New(membership.Config{Member: f}).Remove(t.Context(), tt.who)
				if !errors.Is(err, tt.want) || !slices.Equal(f.did(), tt.calls) {
					t.Errorf("%v after %v, want %v after %v", err, f.did(), tt.want, tt.calls)
				}
			})
		})
	}
}

// A removal that never succeeds ends with its caller's patience, and says why it failed.
func TestRemoveGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, busy := three(), errors.New("another change is under way")
		for range 1000 {
			f.failures = append(f.failures, busy)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		if err := membership.New(membership.Config{Member: f}).Remove(ctx, "b"); !errors.Is(err, busy) || time.Since(began) > 6*time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// There are never more than five voters: the others wait until one is gone, and one of them steps in, the one that has caught up.
func TestRunKeepsFiveVoters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{id: 1, leader: 1, alive: map[uint64]bool{}}
		for id := uint64(1); id <= 7; id++ {
			f.members = append(f.members, etcd.MemberInfo{ID: id, Name: string(rune('a' - 1 + id)), Learner: id > 5})
			f.alive[id] = true
		}
		m := membership.New(membership.Config{Member: f})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- m.Run(ctx) }()
		<-time.After(time.Hour)
		synctest.Wait()
		if len(f.did()) > 0 {
			t.Errorf("five vote, and it did %v", f.did())
		}
		if err := m.Remove(ctx, "c"); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		f.failures = []error{errors.New("it lags behind")}
		f.mu.Unlock()
		<-time.After(time.Hour)
		synctest.Wait()
		if want := []string{"remove 3", "promote 6", "promote 7"}; !slices.Equal(f.did(), want) {
			t.Errorf("it did %v, want %v", f.did(), want)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// The leader, and nobody else, promotes learners that caught up, and forgets those that never came.
// Its clock is synctest's: no time passes.
func TestRunLooksAfterLearners(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := three()
		f.leader = 2
		f.members = append(f.members, etcd.MemberInfo{ID: 4, Name: "d", Learner: true}, etcd.MemberInfo{ID: 5, Learner: true})
		f.alive[4] = true
		f.failures = []error{errors.New("it lags behind")} // of the first promotion
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- membership.New(membership.Config{Member: f}).Run(ctx) }()
		<-time.After(time.Hour)
		synctest.Wait()
		if len(f.did()) > 0 {
			t.Errorf("a follower did %v", f.did())
		}
		f.mu.Lock()
		f.leader = 1
		f.mu.Unlock()
		<-time.After(time.Minute)
		synctest.Wait()
		if want := []string{"promote 4", "promote 4"}; !slices.Equal(f.did(), want) {
			t.Errorf("the leader did %v, want %v", f.did(), want)
		}
		<-time.After(10 * time.Minute)
		synctest.Wait()
		if want := []string{"promote 4", "promote 4", "remove 5"}; !slices.Equal(f.did(), want) {
			t.Errorf("the leader did %v, want %v", f.did(), want)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
