package node

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
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
	held      uint64 // objects and whole spans of free memory that the kernel has not got back
}

// shouldRelease tells whether memory goes back to the kernel now: a burst is over (little is
// allocated), and much more is held than lives. The runtime by itself would collect two minutes
// after the last collection, and keep a tenth more than its next goal.
func shouldRelease(before, now heapUse) bool {
	return calm(before, now) && now.held > now.live+memorySlack
}

// calm tells whether so little was allocated between two looks that the process counts as idle.
func calm(before, now heapUse) bool { return now.allocated-before.allocated < memoryCalm }

// releaseMemory gives memory that a burst used back to the kernel, so that a server weighs what
// its state weighs. It collects at most once a burst: what is held afterwards is what lives.
// While a burst lasts it has the runtime collect less often; see pace.
func releaseMemory(ctx context.Context) error { return releaseMemoryAt(ctx, newPacer(), memoryCheck) }

func releaseMemoryAt(ctx context.Context, p *pacer, every time.Duration) error {
	defer p.set(usualPercent)
	look := time.NewTicker(every)
	defer look.Stop()
	before := readHeap()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.collected:
			p.follow(time.Now(), readHeap())
		case <-look.C:
			now := readHeap()
			if calm(before, now) {
				p.set(usualPercent)
			}
			if shouldRelease(before, now) {
				debug.FreeOSMemory()
				now = readHeap()
			}
			before = now
		}
	}
}

// readHeap leaves out what is free between objects that live: no collection gives that back.
func readHeap() heapUse {
	samples := []metrics.Sample{
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/gc/heap/live:bytes"},
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
	}
	metrics.Read(samples)
	value := func(i int) uint64 {
		if samples[i].Value.Kind() != metrics.KindUint64 {
			return 0
		}
		return samples[i].Value.Uint64()
	}
	return heapUse{allocated: value(0), live: value(1), held: value(2) + value(3)}
}
