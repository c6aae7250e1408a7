package registry

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	netutils "k8s.io/utils/net"

	"barque.dev/internal/store"
)

// allocatorName marks the IPAddress objects that belong to Services, as stock marks them.
const allocatorName = "ipallocator.k8s.io"

// errRangeFull tells that every address of a family is taken.
var errRangeFull = errors.New("range is full")

// clusterIPs allocates the addresses of Services from the ServiceCIDRs (KEP-1880). An address
// belongs to whoever creates the IPAddress object of its name, which makes it unique across
// servers.
type clusterIPs struct {
	registry *Registry
	ranges   []netip.Prefix // configured; the primary family first
}

func newClusterIPs(r *Registry, ranges []netip.Prefix) (*clusterIPs, error) {
	if len(ranges) == 0 {
		ranges = []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}
	}
	for _, p := range ranges {
		if !p.IsValid() || (p.Addr().Is6() && p.Bits() < 64) {
			return nil, fmt.Errorf("service CIDR %s: the shortest prefix that IPv6 allows is 64 bits", p)
		}
	}
	if len(ranges) > 2 || (len(ranges) == 2 && ranges[0].Addr().Is4() == ranges[1].Addr().Is4()) {
		return nil, fmt.Errorf("service CIDRs %v: there may be one of each family", ranges)
	}
	return &clusterIPs{registry: r, ranges: ranges}, nil
}

func familyOf(addr netip.Addr) corev1.IPFamily {
	if addr.Is4() {
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// families are those that the cluster has, the primary one first.
func (c *clusterIPs) families() []corev1.IPFamily {
	out := make([]corev1.IPFamily, len(c.ranges))
	for i, p := range c.ranges {
		out[i] = familyOf(p.Addr())
	}
	return out
}

// prefixes are the ranges of a family that addresses may come from now: the configured one, and
// those of the ServiceCIDRs that are ready and stay.
func (c *clusterIPs) prefixes(family corev1.IPFamily) []netip.Prefix {
	var out []netip.Prefix
	add := func(p netip.Prefix) {
		if familyOf(p.Addr()) == family && !slices.Contains(out, p.Masked()) {
			out = append(out, p.Masked())
		}
	}
	for _, p := range c.ranges {
		add(p)
	}
	table := c.registry.Table(networkingv1.Resource("servicecidrs"))
	if table == nil {
		return out
	}
	table.Snapshot().Ascend("", store.Key{}, func(entry *store.Entry) bool {
		obj, err := entry.Object()
		if err != nil {
			return true
		}
		cidr, ok := obj.(*networkingv1.ServiceCIDR)
		if !ok || !cidr.DeletionTimestamp.IsZero() || !meta.IsStatusConditionTrue(cidr.Status.Conditions, networkingv1.ServiceCIDRConditionReady) {
			return true
		}
		for _, s := range cidr.Spec.CIDRs {
			if p, err := netip.ParsePrefix(s); err == nil {
				add(p)
			}
		}
		return true
	})
	return out
}

// allocate takes an address of a family for a service: wanted, or any when it is "".
func (c *clusterIPs) allocate(ctx context.Context, service *corev1.Service, family corev1.IPFamily, wanted string, dryRun bool) (string, error) {
	if wanted != "" {
		return c.allocateExact(ctx, service, family, wanted, dryRun)
	}
	prefixes := c.prefixes(family)
	if dryRun && len(prefixes) > 0 {
		return prefixes[0].Addr().String(), nil
	}
	for _, prefix := range prefixes {
		ip, err := c.allocateFrom(ctx, service, prefix)
		if err == nil {
			return ip.String(), nil
		}
		if !errors.Is(err, errRangeFull) {
			return "", statusError(err, networkingv1.Resource("ipaddresses"), "", "create")
		}
	}
	return "", apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP for Service %q: %w", service.Name, errRangeFull))
}

func (c *clusterIPs) allocateExact(ctx context.Context, service *corev1.Service, family corev1.IPFamily, wanted string, dryRun bool) (string, error) {
	path := field.NewPath("spec", "clusterIPs")
	refuse := func(why string) error {
		return invalidService(service, field.Invalid(path, service.Spec.ClusterIPs, fmt.Sprintf("failed to allocate IP %v: %s", wanted, why)))
	}
	parsed := netutils.ParseIPSloppy(wanted)
	addr, ok := netip.AddrFromSlice(parsed)
	if addr = addr.Unmap(); !ok || familyOf(addr) != family {
		return "", refuse("it is not an address of family " + string(family))
	}
	prefixes := c.prefixes(family)
	fits := slices.ContainsFunc(prefixes, func(p netip.Prefix) bool {
		first, last := usable(p)
		return first.Compare(addr) <= 0 && addr.Compare(last) <= 0
	})
	if !fits {
		return "", refuse(fmt.Sprintf("the provided IP is not in the valid range. The range of valid IPs is %v", prefixes))
	}
	if dryRun {
		return wanted, nil
	}
	err := c.claim(ctx, service, addr)
	if apierrors.IsAlreadyExists(err) {
		return "", refuse("provided IP is already allocated")
	}
	if err != nil {
		return "", err
	}
	return wanted, nil
}

// allocateFrom takes a random free address: one behind the static part of the range, else one
// in it.
func (c *clusterIPs) allocateFrom(ctx context.Context, service *corev1.Service, prefix netip.Prefix) (netip.Addr, error) {
	first, last := usable(prefix)
	size := distance(first, last) + 1
	static := uint64(staticAddresses(prefix, size))
	for _, part := range [][2]uint64{{static, size - static}, {0, static}} {
		from, n := part[0], part[1]
		if n == 0 {
			continue
		}
		start := rand.Uint64N(n)
		for i := range n {
			addr := advance(first, from+(start+i)%n)
			if _, taken := c.table().Get(store.Key{Name: addr.String()}); taken {
				continue
			}
			err := c.claim(ctx, service, addr)
			if apierrors.IsAlreadyExists(err) {
				continue
			}
			return addr, err
		}
	}
	return netip.Addr{}, errRangeFull
}

func (c *clusterIPs) table() *store.Table {
	return c.registry.Table(networkingv1.Resource("ipaddresses"))
}

func (c *clusterIPs) request(name string) (Request, error) {
	res, ok := c.registry.Lookup(networkingv1.SchemeGroupVersion.WithResource("ipaddresses"))
	if !ok {
		return Request{}, apierrors.NewInternalError(errors.New("ipaddresses are not served"))
	}
	return Request{Resource: res, Name: name}, nil
}

// claim creates the address's object, which makes it the service's.
func (c *clusterIPs) claim(ctx context.Context, service *corev1.Service, addr netip.Addr) error {
	req, err := c.request(addr.String())
	if err != nil {
		return err
	}
	address := &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{
			Name: addr.String(),
			Labels: map[string]string{
				networkingv1.LabelIPAddressFamily: string(familyOf(addr)),
				networkingv1.LabelManagedBy:       allocatorName,
			},
		},
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{
			Resource: "services", Namespace: service.Namespace, Name: service.Name,
		}},
	}
	_, err = c.registry.Create(ctx, req, address, nil)
	if apierrors.IsInvalid(err) { // it is the service that is wrong, such as one without a name
		return invalidService(service, field.Invalid(field.NewPath("spec", "clusterIPs"), service.Spec.ClusterIPs, fmt.Sprintf("failed to allocate IP %v: %v", addr, err)))
	}
	return err
}

// release gives an address back.
func (c *clusterIPs) release(ctx context.Context, ip string) error {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return fmt.Errorf("release cluster IP %q: %w", ip, err)
	}
	req, err := c.request(addr.String())
	if err != nil {
		return err
	}
	if _, _, err = c.registry.Delete(ctx, req, &metav1.DeleteOptions{}); apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// usable returns the first and last address of a range that may belong to a service: not the
// network's own address, and not IPv4's broadcast address.
func usable(prefix netip.Prefix) (first, last netip.Addr) {
	prefix = prefix.Masked()
	bytes := prefix.Addr().AsSlice()
	for bit := prefix.Bits(); bit < len(bytes)*8; bit++ {
		bytes[bit/8] |= 1 << (7 - bit%8)
	}
	last, _ = netip.AddrFromSlice(bytes)
	if last.Is4() {
		last = last.Prev()
	}
	return prefix.Addr().Next(), last
}

// staticAddresses is how many addresses at the start of a range are left to those who ask for
// certain ones (KEP-3070).
func staticAddresses(prefix netip.Prefix, size uint64) int {
	const least, most, step = 16, 256, 16
	if size <= least {
		return 0
	}
	if prefix.Addr().Is6() && size > 1<<16 {
		return most
	}
	return int(max(least, min(most, size/step))) //nolint:gosec // at most 256
}

// distance is how far b lies behind a, as far as 64 bits tell.
func distance(a, b netip.Addr) uint64 {
	d := new(big.Int).Sub(new(big.Int).SetBytes(b.AsSlice()), new(big.Int).SetBytes(a.AsSlice()))
	if !d.IsUint64() || d.Uint64() > 1<<62 {
		return 1 << 62
	}
	return d.Uint64()
}

// advance is the address n behind a.
func advance(a netip.Addr, n uint64) netip.Addr {
	sum := new(big.Int).Add(new(big.Int).SetBytes(a.AsSlice()), new(big.Int).SetUint64(n))
	out := make([]byte, len(a.AsSlice()))
	addr, _ := netip.AddrFromSlice(sum.FillBytes(out))
	return addr
}
