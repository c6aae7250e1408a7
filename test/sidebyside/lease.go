package main

import (
	"context"
	"fmt"
	"net/http"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
)

// nodes is how many have a lease.
const nodes = 100

// measureLeases renews leases as nodes do: by an update of the version that the last answer gave.
func measureLeases(ctx context.Context, r *run) error {
	l := newLoader(r.plane, connections)
	defer l.close()
	// Workers that run side by side have different nodes, since there are more of these.
	versions := make([]string, nodes)
	send := func(c *lean, method, path string, i, want int) error {
		lease := newLease(i, time.Now())
		lease.ResourceVersion = versions[i]
		body, err := encode(lease, coordinationv1.SchemeGroupVersion)
		if err != nil {
			return err
		}
		a, err := c.acknowledge(ctx, method, path, body, want)
		versions[i] = a.Metadata.ResourceVersion
		return err
	}
	if _, err := l.each(16, nodes, func(c *lean, i int) error {
		return send(c, http.MethodPost, leasesPath, i, http.StatusCreated)
	}); err != nil {
		return err
	}
	for _, writers := range []int{1, 16} {
		n := r.scale(100 + 150*writers)
		p := phase{fmt.Sprintf("lease renewals, %d at once", writers), "updates of the version known", writers, n, true}
		err := r.phase(p, func() ([]time.Duration, error) {
			return l.each(writers, n, func(c *lean, i int) error {
				return send(c, http.MethodPut, fmt.Sprintf("%s/node-%d", leasesPath, i%nodes), i%nodes, http.StatusOK)
			})
		})
		if err != nil {
			return err
		}
	}
	return expectLeases(ctx, l.clients[0], versions)
}

// expectLeases checks that every lease is as its last renewal was acknowledged.
func expectLeases(ctx context.Context, c *lean, versions []string) error {
	for i, want := range versions {
		var a acknowledged
		if err := c.ask(ctx, fmt.Sprintf("%s/node-%d", leasesPath, i), &a); err != nil {
			return err
		}
		if got := a.Metadata.ResourceVersion; got != want {
			return fmt.Errorf("lease node-%d is at revision %s, want %s, which was acknowledged last", i, got, want)
		}
	}
	return nil
}
