package fault

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// fake is a machine that writes down what is done to it.
type fake struct {
	name string
	ip   netip.Addr
	mu   *sync.Mutex
	done *[]string
}

func (m fake) did(format string, args ...any) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	*m.done = append(*m.done, m.name+" "+fmt.Sprintf(format, args...))
	return nil
}

func (m fake) String() string                 { return m.name }
func (m fake) Address() netip.Addr            { return m.ip }
func (m fake) Kill() error                    { return m.did("kill") }
func (m fake) Stop(context.Context) error     { return m.did("stop") }
func (m fake) PowerOff(context.Context) error { return m.did("off") }
func (m fake) Signal(s syscall.Signal) error  { return m.did("%v", s) }
func (m fake) SetCable(in bool) error         { return m.did("cable %t", in) }
func (m fake) Deafen(from []netip.Addr) error { return m.did("deaf %v", from) }
func (m fake) start(context.Context) error    { return m.did("start") }

func (m fake) ShiftClock(by time.Duration) error         { return m.did("clock %v", by) }
func (m fake) Lose(percent int) error                    { return m.did("lose %d", percent) }
func (m fake) Delay(least, most time.Duration) error     { return m.did("delay %v %v", least, most) }
func (m fake) DropAddress(a netip.Addr) error            { return m.did("drop %s", a) }
func (m fake) Fill(full bool) error                      { return m.did("full %t", full) }
func (m fake) Slow(writes int) error                     { return m.did("slow %d", writes) }
func (m fake) Wipe(context.Context) error                { return m.did("wipe") }
func (m fake) leave(_ context.Context, o Machine) error  { return o.(fake).did("leave") }
func (m fake) remove(_ context.Context, o Machine) error { return o.(fake).did("removed") }
func (m fake) write(context.Context) error               { return m.did("written") }
func (m fake) voting(context.Context) error              { return m.did("voting") }

func cluster() (Cluster, *[]string) {
	var mu sync.Mutex
	done := &[]string{}
	m := func(i int) fake {
		return fake{fmt.Sprint("s", i), netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), &mu, done}
	}
	whole := fake{"all", netip.Addr{}, &mu, done}
	return Cluster{
		Leader: m(2), Followers: []Machine{m(1), m(3)}, VIP: netip.MustParseAddr("10.0.0.99"),
		Start: whole.start, Voting: whole.voting, Write: whole.write, Leave: whole.leave, Remove: whole.remove,
		Upgrade: func(context.Context) error { return whole.did("upgraded: s1, s2, s3") },
	}, done
}

// repeats are the kinds that do something over and over, with what that is.
var repeats = map[string][]string{
	"storm":       {"s2 kill", "all start", "s1 kill", "all start", "s3 kill", "all start", "s2 kill"},
	"flap-leader": {"s2 cable false", "s2 cable true", "s2 cable false", "s2 cable true"},
	"flap-vip":    {"s2 drop 10.0.0.99", "s2 drop 10.0.0.99"},
}

// TestRepeated: what is done over and over begins when the fault strikes, has ended when it is healed, and leaves things
// as they were.
func TestRepeated(t *testing.T) {
	for _, k := range Kinds() {
		want := repeats[k.Name]
		if want == nil {
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			c, done := cluster()
			f, err := k.On(c, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.Strike(t.Context()); err != nil {
				t.Errorf("%s: %v", k.Name, err)
			}
			<-time.After(3 * time.Second) // in the bubble's time
			synctest.Wait()
			if err := f.Heal(t.Context()); err != nil {
				t.Errorf("%s: %v", k.Name, err)
			}
			got := *done
			if len(got) < len(want) || !slices.Equal(got[:len(want)], want) {
				t.Errorf("%s does %q, want %q", k.Name, got, want)
			}
			if last := got[len(got)-1]; k.Name != "flap-vip" && last != "all start" && last != "s2 cable true" {
				t.Errorf("%s leaves %q", k.Name, last)
			}
			<-time.After(time.Minute)
			synctest.Wait()
			if len(*done) != len(got) {
				t.Errorf("%s goes on when it was healed: %q", k.Name, (*done)[len(got):])
			}
		})
	}
	// One that did not begin is healed, too.
	c, _ := cluster()
	if err := flapping(c, 0).Heal(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestKinds: each fault strikes those that it names, and is taken away again.
func TestKinds(t *testing.T) {
	want := map[string][2]string{
		"kill-leader":      {"s2 kill", "all start"},
		"kill-follower":    {"s3 kill", "all start"},
		"kill-two":         {"s2 kill, s3 kill", "all start"},
		"kill-all":         {"s1 kill, s2 kill, s3 kill", "all start"},
		"restart-leader":   {"s2 stop", "all start"},
		"restart-follower": {"s3 stop", "all start"},
		"lose-leader":      {"s2 off", "all start"},
		"freeze-leader":    {"s2 stopped (signal)", "s2 continued"},
		"cut-leader":       {"s2 cable false", "s2 cable true"},
		"split-leader":     {"s1 deaf [10.0.0.2], s2 deaf [10.0.0.1 10.0.0.3], s3 deaf [10.0.0.2]", "s1 deaf [], s2 deaf [], s3 deaf []"},
		"mute-leader":      {"s1 deaf [10.0.0.2], s3 deaf [10.0.0.2]", "s1 deaf [], s3 deaf []"},
		"bridge":           {"s1 deaf [10.0.0.2], s2 deaf [10.0.0.1]", "s1 deaf [], s2 deaf []"},
		"upgrade":          {"all upgraded: s1, s2, s3", "all start"},
		"loss-leader":      {"s2 lose 20", "s2 lose 0"},
		"loss-all":         {"s1 lose 5, s2 lose 5, s3 lose 5", "s1 lose 0, s2 lose 0, s3 lose 0"},
		"delay-leader":     {"s2 delay 20ms 60ms", "s2 delay 0s 0s"},
		"fill-leader":      {"all written, s2 full true", "all start, s2 full false"},
		"fill-follower":    {"all written, s3 full true", "all start, s3 full false"},
		"slow-leader":      {"s2 slow 20", "s2 slow 0"},
		"slow-follower":    {"s3 slow 20", "s3 slow 0"},
		"clock-ahead":      {"s2 clock 1h0m0s", "s2 clock 0s"},
		"clock-behind":     {"s2 clock -1h0m0s", "s2 clock 0s"},
		"leave-leader":     {"s2 leave", "all start, all voting, s2 wipe"},
		"leave-follower":   {"s3 leave", "all start, all voting, s3 wipe"},
		"replace-follower": {"s3 removed, s3 wipe", "all start, all voting, s3 wipe"},
	}
	for _, k := range Kinds() {
		if repeats[k.Name] != nil {
			continue
		}
		c, done := cluster()
		f, err := k.On(c, 7)
		if err != nil {
			t.Fatal(err)
		}
		take := func() string {
			all := slices.Sorted(slices.Values(*done))
			*done = nil
			return strings.Join(all, ", ")
		}
		if err := f.Strike(t.Context()); err != nil {
			t.Errorf("%s: %v", k.Name, err)
		}
		struck := take()
		if err := f.Heal(t.Context()); err != nil {
			t.Errorf("%s: %v", k.Name, err)
		}
		if got := [2]string{struck, take()}; got != want[k.Name] {
			t.Errorf("%s does %q, want %q", k.Name, got, want[k.Name])
		}
		for _, name := range f.Hit() {
			if !strings.Contains(struck, name) && !strings.Contains(struck, "10.0.0."+name[1:]) {
				t.Errorf("%s says that it hits %s, and did %s", k.Name, name, struck)
			}
		}
	}
	if len(Kinds()) != len(want)+len(repeats) {
		t.Errorf("%d kinds, %d expected", len(Kinds()), len(want)+len(repeats))
	}
	if _, err := Kinds()[0].On(Cluster{}, 0); err == nil {
		t.Error("a fault without machines was made")
	}
}

func TestChoose(t *testing.T) {
	some, err := Choose([]string{"cut-leader", "kill-all"})
	if err != nil || len(some) != 2 || some[0].Name != "kill-all" {
		t.Errorf("%v, %v", some, err)
	}
	if all, err := Choose(nil); err != nil || len(all) != len(Kinds()) {
		t.Errorf("%d, %v", len(all), err)
	}
	if none, err := Choose([]string{"kill-all", "slow-leader"}); err != nil || NeedDisks(none) {
		t.Errorf("disks are needed: %v", err)
	}
	if full, err := Choose([]string{"kill-all", "fill-follower"}); err != nil || !NeedDisks(full) {
		t.Errorf("disks are not needed: %v", err)
	}
	if some, err := Choose([]string{"kill-all", "upgrade"}); err != nil || !ReplaceProgram(some) || ReplaceProgram(some[:1]) {
		t.Errorf("whether the program is replaced: %v", err)
	}
	if _, err := Choose([]string{"kill-everyone"}); err == nil || !strings.Contains(err.Error(), "kill-leader, kill-follower") {
		t.Errorf("a fault that there is not: %v", err)
	}
}

// TestPlan: a seed says it all, and each kind comes as often as the others.
func TestPlan(t *testing.T) {
	say := func(seed uint64) (all []string) {
		p := NewPlan(seed, Kinds())
		for range 5 * len(Kinds()) {
			s := p.Next()
			if s.Hold < 2*time.Second || s.Hold >= 5*time.Second || s.Follower < 0 {
				t.Fatalf("step %+v", s)
			}
			all = append(all, fmt.Sprint(s.Kind.Name, s.Follower, s.Hold))
		}
		return all
	}
	if !slices.Equal(say(7), say(7)) {
		t.Error("the same seed says different things")
	}
	if slices.Equal(say(7), say(8)) {
		t.Error("different seeds say the same")
	}
	count := map[string]int{}
	for p, i := NewPlan(3, Kinds()), 0; i < 4*len(Kinds()); i++ {
		count[p.Next().Kind.Name]++
	}
	for name, n := range count {
		if n != 4 {
			t.Errorf("%s comes %d times, want 4", name, n)
		}
	}
}
