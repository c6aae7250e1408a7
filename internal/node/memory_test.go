package node

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestShouldRelease(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		what        string
		before, now heapUse
		want        bool
	}{
		{"idle and small", heapUse{allocated: 100 * mb}, heapUse{allocated: 101 * mb, live: 20 * mb, held: 40 * mb}, false},
		{"idle after a burst", heapUse{allocated: 900 * mb}, heapUse{allocated: 901 * mb, live: 20 * mb, held: 90 * mb}, true},
		{"in a burst", heapUse{allocated: 400 * mb}, heapUse{allocated: 900 * mb, live: 20 * mb, held: 90 * mb}, false},
		{"idle with much state", heapUse{allocated: 900 * mb}, heapUse{allocated: 901 * mb, live: 400 * mb, held: 410 * mb}, false},
	} {
		if got := shouldRelease(c.before, c.now); got != c.want {
			t.Errorf("%s: release %v, want %v", c.what, got, c.want)
		}
	}
}

// What a burst held is no longer held once it was released: the figures that the decision is
// made of are the right ones.
func TestReadHeap(t *testing.T) {
	burst := make([][]byte, 0, 64)
	for range 64 {
		b := make([]byte, 1<<20)
		for i := range b {
			b[i] = 1
		}
		burst = append(burst, b)
	}
	during := readHeap()
	runtime.KeepAlive(burst)
	burst = nil
	debug.FreeOSMemory()
	after := readHeap()
	if during.held < 64<<20 || during.allocated < 64<<20 {
		t.Errorf("during a burst of 64 MB: %+v", during)
	}
	if after.held+48<<20 > during.held {
		t.Errorf("held %d bytes during the burst, %d after it was released", during.held, after.held)
	}
	if shouldRelease(after, after) {
		t.Errorf("memory would be released again at once: %+v", after)
	}
}

// Holes between what lives are no reason to collect again and again.
func TestHolesAreNotHeld(t *testing.T) {
	const size, every = 1 << 10, 8 // a page holds as many
	all := make([]*[size]byte, 100_000)
	for i := range all {
		all[i] = new([size]byte)
	}
	for i := range all {
		if i%every != 0 {
			all[i] = nil
		}
	}
	debug.FreeOSMemory()
	after := readHeap()
	runtime.KeepAlive(all)
	if shouldRelease(after, after) {
		t.Errorf("memory would be released again at once: %+v", after)
	}
}
