package node

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"barque.dev/internal/run"
)

const (
	// memoryCheck is how often the process looks at its memory.
	memoryCheck = 5 * time.Second
	// memorySlack is how much it may hold beyond what lives before it gives back, in bytes.
	memorySlack = 24 << 20
	// memoryCalm is how much may be allocated between two looks by a process that counts as
	// idle, in bytes: a collection costs less than what it has to do anyway.
	memoryCalm = 16 << 20
)

// heapUse is the Go heap at one moment, in bytes.
type heapUse struct {
	allocated uint64 // since the start
	live      uint64 // what the last collection found reachable
	held      uint64 // objects and free memory that the kernel has not got back
}

// shouldRelease tells whether memory goes back to the kernel now: a burst is over (little is
// allocated), and much more is held than lives. The runtime by itself would collect two minutes
// after the last collection, and keep a tenth more than its next goal.
func shouldRelease(before, now heapUse) bool {
	return now.allocated-before.allocated < memoryCalm && now.held > now.live+memorySlack
}

// releaseMemory gives memory that a burst used back to the kernel, so that a server weighs what
// its state weighs. It collects at most once a burst: what is held afterwards is what lives.
func releaseMemory(ctx context.Context) error {
	before := readHeap()
	for {
		if !run.Pause(ctx, memoryCheck) {
			return nil
		}
		now := readHeap()
		if shouldRelease(before, now) {
			debug.FreeOSMemory()
			now = readHeap()
		}
		before = now
	}
}

func readHeap() heapUse {
	samples := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(samples)
	value := func(i int) uint64 {
		if samples[i].Value.Kind() != metrics.KindUint64 {
			return 0
		}
		return samples[i].Value.Uint64()
	}
	return heapUse{allocated: value(0), live: value(1), held: value(2) + value(3) + value(4)}
}
