package node

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// usualPercent is the runtime's own pace: it collects when the heap has doubled. A small heap that
	// serves many requests doubles several times a second, and each collection reads all of it again.
	usualPercent = 100
	// maxHeadroom is how much may be allocated from one collection to the next at least, in bytes, while much is
	// allocated; a heap that is larger keeps the usual pace.
	maxHeadroom = 96 << 20
	// headroomShare is the part of the machine's memory that the headroom does not exceed.
	headroomShare = 32
	// minLive keeps the percentage of a heap that is next to nothing finite, in bytes.
	minLive = 4 << 20
)

// pace returns the percentage (GOGC) by which the heap may grow until the next collection. While the process is
// busy it may always grow by headroom, however little lives: memory that is given back as soon as the burst is over
// (see shouldRelease) saves most of the collector's work. live and headroom are in bytes.
func pace(live, headroom uint64, busy bool) int {
	if !busy {
		return usualPercent
	}
	percent := headroom * 100 / max(live, minLive)
	return int(min(max(percent, usualPercent), math.MaxInt32))
}

// headroomOf is what a machine with so much memory can spare, in bytes.
func headroomOf(memory uint64) uint64 { return min(maxHeadroom, memory/headroomShare) }

// pacer tells the runtime when to collect. It is used by one goroutine.
type pacer struct {
	// collected gets a value after a collection. Values that nobody waits for are not kept.
	collected chan struct{}
	// headroom is 0 when the pace is not ours to choose, because the user did with GOGC.
	headroom uint64
	percent  int
	// last is when the last collection was seen, and what had been allocated until then.
	last      time.Time
	allocated uint64
}

// newPacer has the runtime's pace follow what is allocated, unless the user chose it.
func newPacer() *pacer {
	var info unix.Sysinfo_t
	if os.Getenv("GOGC") != "" || unix.Sysinfo(&info) != nil {
		return newPacerOf(0)
	}
	return newPacerOf(headroomOf(uint64(info.Totalram) * uint64(info.Unit)))
}

func newPacerOf(headroom uint64) *pacer {
	p := &pacer{
		collected: make(chan struct{}, 1), headroom: headroom, percent: usualPercent, last: time.Now(), allocated: readHeap().allocated,
	}
	if headroom > 0 {
		p.watch()
	}
	return p
}

// watch has the next collection announced: an object that nothing refers to is found by it.
func (p *pacer) watch() {
	type sentinel struct{ _ *int } // with a pointer, so that it shares its block with nothing that lives on
	collected := p.collected
	runtime.AddCleanup(&sentinel{}, func(c chan<- struct{}) {
		select {
		case c <- struct{}{}:
		default:
		}
	}, collected)
}

// follow chooses the pace until the next collection, by how much was allocated since the last one.
func (p *pacer) follow(at time.Time, now heapUse) {
	elapsed := at.Sub(p.last)
	busy := elapsed > 0 && float64(now.allocated-p.allocated)/elapsed.Seconds() > memoryCalm/memoryCheck.Seconds()
	p.last, p.allocated = at, now.allocated
	p.set(pace(now.live, p.headroom, busy))
	p.watch()
}

// set changes the pace, which stops the world for a moment, if it makes a difference.
func (p *pacer) set(percent int) {
	if p.headroom == 0 || !differs(p.percent, percent) {
		return
	}
	p.percent = percent
	debug.SetGCPercent(percent)
}

// differs tells whether two paces are more than an eighth apart, or one of them is the usual one.
func differs(a, b int) bool {
	if a == usualPercent || b == usualPercent {
		return a != b
	}
	return 8*max(a-b, b-a) > a
}
