package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"barque.dev/internal/store"
)

// fate is what became of a write.
type fate int

const (
	refused fate = iota // it was not kept, and never will be
	wasKept
	unknown // the store did not say: it may be kept yet
)

// fateOf tells what an error of the store means for a write.
func fateOf(err error) fate {
	switch {
	case err == nil:
		return wasKept
	case raced(err), errors.Is(err, store.ErrExists), errors.Is(err, store.ErrFenced), errors.Is(err, store.ErrOvertaken),
		errors.Is(err, store.ErrRejected), errors.Is(err, store.ErrLeaseNotFound),
		errors.Is(err, store.ErrUnavailable) && !errors.Is(err, store.ErrUncertain):
		return refused
	default:
		return unknown
	}
}

// A finisher ends what begin began: what a write that was kept no longer needs is released, and
// so is what was allocated for a write that was refused. When nobody knows, nothing is released:
// an address too few in the pool does less harm than one that two services have.
type finisher func(ctx context.Context, what fate)

// begin allocates what an object needs before it can be kept: cluster IPs and node ports of
// Services. obj is of the storage version and is completed in place; old is nil for a creation.
func (r *Registry) begin(ctx context.Context, req Request, obj, old runtime.Object, dryRun bool) (finisher, error) {
	service, ok := obj.(*corev1.Service)
	if !ok || req.Subresource != "" {
		return func(context.Context, fate) {}, nil
	}
	before, _ := old.(*corev1.Service)
	completeAddresses(service, before)
	if before != nil {
		keepAllocated(service, before)
	}
	if err := r.ips.completeFamilies(service, before); err != nil {
		return nil, err
	}
	a := &allocation{registry: r, ctx: asServer(ctx), service: service, before: before, dryRun: dryRun}
	if err := a.addresses(); err != nil {
		a.finish(context.WithoutCancel(a.ctx), refused)
		return nil, err
	}
	if err := a.nodePorts(); err != nil {
		a.finish(context.WithoutCancel(a.ctx), refused)
		return nil, err
	}
	return func(ctx context.Context, what fate) { a.finish(asServer(ctx), what) }, nil
}

// release gives back what was allocated for an object that is gone.
func (r *Registry) release(ctx context.Context, _ Request, entry *store.Entry) {
	obj, err := entry.Object()
	if err != nil {
		return
	}
	service, ok := obj.(*corev1.Service)
	if !ok {
		return
	}
	a := &allocation{registry: r, ctx: asServer(ctx), service: service}
	a.freeIPs = allocatedIPs(service)
	a.freePorts = portsOf(service)
	a.finish(a.ctx, wasKept)
}

// allocation is what one write of a Service takes and gives back.
type allocation struct {
	registry *Registry
	ctx      context.Context
	service  *corev1.Service
	before   *corev1.Service // nil for a creation
	dryRun   bool

	tookIPs   []string
	tookPorts []int32
	freeIPs   []string
	freePorts []int32
}

func (a *allocation) finish(ctx context.Context, what fate) {
	if a.dryRun || what == unknown {
		return
	}
	ips, ports := a.tookIPs, a.tookPorts
	if what == wasKept {
		ips, ports = a.freeIPs, a.freePorts
	}
	log := a.registry.log.With("namespace", a.service.Namespace, "service", a.service.Name)
	for _, ip := range ips {
		if err := a.registry.ips.release(ctx, ip); err != nil {
			log.Warn("could not release a cluster IP", "ip", ip, "error", err)
		}
	}
	if len(ports) > 0 {
		if err := a.registry.ports.release(ctx, ports); err != nil {
			log.Warn("could not release node ports", "ports", ports, "error", err)
		}
	}
}

// addresses takes the cluster IPs that the service lacks and notes those that it gives up.
func (a *allocation) addresses() error {
	service, before := a.service, a.before
	if before != nil && !headless(before) && hasClusterIP(before) {
		held := allocatedIPs(before)
		if !hasClusterIP(service) {
			a.freeIPs = held
			return nil
		}
		keep := min(len(service.Spec.IPFamilies), len(held))
		a.freeIPs = held[keep:]
		if len(service.Spec.ClusterIPs) > len(service.Spec.IPFamilies) {
			service.Spec.ClusterIPs = service.Spec.ClusterIPs[:len(service.Spec.IPFamilies)]
		}
		return a.takeIPs(keep)
	}
	if before != nil && headless(before) && hasClusterIP(before) {
		return nil // a headless service stays so: validation sees to that
	}
	if !hasClusterIP(service) || headless(service) {
		return nil
	}
	return a.takeIPs(0)
}

// takeIPs allocates a cluster IP for each family from the given one on.
func (a *allocation) takeIPs(from int) error {
	spec := &a.service.Spec
	for i := from; i < len(spec.IPFamilies); i++ {
		wanted := ""
		if i < len(spec.ClusterIPs) {
			wanted = spec.ClusterIPs[i]
		}
		ip, err := a.registry.ips.allocate(a.ctx, a.service, spec.IPFamilies[i], wanted, a.dryRun)
		if err != nil {
			return err
		}
		if !a.dryRun {
			a.tookIPs = append(a.tookIPs, ip)
		}
		if i < len(spec.ClusterIPs) {
			spec.ClusterIPs[i] = ip
		} else {
			spec.ClusterIPs = append(spec.ClusterIPs, ip)
		}
		if i == 0 {
			spec.ClusterIP = ip
		}
	}
	return nil
}

// nodePorts takes the node ports that the service lacks and notes those that it gives up.
func (a *allocation) nodePorts() error {
	held := map[int32]bool{}
	if a.before != nil {
		for _, p := range portsOf(a.before) {
			held[p] = true
		}
	}
	if len(a.service.Spec.Ports) > protocols*a.registry.ports.ports.Size && needsNodePorts(a.service) {
		return (&portPlan{}).failure(a.service, errPortsFull)
	}
	want, err := planNodePorts(a.service, held)
	if err != nil {
		return err
	}
	took, err := a.registry.ports.take(a.ctx, want, a.dryRun)
	if err != nil {
		return want.failure(a.service, err)
	}
	if !a.dryRun {
		a.tookPorts = took
	}
	want.assign(a.service, took)
	if needsNodePorts(a.service) || a.before == nil {
		for _, p := range portsOf(a.service) {
			delete(held, p)
		}
	}
	a.freePorts = slices.Sorted(maps.Keys(held))
	return nil
}

// hasClusterIP tells whether a service of that type has an address of its own.
func hasClusterIP(service *corev1.Service) bool {
	return service.Spec.Type != corev1.ServiceTypeExternalName
}

func headless(service *corev1.Service) bool {
	return service.Spec.ClusterIP == corev1.ClusterIPNone ||
		(len(service.Spec.ClusterIPs) > 0 && service.Spec.ClusterIPs[0] == corev1.ClusterIPNone)
}

// allocatedIPs are the addresses that belong to a service.
func allocatedIPs(service *corev1.Service) []string {
	if !hasClusterIP(service) || headless(service) {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(service.Spec.ClusterIPs), func(ip string) bool { return ip == "" })
}

// completeAddresses makes clusterIP and clusterIPs agree for clients that know only the first.
func completeAddresses(service, before *corev1.Service) {
	spec := &service.Spec
	if before == nil {
		if spec.ClusterIP != "" && len(spec.ClusterIPs) == 0 {
			spec.ClusterIPs = []string{spec.ClusterIP}
		}
		return
	}
	old := before.Spec
	if len(old.ClusterIPs) > 0 && len(spec.ClusterIPs) == 0 && old.ClusterIP == spec.ClusterIP {
		spec.ClusterIPs = slices.Clone(old.ClusterIPs)
	}
	if old.ClusterIP == spec.ClusterIP || !slices.Equal(old.ClusterIPs, spec.ClusterIPs) {
		return
	}
	if old.ClusterIP != "" && spec.ClusterIP == "" {
		spec.ClusterIPs = nil
	} else {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
}

// keepAllocated lets a client send its manifest again without the values that were allocated.
func keepAllocated(service, before *corev1.Service) {
	spec, old := &service.Spec, before.Spec
	if hasClusterIP(service) && hasClusterIP(before) {
		if spec.ClusterIP == "" {
			spec.ClusterIP = old.ClusterIP
		}
		if len(spec.ClusterIPs) == 0 {
			spec.ClusterIPs = slices.Clone(old.ClusterIPs)
		}
	}
	if needsNodePorts(service) && needsNodePorts(before) {
		keepNodePorts(spec.Ports, old.Ports)
	}
	if needsHealthPort(service) && needsHealthPort(before) && spec.HealthCheckNodePort == 0 {
		spec.HealthCheckNodePort = old.HealthCheckNodePort
	}
}

func keepNodePorts(ports, old []corev1.ServicePort) {
	byName, given, shared := map[string]int32{}, map[int32]bool{}, map[int32]bool{}
	for _, p := range ports {
		given[p.NodePort] = p.NodePort != 0
	}
	for _, p := range old {
		byName[p.Name] = p.NodePort
		shared[p.NodePort] = given[p.NodePort]
	}
	for i := range ports {
		if ports[i].NodePort == 0 && !shared[byName[ports[i].Name]] {
			ports[i].NodePort = byName[ports[i].Name]
		}
	}
}

// needsNodePorts tells whether node ports are allocated for a service.
func needsNodePorts(service *corev1.Service) bool {
	switch service.Spec.Type {
	case corev1.ServiceTypeNodePort:
		return true
	case corev1.ServiceTypeLoadBalancer:
		return service.Spec.AllocateLoadBalancerNodePorts == nil || *service.Spec.AllocateLoadBalancerNodePorts
	default:
		return false
	}
}

// needsHealthPort tells whether load balancers ask nodes about a service's local endpoints.
func needsHealthPort(service *corev1.Service) bool {
	return service.Spec.Type == corev1.ServiceTypeLoadBalancer &&
		service.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// portsOf are the node ports that belong to a service.
func portsOf(service *corev1.Service) []int32 {
	var out []int32
	for _, p := range service.Spec.Ports {
		if p.NodePort != 0 && !slices.Contains(out, p.NodePort) {
			out = append(out, p.NodePort)
		}
	}
	if p := service.Spec.HealthCheckNodePort; p != 0 && needsHealthPort(service) && !slices.Contains(out, p) {
		out = append(out, p)
	}
	return out
}

func invalidService(service *corev1.Service, errs ...*field.Error) error {
	return apierrors.NewInvalid(kindOf("", "Service"), service.Name, errs)
}

// portPlan is what a service needs of node ports: some given ones, and some that are free.
type portPlan struct {
	exact []int32
	// free holds the places that get free ports: indexes of ports, or -1 for the health check.
	free []int
	// same maps a place that gets no port of its own to the place whose port it shares.
	same map[int]int
}

const healthPlace = -1

// protocols is how many ports of a service can share a node port: one of each protocol. What has more ports than that for
// each node port there is need not be looked at, which would take the square of their number.
const protocols = 3

// givenPort is a node port that a service names, for one protocol.
type givenPort struct {
	port     int32
	protocol corev1.Protocol
}

// planNodePorts decides which node ports a service takes beyond those that it holds. Ports of one
// number and different protocols share a node port.
func planNodePorts(service *corev1.Service, held map[int32]bool) (*portPlan, error) {
	plan := &portPlan{same: map[int]int{}}
	wanted := maps.Clone(held)
	take := func(port int32) {
		if !wanted[port] {
			wanted[port] = true
			plan.exact = append(plan.exact, port)
		}
	}
	typed := service.Spec.Type == corev1.ServiceTypeNodePort || service.Spec.Type == corev1.ServiceTypeLoadBalancer
	ports, given := service.Spec.Ports, map[givenPort]bool{}
	for i := range ports {
		if !typed {
			break
		}
		p := &ports[i]
		switch g := (givenPort{p.NodePort, p.Protocol}); {
		case p.NodePort != 0 && given[g]:
			return nil, invalidService(service, field.Duplicate(field.NewPath("spec", "ports").Index(i).Child("nodePort"), p.NodePort))
		case p.NodePort != 0:
			given[g] = true
			take(p.NodePort)
		case needsNodePorts(service):
			plan.findPlace(ports, i)
		}
	}
	if needsHealthPort(service) {
		if service.Spec.HealthCheckNodePort != 0 {
			take(service.Spec.HealthCheckNodePort)
		} else {
			plan.free = append(plan.free, healthPlace)
		}
	}
	return plan, nil
}

// findPlace lets port i share the node port of another port of its number, or get one of its own.
func (p *portPlan) findPlace(ports []corev1.ServicePort, i int) {
	for j := range ports {
		if j == i || ports[j].Port != ports[i].Port || ports[j].Protocol == ports[i].Protocol {
			continue
		}
		if ports[j].NodePort != 0 || j < i {
			p.same[i] = j
			return
		}
	}
	p.free = append(p.free, i)
}

// assign fills in the ports that were taken: first the exact ones, then the free ones.
func (p *portPlan) assign(service *corev1.Service, took []int32) {
	for n, place := range p.free {
		port := took[len(p.exact)+n]
		if place == healthPlace {
			service.Spec.HealthCheckNodePort = port
		} else {
			service.Spec.Ports[place].NodePort = port
		}
	}
	for _, i := range slices.Sorted(maps.Keys(p.same)) {
		service.Spec.Ports[i].NodePort = service.Spec.Ports[p.same[i]].NodePort
	}
}

// failure is the error for a port that could not be taken.
func (p *portPlan) failure(service *corev1.Service, err error) error {
	taken, ok := err.(*portError) //nolint:errorlint // take returns it unwrapped
	if !ok {
		if full := errPortsFull; err == full { //nolint:errorlint // as above
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate a nodePort: %w", err))
		}
		return err
	}
	path := field.NewPath("spec", "healthCheckNodePort")
	for i := range service.Spec.Ports {
		if service.Spec.Ports[i].NodePort == taken.port {
			path = field.NewPath("spec", "ports").Index(i).Child("nodePort")
			break
		}
	}
	return invalidService(service, field.Invalid(path, taken.port, taken.reason))
}
