package registry

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"barque.dev/internal/store"
)

const (
	// abandonedAfter is how long a cluster IP or node port has to be seen without its Service before it is given back:
	// several times as long as a request may take, which may be about to write the Service.
	abandonedAfter = 5 * time.Minute
	// settledAfter is how long no node port may have been taken or given back before one is reclaimed. A bit does not tell
	// that it was cleared and set again since it was first seen without a Service; the revision of all of them does.
	settledAfter = 2 * time.Minute
)

// abandoned remembers since when allocations have been seen that no Service has. It is of one server, as its clock is.
type abandoned struct {
	mu    sync.Mutex
	seen  [3]int64 // the last changes of services, addresses and ports that were looked at
	ips   map[types.UID]time.Time
	ports map[int32]time.Time
	// The revision of the node ports, and since when it has been that.
	bits    int64
	settled time.Time
}

// holding is what there is of allocations, and of Services that have them, at one time.
type holding struct {
	addresses []*networkingv1.IPAddress // that belong to Services' allocation
	bits      *store.Entry              // of the node ports; nil if there never were any
	taken     *big.Int
	ips       map[string]bool // that Services have
	ports     map[int32]bool
}

// Reclaim gives back cluster IPs and node ports that no Service has had for a while: a server that is killed, or that
// cannot reach etcd any more, between taking them and writing the Service cannot do so itself, nor one that is killed after
// the Service has gone. It is to be called now and then, by every server; now is the caller's time.
func (r *Registry) Reclaim(ctx context.Context, now time.Time) error {
	ctx = asServer(ctx)
	a := &r.abandoned
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.ips)+len(a.ports) == 0 && r.allocationChanges() == a.seen {
		return nil
	}
	if err := r.CatchUp(ctx); err != nil {
		return fmt.Errorf("reclaim the addresses of services: %w", err)
	}
	seen := r.allocationChanges()
	h, err := r.holding()
	if err != nil {
		return fmt.Errorf("reclaim the addresses of services: %w", err)
	}
	a.seen = seen
	ips, ports := a.due(h, r.ports.portsIn(h.taken), now)
	var failures []error
	var given []string
	for _, address := range ips {
		if err := r.reclaimIP(ctx, address); err != nil {
			failures = append(failures, fmt.Errorf("give back cluster IP %s: %w", address.Name, err))
			continue
		}
		given = append(given, address.Name)
	}
	if len(given) > 0 {
		r.log.Info("cluster IPs that no service has were given back", "ips", given)
	}
	if len(ports) > 0 {
		if err := r.ports.reclaim(ctx, h.bits, ports); err != nil {
			failures = append(failures, fmt.Errorf("give back node ports %v: %w", ports, err))
		} else {
			r.log.Info("node ports that no service has were given back", "ports", ports)
		}
	}
	return errors.Join(failures...)
}

// allocationChanges tells by three revisions whether anything about Services and what they have has changed.
func (r *Registry) allocationChanges() (out [3]int64) {
	for i, t := range []*store.Table{r.Table(corev1.Resource("services")), r.ips.table(), r.ports.table} {
		out[i], _ = t.Changed()
	}
	return out
}

// holding looks at allocations first, and then at Services: of what was taken before a Service was written, either both are
// seen or the Service alone. A Service that cannot be read has nobody knows what.
func (r *Registry) holding() (*holding, error) {
	h := &holding{taken: new(big.Int), ips: map[string]bool{}, ports: map[int32]bool{}}
	err := eachObject(r.ips.table(), func(address *networkingv1.IPAddress) {
		if address.Labels[networkingv1.LabelManagedBy] == allocatorName {
			h.addresses = append(h.addresses, address)
		}
	})
	if err != nil {
		return nil, err
	}
	if h.bits, _ = r.ports.table.Get(r.ports.key()); h.bits != nil {
		allocation, err := rangeOf(h.bits)
		if err != nil {
			return nil, err
		}
		if allocation.Range == r.ports.ports.String() {
			h.taken.SetBytes(allocation.Data)
		}
	}
	return h, eachObject(r.Table(corev1.Resource("services")), func(service *corev1.Service) {
		for _, ip := range append([]string{service.Spec.ClusterIP}, service.Spec.ClusterIPs...) {
			if addr, err := netip.ParseAddr(ip); err == nil {
				h.ips[addr.String()] = true
			}
		}
		for _, p := range service.Spec.Ports {
			h.ports[p.NodePort] = true
		}
		h.ports[service.Spec.HealthCheckNodePort] = true
	})
}

// eachObject shows every object of a table, and fails if one cannot be read.
func eachObject[T any](t *store.Table, show func(T)) (err error) {
	t.Snapshot().Ascend("", store.Key{}, func(e *store.Entry) bool {
		obj, bad := e.Object()
		if bad != nil {
			err = fmt.Errorf("read %s/%s: %w", e.Key().Namespace, e.Key().Name, bad)
			return false
		}
		of, ok := obj.(T)
		if !ok {
			err = fmt.Errorf("read %s/%s: it is a %T", e.Key().Namespace, e.Key().Name, obj)
			return false
		}
		show(of)
		return true
	})
	return err
}

// due notes what no Service has, forgets what is no longer so, and returns what has been so for long enough.
func (a *abandoned) due(h *holding, taken []int32, now time.Time) (ips []*networkingv1.IPAddress, ports []int32) {
	was := a.ips
	a.ips = map[types.UID]time.Time{}
	for _, address := range h.addresses {
		if h.ips[address.Name] {
			continue
		}
		since := noted(was, address.UID, now)
		a.ips[address.UID] = since
		if now.Sub(since) >= abandonedAfter {
			ips = append(ips, address)
		}
	}
	if h.bits != nil && h.bits.Revision() != a.bits {
		a.bits, a.settled = h.bits.Revision(), now
	}
	wasPorts := a.ports
	a.ports = map[int32]time.Time{}
	for _, port := range taken {
		if h.ports[port] {
			continue
		}
		since := noted(wasPorts, port, now)
		a.ports[port] = since
		if now.Sub(since) >= abandonedAfter && now.Sub(a.settled) >= settledAfter {
			ports = append(ports, port)
		}
	}
	return ips, ports
}

// noted is since when something has been seen; now, if it is the first time.
func noted[K comparable](since map[K]time.Time, what K, now time.Time) time.Time {
	if t, ok := since[what]; ok {
		return t
	}
	return now
}

// reclaimIP removes an address as it was looked at. Another server may have been quicker.
func (r *Registry) reclaimIP(ctx context.Context, address *networkingv1.IPAddress) error {
	req, err := r.ips.request(address.Name)
	if err != nil {
		return err
	}
	_, _, err = r.Delete(ctx, req, &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &address.UID, ResourceVersion: &address.ResourceVersion}})
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return err
}

// portsIn are the ports whose bits are set.
func (n *nodePorts) portsIn(bits *big.Int) []int32 {
	var out []int32
	for offset := range min(bits.BitLen(), n.ports.Size) {
		if bits.Bit(offset) == 1 {
			out = append(out, int32(n.ports.Base+offset)) //nolint:gosec // within a range of ports
		}
	}
	return out
}

// reclaim clears the bits of ports, unless anything has been taken or given back since they were looked at: then it is for
// the next look to say whether they are still nobody's.
func (n *nodePorts) reclaim(ctx context.Context, seen *store.Entry, ports []int32) error {
	allocation, err := rangeOf(seen)
	if err != nil {
		return err
	}
	allocation = allocation.DeepCopy()
	bits := new(big.Int).SetBytes(allocation.Data)
	for _, port := range ports {
		bits.SetBit(bits, int(port)-n.ports.Base, 0)
	}
	allocation.Data = bits.Bytes()
	value, err := n.res.Codec().Encode(allocation)
	if err != nil {
		return err
	}
	if _, err = n.table.Update(ctx, n.key(), value, seen.Revision(), store.WriteOptions{}); raced(err) {
		return nil
	}
	return err
}
