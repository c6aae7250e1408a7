package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"barque.dev/internal/drill/probe"
	"barque.dev/internal/local"
	"barque.dev/test/report"
)

// fault is a way to lose a machine's server. strike returns when it is lost, and what is left to do
// before the cluster is healed.
type fault struct {
	name   string
	leads  bool   // the victim
	aim    string // for the gap
	strike func(context.Context, *local.Machine) (after func() error, err error)
}

func faults() []fault {
	const aim = "p50 300, worst 2000"
	return []fault{
		{"kill -9 of the leader's process", true, aim, kill},
		{"power off of the leader's machine", true, aim, powerOff},
		{"power off of a follower's machine", false, aim, powerOff},
		// Nobody sees a process that hangs: raft's own timers decide, 1 to 2 s.
		{"the leader's process freezes", true, "", freeze},
	}
}

func kill(_ context.Context, m *local.Machine) (func() error, error) {
	return func() error { return nil }, m.Kill()
}

func powerOff(ctx context.Context, m *local.Machine) (func() error, error) {
	done := make(chan error, 1)
	go func() { done <- m.PowerOff(ctx) }()
	for m.Running() {
		if err := sleep(ctx, time.Millisecond); err != nil {
			return nil, errors.Join(err, <-done)
		}
	}
	return func() error { return <-done }, nil
}

func freeze(_ context.Context, m *local.Machine) (func() error, error) {
	process, err := os.FindProcess(m.PID())
	if err != nil {
		return nil, err
	}
	return func() error { return process.Signal(syscall.SIGCONT) }, process.Signal(syscall.SIGSTOP)
}

// watchFor is how long writes go on after a fault: a second interruption would show.
const watchFor = 3 * time.Second

func measureGap(ctx context.Context, b *bench) (err error) {
	c, err := b.newCluster()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.down()) }()
	if err := c.up(ctx); err != nil {
		return err
	}
	for i := range b.times(10, 1) {
		for j, f := range faults() {
			if err := b.gapOnce(ctx, c, f, fmt.Sprintf("gap-%d-%d", i, j)); err != nil {
				return fmt.Errorf("%s, round %d: %w", f.name, i+1, err)
			}
			if err := c.up(ctx); err != nil {
				return fmt.Errorf("heal after %s, round %d: %w", f.name, i+1, err)
			}
		}
	}
	return nil
}

// leader is the machine that leads.
func (c *cluster) leader(ctx context.Context) (*local.Machine, error) {
	client, err := c.Client()
	if err != nil {
		return nil, err
	}
	lease, err := client.CoordinationV1().Leases(metav1.NamespaceSystem).Get(ctx, "kube-controller-manager", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	for _, m := range c.Machines {
		if lease.Spec.HolderIdentity != nil && *lease.Spec.HolderIdentity == m.Name && m.Running() {
			return m, nil
		}
	}
	return nil, errors.New("no machine that runs leads")
}

// settledLeader waits until some running machine leads.
func (c *cluster) settledLeader(ctx context.Context) (m *local.Machine, err error) {
	for deadline := time.Now().Add(30 * time.Second); ; {
		if m, err = c.leader(ctx); err == nil || time.Now().After(deadline) {
			return m, err
		}
		if err := sleep(ctx, 100*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func (b *bench) gapOnce(ctx context.Context, c *cluster, f fault, name string) error {
	victim, err := c.settledLeader(ctx)
	if err != nil {
		return err
	}
	if !f.leads {
		victim = c.other(victim)
	}
	config, err := c.Config()
	if err != nil {
		return err
	}
	certificates, err := rest.TLSConfigFor(config)
	if err != nil {
		return err
	}
	p := probe.New(certificates, config.Host)
	w, err := probe.NewChain(ctx, p, metav1.NamespaceDefault, name)
	if err != nil {
		return err
	}
	writing, cancel := context.WithCancel(ctx)
	defer cancel()
	writes := make(chan time.Time, 1<<16)
	broken := make(chan error, 1)
	go func() { broken <- w.KeepWriting(writing, writes) }()
	if err := sleep(ctx, time.Second); err != nil {
		return err
	}
	struck := time.Now()
	after, err := f.strike(ctx, victim)
	if err != nil {
		return err
	}
	var bound time.Duration
	if f.leads {
		// Its own prober, so that what one of them finds out does not help the other.
		if err := probe.New(certificates, config.Host).Bind(ctx, probe.Pod(metav1.NamespaceDefault, name)); err != nil {
			return errors.Join(err, after())
		}
		bound = time.Since(struck)
	}
	if err := sleep(ctx, time.Until(struck.Add(watchFor))); err != nil {
		return errors.Join(err, after())
	}
	cancel()
	if err := errors.Join(<-broken, after()); err != nil {
		return err
	}
	if err := p.Delete(ctx, metav1.NamespaceDefault, name); err != nil {
		return err
	}
	gap := probe.LongestGap(writes, struck)
	b.say("%s (%s): no write for %v, first binding after %v; %d writes", f.name, victim.Name, gap, bound, w.Written())
	b.add(report.Figure{Name: "write gap, " + f.name, Unit: "ms", Aim: f.aim,
		Includes: "longest time between two acknowledged writes, chained conditional updates through the virtual IP by a client that hedges after 40 ms and dials for 200 ms at most, in the 3 s after; stock: 1–2 s for etcd alone"}, milliseconds(gap))
	if f.leads {
		b.add(report.Figure{Name: "first binding, " + f.name, Unit: "ms",
			Includes: "from the fault to the binding of a pod that is created right after it; stock: 15–17 s"}, milliseconds(bound))
	}
	return nil
}
