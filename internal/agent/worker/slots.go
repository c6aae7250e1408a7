package worker

import (
	"context"
	"runtime"
)

// slots bounds how many calls of a kind are under way at once. A runtime that is asked for a hundred
// sandboxes at a time makes none of them sooner: its processes wait for the same locks of the kernel
// (mounts, network namespaces), and everybody else on the machine with them.
type slots chan struct{}

// newSlots has room for what keeps this machine busy.
func newSlots() slots { return make(slots, 2*runtime.NumCPU()+8) }

// take waits for a slot; release gives it back. It returns ctx's error if that ends first.
func (s slots) take(ctx context.Context) (release func(), err error) {
	select {
	case s <- struct{}{}:
		return func() { <-s }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
