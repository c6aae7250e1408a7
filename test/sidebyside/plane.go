package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"syscall"
	"time"

	dto "github.com/prometheus/client_model/go"

	at "barque.dev/test/plane"
	"barque.dev/test/proc"
)

// A side is one of those that are measured.
type side interface {
	name() string
	// start starts the control plane that a row wants with its data below dir, and returns when
	// every API server is ready.
	start(ctx context.Context, dir string, r row) (*plane, error)
}

// plane is a control plane that runs.
type plane struct {
	at.Programs
	urls []string // of the API servers
	tls  *tls.Config
	// restart starts it again after all processes were killed; on the same data.
	restart func(ctx context.Context) error
	// leader finds the member, from 0, whose loss is the worst: its etcd leads, and so do its
	// scheduler and controllers.
	leader func(ctx context.Context) (int, error)
	// scheduler is the URL of who schedules, which has metrics.
	scheduler string
	// cleanUps end what is not a process, the last that was added first.
	cleanUps []func() error
}

// stop ends all processes as an operator would: those that were started last first.
func (p *plane) stop() error {
	failures := []error{p.Stop()}
	for _, cleanUp := range slices.Backward(p.cleanUps) {
		failures = append(failures, cleanUp())
	}
	return errors.Join(failures...)
}

// kill ends all processes at once by SIGKILL.
func (p *plane) kill() { p.Kill(func(*at.Process) bool { return true }) }

// spent is what all processes take of the processors, user and system time, while do runs. It is an error if one of
// them ends meanwhile.
func (p *plane) spent(do func() error) (time.Duration, error) {
	before, err := proc.CPU(p.PIDs()...)
	if err != nil {
		return 0, err
	}
	if err := errors.Join(do(), p.Ended()); err != nil {
		return 0, err
	}
	after, err := proc.CPU(p.PIDs()...)
	return after - before, err
}

// awaitReady waits until every API server says that it is.
func (p *plane) awaitReady(ctx context.Context) error {
	for _, u := range p.urls {
		if err := p.AwaitReady(ctx, u, p.tls); err != nil {
			return err
		}
	}
	return nil
}

// transport makes connections of its own; control may set options of their sockets.
func (p *plane) transport(control func(network, address string, c syscall.RawConn) error) *http.Transport {
	return p.Transport(p.tls, control)
}

// metrics asks one of its programs.
func (p *plane) metrics(ctx context.Context, url string) (map[string]*dto.MetricFamily, error) {
	c := &lean{http: &http.Client{Timeout: 5 * time.Second, Transport: p.transport(nil)}, url: url}
	defer c.http.CloseIdleConnections()
	return c.metrics(ctx)
}

// holder is who holds one of the Leases of leadership.
func holder(ctx context.Context, c *lean, name string) (string, error) {
	var lease struct {
		Spec struct {
			HolderIdentity string `json:"holderIdentity"`
		} `json:"spec"`
	}
	if err := c.ask(ctx, "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/"+name, &lease); err != nil {
		return "", err
	}
	if lease.Spec.HolderIdentity == "" {
		return "", fmt.Errorf("nobody holds the lease %s", name)
	}
	return lease.Spec.HolderIdentity, nil
}
