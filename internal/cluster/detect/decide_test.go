package detect

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"barque.dev/internal/store/etcd"
)

// tick is one call of window.tick: how long after the one before, and the answers since.
type tick struct {
	after   time.Duration
	answers int
	gone    bool
}

func TestWindow(t *testing.T) {
	const ms = time.Millisecond
	regular := func(n, answers int) (list []tick) {
		for range n {
			list = append(list, tick{20 * ms, answers, false})
		}
		return list
	}
	for what, ticks := range map[string][]tick{
		"answered all the time":     regular(100, 1),
		"never answered":            regular(100, 0),
		"silent for D":              append(append(regular(5, 1), regular(4, 0)...), tick{20 * ms, 0, true}),
		"an answer in between":      append(append(append(regular(5, 1), regular(4, 0)...), tick{20 * ms, 1, false}), regular(4, 0)...),
		"the prober was late":       append(append(regular(5, 1), tick{500 * ms, 0, false}), regular(4, 0)...),
		"late, then silent for D":   append(append(append(regular(5, 1), tick{500 * ms, 0, false}), regular(4, 0)...), tick{20 * ms, 0, true}),
		"late with answers waiting": append(append(regular(5, 1), tick{500 * ms, 20, false}), regular(4, 0)...),
	} {
		w := window{interval: 20 * ms, silence: 100 * ms}
		now := time.Unix(0, 0)
		for i, k := range ticks {
			now = now.Add(k.after)
			if got := w.tick(now, k.answers); got != k.gone {
				t.Errorf("%s: tick %d says gone = %v", what, i, got)
			}
		}
	}
}

// However the prober is scheduled, it suspects only after it looked, on time, all through a
// silence of D, and it does suspect then.
func TestWindowProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const interval, silence = 20 * time.Millisecond, 100 * time.Millisecond
		w := window{interval: interval, silence: silence}
		now := time.Unix(0, 0)
		w.tick(now, 1)
		quiet := time.Duration(0) // looked at on time without an answer
		for range rapid.IntRange(1, 200).Draw(t, "ticks") {
			after := time.Duration(rapid.IntRange(10, 60).Draw(t, "ms")) * time.Millisecond
			answers := max(0, rapid.IntRange(-5, 2).Draw(t, "answers"))
			now = now.Add(after)
			if answers > 0 || after > interval+silence/4 {
				quiet = 0
			} else {
				quiet += after
			}
			if got := w.tick(now, answers); got != (quiet >= silence) {
				t.Fatalf("gone = %v after %v of silence", got, quiet)
			}
		}
	})
}

func TestRank(t *testing.T) {
	members := []etcd.MemberInfo{{ID: 30}, {ID: 10}, {ID: 5, Learner: true}, {ID: 7, Witness: "https://w"}, {ID: 20}}
	for _, c := range []struct {
		leader, self uint64
		want         int
	}{{10, 20, 0}, {10, 30, 1}, {30, 10, 0}, {30, 20, 1}, {20, 10, 0}, {20, 30, 1}, {20, 5, 2}, {20, 7, 2}, {7, 10, 0}, {20, 99, 2}} {
		if got := rank(members, c.leader, c.self); got != c.want {
			t.Errorf("rank of %d without %d is %d, want %d", c.self, c.leader, got, c.want)
		}
	}
}

func TestTrust(t *testing.T) {
	var tr trust
	now := time.Unix(0, 0)
	if !tr.suspects(1, now) {
		t.Fatal("not suspicious at first")
	}
	pause := time.Second
	for range 10 {
		tr.wasWrong(1, now)
		if tr.suspects(1, now.Add(pause-1)) {
			t.Errorf("suspected within %v", pause)
		}
		if !tr.suspects(1, now.Add(pause)) {
			t.Errorf("trusted after %v", pause)
		}
		if !tr.suspects(2, now) {
			t.Error("another leader is trusted too")
		}
		pause = min(2*pause, time.Minute)
	}
	tr.wasWrong(2, now)
	if !tr.suspects(2, now.Add(time.Second)) {
		t.Error("another leader begins with as little trust")
	}
}

func TestBesidePeer(t *testing.T) {
	for url, want := range map[string]string{"https://10.0.0.1:2380": "10.0.0.1:2381", "http://[::1]:9": "[::1]:10", "http://x": "", "": "", "%": ""} {
		got, err := besidePeer(etcd.MemberInfo{PeerURLs: []string{url}})
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v", url, got, err)
		}
	}
	if _, err := besidePeer(etcd.MemberInfo{}); err == nil {
		t.Error("no error without URLs")
	}
}
