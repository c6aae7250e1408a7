package registry

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"barque.dev/internal/api"
	"barque.dev/internal/store"
)

// nodePorts allocates node ports, uniquely across servers: a bitmap that all servers and stock
// API servers share, at /registry/ranges/servicenodeports, changed by compare-and-swap.
type nodePorts struct {
	ports utilnet.PortRange
	res   *api.Resource
	table *store.Table
	turns *turns // of this server's changes, which would overtake each other
}

// errPortsFull tells that every node port is taken.
var errPortsFull = errors.New("range is full")

// portError tells why a certain port could not be taken.
type portError struct {
	port   int32
	reason string
}

func (e *portError) Error() string { return fmt.Sprintf("node port %d: %s", e.port, e.reason) }

func newNodePorts(ports utilnet.PortRange, res *api.Resource, table *store.Table) *nodePorts {
	if ports.Size == 0 {
		ports = utilnet.PortRange{Base: 30000, Size: 2768}
	}
	return &nodePorts{ports: ports, res: res, table: table, turns: newTurns()}
}

func (n *nodePorts) key() store.Key { return store.Key{Name: "servicenodeports"} }

// take allocates the plan's exact ports and as many free ones as it has places for. It returns
// them in that order. A dry run looks, and invents the free ones.
func (n *nodePorts) take(ctx context.Context, plan *portPlan, dryRun bool) ([]int32, error) {
	if len(plan.exact) == 0 && len(plan.free) == 0 {
		return nil, nil
	}
	var took []int32
	err := n.update(ctx, dryRun, func(bits *big.Int) error {
		took = took[:0]
		for _, port := range plan.exact {
			if !n.ports.Contains(int(port)) {
				return &portError{port, fmt.Sprintf("provided port is not in the valid range. The range of valid ports is %s", n.ports.String())}
			}
			offset := int(port) - n.ports.Base
			if bits.Bit(offset) == 1 {
				return &portError{port, "provided port is already allocated"}
			}
			bits.SetBit(bits, offset, 1)
			took = append(took, port)
		}
		for range plan.free {
			offset, ok := freeBit(bits, n.ports.Size, staticPart(n.ports.Size))
			if !ok {
				return errPortsFull
			}
			bits.SetBit(bits, offset, 1)
			took = append(took, int32(n.ports.Base+offset)) //nolint:gosec // within a range of ports
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return took, nil
}

// releaseLimit is how long it is tried to give ports back, for which a request waits that is done otherwise. What cannot be
// given back meanwhile is reclaimed.
const releaseLimit = 10 * time.Second

// release gives ports back. Ports outside the range are passed over: it may have been another.
func (n *nodePorts) release(ctx context.Context, ports []int32) error {
	ctx, cancel := context.WithTimeout(ctx, releaseLimit)
	defer cancel()
	return n.update(ctx, false, func(bits *big.Int) error {
		for _, port := range ports {
			if n.ports.Contains(int(port)) {
				bits.SetBit(bits, int(port)-n.ports.Base, 0)
			}
		}
		return nil
	})
}

// update changes the bitmap by compare-and-swap.
func (n *nodePorts) update(ctx context.Context, dryRun bool, change func(bits *big.Int) error) error {
	gr := n.res.GroupResource
	if !dryRun {
		done, err := n.turns.take(ctx, "the node ports")
		if err != nil {
			return statusError(err, gr, n.key().Name, "update")
		}
		defer done()
	}
	for {
		entry, ok := n.table.Get(n.key())
		allocation := &corev1.RangeAllocation{}
		if ok {
			kept, err := rangeOf(entry)
			if err != nil {
				return statusError(err, gr, n.key().Name, "read")
			}
			allocation = kept.DeepCopy()
		}
		allocation.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("RangeAllocation"))
		if allocation.Range == "" {
			allocation.Range = n.ports.String()
		}
		if allocation.Range != n.ports.String() {
			return apierrors.NewInternalError(fmt.Errorf(
				"the node port range is %s, but ports were allocated from %s: they cannot differ", n.ports.String(), allocation.Range))
		}
		bits := new(big.Int).SetBytes(allocation.Data)
		if err := change(bits); err != nil || dryRun {
			return err
		}
		allocation.Data = bits.Bytes()
		value, err := n.res.Codec().Encode(allocation)
		if err != nil {
			return apierrors.NewInternalError(err)
		}
		if ok {
			_, err = n.table.Update(ctx, n.key(), value, entry.Revision(), store.WriteOptions{})
		} else {
			_, err = n.table.Create(ctx, n.key(), value, store.WriteOptions{})
		}
		switch {
		case err == nil:
			return nil
		case !raced(err) && !errors.Is(err, store.ErrExists):
			return statusError(err, gr, n.key().Name, "update")
		}
	}
}

// rangeOf is the bitmap as it is kept, which is shared.
func rangeOf(entry *store.Entry) (*corev1.RangeAllocation, error) {
	obj, err := entry.Object()
	if err != nil {
		return nil, err
	}
	allocation, ok := obj.(*corev1.RangeAllocation)
	if !ok {
		return nil, fmt.Errorf("the node ports that are taken are kept as a %T", obj)
	}
	return allocation, nil
}

// staticPart is how many values at the start of a range are left to those who ask for certain
// ones, as long as there are others (KEP-3668, KEP-3070).
func staticPart(size int) int {
	const least, most, step = 16, 128, 32
	if size <= least {
		return 0
	}
	return max(least, min(most, size/step))
}

// freeBit finds a clear bit below size: a random one behind the static part, else one in it.
func freeBit(bits *big.Int, size, static int) (int, bool) {
	search := func(from, n int) (int, bool) {
		if n <= 0 {
			return 0, false
		}
		start := rand.IntN(n)
		for i := range n {
			if at := from + (start+i)%n; bits.Bit(at) == 0 {
				return at, true
			}
		}
		return 0, false
	}
	if at, ok := search(static, size-static); ok {
		return at, true
	}
	return search(0, static)
}
