package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"time"

	"barque.dev/internal/network/namespace"
	"barque.dev/internal/network/source"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

const (
	// minInterval is the least time between the ends of two transactions: a lone change is
	// applied at once, a burst in one transaction per interval.
	minInterval = 20 * time.Millisecond
	// auditInterval is how often the table is compared with what it should hold, since
	// programs that reload a firewall may flush the tables of others.
	auditInterval = time.Minute
	// retryInterval is the pause after the kernel refused a transaction.
	retryInterval = time.Second
)

// hostPortsOwner owns the host ports' rules; services are owned by namespace/name.
const hostPortsOwner = "hostports"

// Config is what a Proxy needs. All fields but Namespace are required.
type Config struct {
	// Namespace is where packets are; the zero value is the process's own.
	Namespace namespace.Namespace
	// Node is this node. Its Zone is ignored: it is followed from the Node object.
	Node Node
	// Bridge is the name of the pods' bridge.
	Bridge string
	Source *source.Source
	Log    *slog.Logger
}

// Proxy keeps the kernel's table in line with the API. See the package comment.
type Proxy struct {
	cfg   Config
	table *Table

	mu        sync.Mutex
	dirty     map[types.NamespacedName]bool
	hostPorts []HostPort
	hostDirty bool
	zone      string
	wake      chan struct{} // holds one token when something is dirty

	// Owned by Run.
	node    Node
	rules   *Ruleset
	have    *State // nil when it must be read from the kernel
	flows   staleFlows
	health  *healthServers
	syncing time.Time // end of the last sync
}

// New makes a proxy. It follows the source from now on, but does nothing before Run.
func New(cfg Config) (*Proxy, error) {
	p := &Proxy{
		cfg:   cfg,
		table: NewTable(cfg.Namespace, Base{ClusterCIDR: cfg.Node.ClusterCIDR, ServiceCIDR: cfg.Node.ServiceCIDR, Bridge: cfg.Bridge}),
		dirty: map[types.NamespacedName]bool{},
		wake:  make(chan struct{}, 1),
		node:  cfg.Node,
		rules: NewRuleset(),
		flows: staleFlows{},
		health: &healthServers{ns: cfg.Namespace, log: cfg.Log,
			servers: map[string]*healthServer{}},
	}
	if err := p.follow(); err != nil {
		return nil, fmt.Errorf("follow services: %w", err)
	}
	return p, nil
}

func (p *Proxy) follow() error {
	_, err := p.cfg.Source.Services.AddEventHandler(onAny(func(obj any) {
		if svc, ok := obj.(*corev1.Service); ok {
			p.touch(types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name})
		}
	}))
	if err != nil {
		return err
	}
	_, err = p.cfg.Source.Slices.AddEventHandler(onAny(func(obj any) {
		if slice, ok := obj.(*discoveryv1.EndpointSlice); ok {
			if name, ok := source.ServiceOf(slice); ok {
				p.touch(name)
			}
		}
	}))
	if err != nil {
		return err
	}
	_, err = p.cfg.Source.Nodes.AddEventHandler(onAny(func(obj any) {
		if node, ok := obj.(*corev1.Node); ok && node.Name == p.cfg.Node.Name {
			p.setZone(node.Labels[corev1.LabelTopologyZone])
		}
	}))
	return err
}

// onAny calls f with every object that comes, changes (both versions) or goes.
func onAny(f func(obj any)) cache.ResourceEventHandler {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    f,
		UpdateFunc: func(before, after any) { f(before); f(after) },
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			f(obj)
		},
	}
}

func (p *Proxy) touch(name types.NamespacedName) {
	p.mu.Lock()
	p.dirty[name] = true
	p.mu.Unlock()
	p.signal()
}

func (p *Proxy) setZone(zone string) {
	p.mu.Lock()
	same := p.zone == zone
	p.zone = zone
	p.mu.Unlock()
	if same {
		return
	}
	for _, key := range p.cfg.Source.Services.GetIndexer().ListKeys() {
		if name, err := parseName(key); err == nil {
			p.touch(name)
		}
	}
}

// SetHostPorts replaces the host ports of the pods on this node.
func (p *Proxy) SetHostPorts(ports []HostPort) {
	p.mu.Lock()
	p.hostPorts, p.hostDirty = slices.Clone(ports), true
	p.mu.Unlock()
	p.signal()
}

func (p *Proxy) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func parseName(key string) (types.NamespacedName, error) {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	return types.NamespacedName{Namespace: namespace, Name: name}, err
}

// Run keeps the table in line until ctx ends, and leaves it as it is then: connections through
// services go on while the process is away. ready is called when the table is right for the first time.
// The source must be running.
func (p *Proxy) Run(ctx context.Context, ready func()) error {
	defer p.health.close()
	if err := p.cfg.Source.Wait(ctx); err != nil {
		return nil // ctx ended
	}
	for _, key := range p.cfg.Source.Services.GetIndexer().ListKeys() {
		if name, err := parseName(key); err == nil {
			p.touch(name)
		}
	}
	// A missing kernel feature shows here, and is not worth retrying.
	have, err := p.table.Install()
	if err != nil {
		return err
	}
	p.have = have
	synced := false
	audit := time.NewTicker(auditInterval)
	defer audit.Stop()
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-audit.C:
			p.have = nil
		case <-p.wake:
			if !pause(ctx, minInterval-time.Since(p.syncing)) {
				return nil
			}
		case <-retry.C:
		}
		err := p.sync(!synced)
		p.syncing = time.Now()
		if err != nil {
			p.cfg.Log.Error("services not applied", "error", err)
			p.have = nil
			retry.Reset(retryInterval)
			continue
		}
		if !synced {
			synced = true
			ready()
		}
	}
}

// pause waits, and says whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// sync compiles what is dirty and applies the difference: to what was touched, or, when the
// kernel's state is not known or full is set, to everything.
func (p *Proxy) sync(full bool) error {
	p.mu.Lock()
	dirty := p.dirty
	p.dirty = map[types.NamespacedName]bool{}
	hostPorts, hostDirty := p.hostPorts, p.hostDirty
	p.hostDirty = false
	p.node.Zone = p.zone
	p.mu.Unlock()

	for name := range dirty {
		p.update(name.String(), p.compile(name))
	}
	if hostDirty {
		p.update(hostPortsOwner, CompileHostPorts(p.node, hostPorts))
	}
	var errs []error
	for name := range dirty {
		if err := p.health.set(name.String(), name, p.rules.Rules(name.String()).Health); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		// A taken port is the user's to resolve; the rest works without.
		p.cfg.Log.Warn("health check node ports", "error", errors.Join(errs...))
	}

	var batch Batch
	switch {
	case p.have == nil:
		have, err := p.table.Install()
		if err != nil {
			return err
		}
		p.have = have
		batch = p.rules.Diff(have)
	case full:
		batch = p.rules.Diff(p.have)
	default:
		batch = p.rules.Changes(p.have)
	}
	if err := p.table.Apply(p.have, batch); err != nil {
		return err
	}
	p.rules.Clean()
	// Only after new connections go the new way: a flow deleted before would come back.
	if err := p.flows.forget(p.cfg.Namespace); err != nil {
		return err
	}
	p.flows = staleFlows{}
	return nil
}

func (p *Proxy) compile(name types.NamespacedName) Rules {
	slicesOf := p.cfg.Source.SlicesOf(name)
	slicesOf = slices.DeleteFunc(slicesOf, func(s *discoveryv1.EndpointSlice) bool { return s.Labels[serviceProxyName] != "" })
	return Compile(p.node, p.cfg.Source.Service(name), slicesOf)
}

// update replaces an owner's rules and notes which tracked connections that makes stale.
func (p *Proxy) update(owner string, next Rules) {
	before := p.rules.Set(owner, next)
	if reflect.DeepEqual(before.UDP, next.UDP) {
		return
	}
	for _, f := range before.UDP {
		p.flows.add(f, false)
	}
	for _, f := range next.UDP {
		p.flows.add(f, true)
	}
}
