package fairness

import (
	"fmt"
	"hash/maphash"
	"slices"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/util/shufflesharding"
	"pgregory.net/rapid"
)

// testLevel is a level with so many seats.
func testLevel(tb rapid.TB, seats int, q queuing) *level {
	tb.Helper()
	l := &level{name: "test", limit: seats, stats: map[string]*stats{}, timings: newTimings()}
	var dealer *shufflesharding.Dealer
	if q.queues > 0 {
		var err error
		if dealer, err = shufflesharding.NewDealer(q.queues, q.hand); err != nil {
			tb.Fatal(err)
		}
	}
	l.configure(q, dealer, share{nominal: seats}, 0)
	return l
}

func ticket(l *level, schema string, e estimate) *Ticket {
	return &Ticket{flow: &flow{schema: schema, level: l, stats: l.statsOf(schema)}, info: &request.RequestInfo{Verb: "get"}, estimate: e}
}

func has(t *Ticket) bool {
	if t.decided == nil {
		return t.seated
	}
	select {
	case <-t.decided:
		return true
	default:
		return false
	}
}

// flowHash is a hash of a flow that shares no queue with the flows before.
func flowHash(n int) uint64 { return uint64(n) }

func TestSeatsAreTakenAndGivenBack(t *testing.T) {
	l := testLevel(t, 2, queuing{queues: 4, hand: 1, length: 2})
	var in []*Ticket
	for range 4 {
		k := ticket(l, "a", estimate{initial: 1})
		if why := l.enter(k, flowHash(1), 0); why != "" {
			t.Fatal(why)
		}
		in = append(in, k)
	}
	if !has(in[0]) || !has(in[1]) || has(in[2]) || has(in[3]) {
		t.Fatal("two seats must be for the first two")
	}
	if why := l.enter(ticket(l, "a", estimate{initial: 1}), flowHash(1), 0); why != queueFull {
		t.Errorf("a third in a queue of two: %q", why)
	}
	l.leave(in[0], time.Second)
	if !has(in[2]) || has(in[3]) {
		t.Error("a free seat is for who came first")
	}
	if !l.abandon(in[3], false, 2*time.Second) {
		t.Error("one that waits may stop waiting")
	}
	if l.abandon(in[2], false, 2*time.Second) {
		t.Error("one that has a seat does not wait")
	}
	l.leave(in[1], 3*time.Second)
	l.leave(in[2], 3*time.Second)
	if !l.idle() || l.used != 0 || l.active != 0 || l.progress != 0 {
		t.Errorf("everybody has left: %d seats used, %d queues active, progress %v", l.used, l.active, l.progress)
	}
	if l.refused.total != 2 || l.refused.timedOut != 1 || l.given != 3 {
		t.Errorf("refused %+v, given %d", l.refused, l.given)
	}
}

func TestALevelWithoutQueuesTurnsAway(t *testing.T) {
	l := testLevel(t, 1, queuing{})
	first := ticket(l, "a", estimate{initial: 1})
	if why := l.enter(first, 0, 0); why != "" || !has(first) {
		t.Fatal(why)
	}
	if why := l.enter(ticket(l, "a", estimate{initial: 1}), 0, 0); why != full {
		t.Errorf("got %q", why)
	}
	l.leave(first, 0)
	if why := l.enter(ticket(l, "a", estimate{initial: 5}), 0, 0); why != "" {
		t.Errorf("a request that is wider than the level runs alone: %q", why)
	}
}

func TestTheExemptNeverWait(t *testing.T) {
	l := testLevel(t, 0, queuing{})
	l.exempt = true
	for range 1000 {
		k := ticket(l, "a", estimate{initial: 10})
		if why := l.enter(k, 0, 0); why != "" || !has(k) {
			t.Fatal(why)
		}
	}
}

// TestAFloodWaitsBehindItself is fairness: one flow has filled the level and its queues when another comes, which gets
// every second seat that becomes free from then on, and what it asks for is answered long before the flood is.
func TestAFloodWaitsBehindItself(t *testing.T) {
	l := testLevel(t, 4, queuing{queues: 8, hand: 1, length: 100})
	var running []*Ticket
	enter := func(name string, hash uint64, now time.Duration) *Ticket {
		k := ticket(l, name, estimate{initial: 1})
		if why := l.enter(k, hash, now); why != "" {
			t.Fatal(why)
		}
		if has(k) {
			running = append(running, k)
		}
		return k
	}
	var flood, quiet []*Ticket
	for range 100 {
		flood = append(flood, enter("flood", 1, 0))
	}
	for range 20 {
		quiet = append(quiet, enter("quiet", 2, time.Millisecond))
	}
	seen := map[string]int{}
	now := time.Millisecond
	for range 20 {
		now += time.Millisecond
		l.leave(running[0], now)
		running = running[1:]
		for _, k := range slices.Concat(flood, quiet) {
			if has(k) && !slices.Contains(running, k) && l.holds(k) {
				running = append(running, k)
				seen[k.flow.schema]++
			}
		}
	}
	if seen["quiet"] < 10 {
		t.Errorf("of 20 seats that became free the quiet flow got %d, the flood %d", seen["quiet"], seen["flood"])
	}
}

// TestEmptySeatsAreOwedToNobody floods a level with requests that leave one of its seats empty. Whoever comes after a long
// time is served next all the same.
func TestEmptySeatsAreOwedToNobody(t *testing.T) {
	l := testLevel(t, 4, queuing{queues: 8, hand: 1, length: 1000})
	for range 1000 {
		if why := l.enter(ticket(l, "flood", estimate{initial: 3}), flowHash(1), 0); why != "" {
			t.Fatal(why)
		}
	}
	now := time.Duration(0)
	for range 100 {
		now += time.Second
		l.leave(l.executing.first, now)
	}
	quiet := ticket(l, "quiet", estimate{initial: 3})
	if why := l.enter(quiet, flowHash(2), now); why != "" {
		t.Fatal(why)
	}
	for passed := 0; !has(quiet); passed++ {
		if passed > 2 {
			t.Fatalf("%d of the flood have passed", passed)
		}
		now += time.Second
		l.leave(l.executing.first, now)
	}
}

// holds tells whether k runs.
func (l *level) holds(k *Ticket) bool {
	for t := l.executing.first; t != nil; t = t.next {
		if t == k {
			return true
		}
	}
	return false
}

func TestAWideRequestIsNotPassed(t *testing.T) {
	l := testLevel(t, 4, queuing{queues: 1, hand: 1, length: 10})
	var narrow []*Ticket
	for range 4 {
		k := ticket(l, "a", estimate{initial: 1})
		l.enter(k, 0, 0)
		narrow = append(narrow, k)
	}
	wide, late := ticket(l, "a", estimate{initial: 3}), ticket(l, "a", estimate{initial: 1})
	l.enter(wide, 0, 0)
	l.enter(late, 0, 0)
	l.leave(narrow[0], 1)
	l.leave(narrow[1], 2)
	if has(wide) || has(late) {
		t.Fatal("two seats are not enough for three, and nobody passes")
	}
	l.leave(narrow[2], 3)
	if !has(wide) || has(late) {
		t.Fatal("three seats are free: they are the wide one's")
	}
	l.leave(narrow[3], 4)
	if !has(late) {
		t.Error("one seat is left")
	}
}

func TestSeatsLinger(t *testing.T) {
	l := testLevel(t, 2, queuing{queues: 1, hand: 1, length: 10})
	write := ticket(l, "a", estimate{initial: 1, final: 4, linger: time.Second})
	l.enter(write, 0, 0)
	if write.final != 2 || write.linger != 2*time.Second {
		t.Fatalf("four seats for a second are two for two: %d, %v", write.final, write.linger)
	}
	next := ticket(l, "a", estimate{initial: 1})
	l.enter(next, 0, 0)
	linger, free := l.leave(write, time.Second)
	if linger != 2*time.Second || has(next) {
		t.Fatal("its seats are taken while what it caused goes on")
	}
	free(3 * time.Second)
	if !has(next) {
		t.Error("they are free afterwards")
	}
}

func TestMoreSeatsLetThoseInWhoWait(t *testing.T) {
	l := testLevel(t, 1, queuing{queues: 2, hand: 1, length: 10})
	var in []*Ticket
	for i := range 4 {
		k := ticket(l, "a", estimate{initial: 1})
		l.enter(k, uint64(i), 0)
		in = append(in, k)
	}
	l.resize(3, 1)
	n := 0
	for _, k := range in {
		if has(k) {
			n++
		}
	}
	if n != 3 {
		t.Errorf("%d run on three seats", n)
	}
	// Fewer queues than flows wait in: they are served all the same.
	dealer, err := shufflesharding.NewDealer(1, 1)
	if err != nil {
		t.Fatal(err)
	}
	l.configure(queuing{queues: 1, hand: 1, length: 10}, dealer, share{nominal: 3}, 2)
	leaveAll(l)
	if !l.idle() || l.active != 0 {
		t.Error("somebody was forgotten")
	}
}

// leaveAll has everybody who runs leave, until nobody does.
func leaveAll(l *level) {
	for l.executing.first != nil {
		l.leave(l.executing.first, l.last)
	}
}

// TestQueuesAreAbolished serves those who wait when a level lets nobody wait any more.
func TestQueuesAreAbolished(t *testing.T) {
	l := testLevel(t, 1, queuing{queues: 4, hand: 1, length: 10})
	for i := range 8 {
		if why := l.enter(ticket(l, "a", estimate{initial: 1}), uint64(i), 0); why != "" {
			t.Fatal(why)
		}
	}
	l.configure(queuing{}, nil, share{nominal: 1}, 1)
	if why := l.enter(ticket(l, "a", estimate{initial: 1}), 0, 1); why != full {
		t.Errorf("one more: %q", why)
	}
	leaveAll(l)
	if !l.idle() || l.active != 0 || l.given != 8 {
		t.Errorf("of 8 who waited %d were served", l.given)
	}
}

// TestBooksAreKept plays whatever may happen at a level and compares its books with what can be counted.
func TestBooksAreKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seats := rapid.IntRange(1, 6).Draw(t, "seats")
		l := testLevel(t, seats, queuing{queues: 4, hand: 2, length: rapid.IntRange(1, 4).Draw(t, "length")})
		l.robin = -1
		var all []*Ticket
		var frees []func(time.Duration)
		var now time.Duration
		gone := map[*Ticket]bool{}
		pick := func(label string, ok func(*Ticket) bool) *Ticket {
			var some []*Ticket
			for _, k := range all {
				if !gone[k] && ok(k) {
					some = append(some, k)
				}
			}
			if len(some) == 0 {
				return nil
			}
			return some[rapid.IntRange(0, len(some)-1).Draw(t, label)]
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now += time.Duration(rapid.IntRange(0, 5).Draw(t, "passed")) * time.Millisecond
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				e := estimate{initial: rapid.IntRange(1, 3).Draw(t, "initial")}
				if rapid.Bool().Draw(t, "lingers") {
					e.final, e.linger = rapid.IntRange(1, 4).Draw(t, "final"), time.Millisecond
				}
				k := ticket(l, fmt.Sprint(rapid.IntRange(0, 2).Draw(t, "flow")), e)
				if l.enter(k, rapid.Uint64().Draw(t, "hash"), now) == "" {
					all = append(all, k)
				}
			case 2:
				if k := pick("leaves", has); k != nil {
					gone[k] = true
					if _, free := l.leave(k, now); free != nil {
						frees = append(frees, free)
					}
				}
			case 3:
				if k := pick("abandons", func(k *Ticket) bool { return !has(k) }); k != nil {
					gone[k] = true
					if !l.abandon(k, false, now) {
						t.Fatal("one that waits could not leave")
					}
				}
			case 4:
				if len(frees) > 0 {
					frees[0](now)
					frees = frees[1:]
				}
			case 5:
				l.resize(rapid.IntRange(1, 6).Draw(t, "limit"), now)
			}
			check(t, l)
		}
		for again := true; again; {
			again = false
			for _, free := range frees {
				free(now)
			}
			frees = nil
			for _, k := range all {
				if !gone[k] && has(k) {
					gone[k], again = true, true
					if _, free := l.leave(k, now); free != nil {
						frees = append(frees, free)
					}
				}
			}
			again = again || len(frees) > 0
		}
		if !l.idle() || l.used != 0 || l.waitingSeats != 0 || l.active != 0 {
			t.Fatalf("somebody was left behind: %d run, %d wait, %d seats used", l.running, l.waitingCount, l.used)
		}
	})
}

// check compares a level's sums with what they are sums of.
func check(t *rapid.T, l *level) {
	running, waiting, waitingSeats, active := 0, 0, 0, 0
	for k := l.executing.first; k != nil; k = k.next {
		running++
	}
	for _, q := range l.queues {
		if q == nil {
			continue
		}
		n := 0
		for k := q.tickets.first; k != nil; k = k.next {
			n++
			waitingSeats += k.most()
		}
		if n != q.count || slices.Contains(l.waiting, q) != (n > 0) {
			t.Fatalf("queue %d says %d wait, and %d do", q.index, q.count, n)
		}
		waiting += n
		if n > 0 || q.executing > 0 {
			active++
		}
	}
	if running != l.running || waiting != l.waitingCount || waitingSeats != l.waitingSeats || active != l.active {
		t.Fatalf("books: running %d/%d, waiting %d/%d, seats waiting %d/%d, active %d/%d",
			l.running, running, l.waitingCount, waiting, l.waitingSeats, waitingSeats, l.active, active)
	}
	if len(l.waiting) > 0 && l.used < l.limit && l.fits(l.next().tickets.first.most()) {
		t.Fatal("a seat is free, and somebody waits for it")
	}
}

func TestDropsSendClientsAway(t *testing.T) {
	var d drops
	if d.wait() != 1 {
		t.Errorf("before anything: %d", d.wait())
	}
	second := int64(100)
	for range 200 {
		for range 4 * maxRetryAfter {
			d.record(second)
		}
		second++
	}
	if d.wait() != maxRetryAfter {
		t.Errorf("in a flood clients stay away for %d s", d.wait())
	}
	for range 2 * maxRetryAfter {
		second += maxRetryAfter + 1
		d.record(second)
	}
	if d.wait() > 2 {
		t.Errorf("long after it, for %d s", d.wait())
	}
}

// TestFlowsAreDealtDifferentHands makes sure that hashes of this package spread over queues as a Dealer needs them to.
func TestFlowsAreDealtDifferentHands(t *testing.T) {
	dealer, err := shufflesharding.NewDealer(128, 6)
	if err != nil {
		t.Fatal(err)
	}
	seed := maphash.MakeSeed()
	same := 0
	hands := map[[6]int]bool{}
	for i := range 1000 {
		var hand [6]int
		dealer.DealIntoHand(maphash.String(seed, fmt.Sprint("user-", i)), hand[:])
		slices.Sort(hand[:])
		if hands[hand] {
			same++
		}
		hands[hand] = true
	}
	if same > 1 {
		t.Errorf("%d of 1000 flows have a hand that another has", same)
	}
}
