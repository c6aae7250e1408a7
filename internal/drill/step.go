package drill

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/drill/fault"
	"barque.dev/internal/drill/report"
)

const (
	// calmBefore is how long the cluster is left alone before each fault, to know what the machine does
	// by itself.
	calmBefore = time.Second
	// wellTimeout bounds how long the cluster takes to get well once a fault is healed.
	wellTimeout = 3 * time.Minute
	askAgain    = 20 * time.Millisecond
)

// step lets one fault strike, heals it, and waits until all is well.
func (d *drill) step(ctx context.Context) error {
	s := d.plan.Next()
	bounded, cancel := context.WithTimeout(ctx, wellTimeout)
	defer cancel()
	roles, err := d.roles(bounded)
	if err != nil {
		return err
	}
	f, err := s.Kind.On(roles, s.Follower)
	if err != nil {
		return err
	}
	r := report.Strike{Kind: s.Kind.Name, Title: s.Kind.Title, Hit: f.Hit(), Round: d.rounds + 1}
	d.begin(calm)
	if err := sleep(ctx, calmBefore); err != nil {
		return err
	}
	r.At = d.since()
	d.begin(struck)
	err = f.Strike(bounded)
	if err == nil {
		err = sleep(ctx, s.Hold)
	}
	r.Heal = d.since()
	d.begin(healing)
	if err = errors.Join(err, d.heal(ctx, f)); err != nil {
		return fmt.Errorf("%s of %s: %w", s.Kind.Name, strings.Join(r.Hit, ", "), err)
	}
	r.Well = d.since()
	r.Writes, r.Reads = d.writes.gap(), d.reads.gap()
	d.strikes = append(d.strikes, r)
	d.Progress("%-16s %-28s no write for %4d ms, no read for %4d ms; healing: %4d, %4d", s.Kind.Name, strings.Join(r.Hit, " "),
		r.Writes.Struck.Milliseconds(), r.Reads.Struck.Milliseconds(), r.Writes.Healing.Milliseconds(), r.Reads.Healing.Milliseconds())
	return nil
}

func (d *drill) begin(p phase) {
	d.writes.begin(p)
	d.reads.begin(p)
}

// heal takes a fault away and waits until the cluster is well: every server is ready, somebody leads, and writes
// and reads at the virtual IP go on.
func (d *drill) heal(ctx context.Context, f fault.Fault) error {
	if ctx.Err() != nil {
		return ctx.Err() // the cluster is taken away with all that was done to it
	}
	ctx, cancel := context.WithTimeout(ctx, wellTimeout)
	defer cancel()
	if err := f.Heal(ctx); err != nil {
		return err
	}
	if err := eventually(ctx, func() error { return d.cluster.ServersReady(ctx) }); err != nil {
		return fmt.Errorf("not well within %v: %w", wellTimeout, err)
	}
	if _, err := d.roles(ctx); err != nil {
		return err
	}
	if d.Workloads { // a machine that is new has no images
		if err := eventually(ctx, func() error { return d.cluster.ImportSample(ctx) }); err != nil {
			return err
		}
	}
	if err := errors.Join(d.writes.await(ctx), d.reads.await(ctx)); err != nil {
		return fmt.Errorf("writes or reads at the virtual IP do not go on: %w", err)
	}
	return nil
}

// roles finds out who leads, by the lease that the leader publishes.
func (d *drill) roles(ctx context.Context) (fault.Cluster, error) {
	client, err := d.client(time.Second)
	if err != nil {
		return fault.Cluster{}, err
	}
	roles := d.means()
	err = eventually(ctx, func() error {
		lease, err := client.CoordinationV1().Leases(metav1.NamespaceSystem).Get(ctx, "kube-controller-manager", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if lease.Spec.HolderIdentity == nil {
			return errors.New("nobody leads")
		}
		roles.Leader, roles.Followers = nil, nil
		for _, m := range d.servers() {
			if m.Name == *lease.Spec.HolderIdentity {
				roles.Leader = fault.Of(m)
			} else {
				roles.Followers = append(roles.Followers, fault.Of(m))
			}
		}
		if roles.Leader == nil {
			return fmt.Errorf("%s leads, which is no server", *lease.Spec.HolderIdentity)
		}
		return nil
	})
	return roles, err
}

// eventually asks until check returns nil, or ctx ends.
func eventually(ctx context.Context, check func() error) error {
	for {
		err := check()
		if err == nil {
			return nil
		}
		if serr := sleep(ctx, askAgain); serr != nil {
			return errors.Join(serr, err)
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
