package main

import (
	"context"
	"fmt"
	"io"
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
		resp, err := c.send(ctx, method, path, mediaJSON, mediaProtobuf, body, want)
		if err != nil {
			return err
		}
		data, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			return err
		}
		a, err := decode(data)
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
	return nil
}
