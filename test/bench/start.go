package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"barque.dev/internal/local"
	"barque.dev/test/report"
)

// cluster is a local cluster under measurement.
type cluster struct {
	*local.Cluster
	dir     string
	program string
}

func (b *bench) newCluster() (*cluster, error) {
	dir, err := tempDir()
	if err != nil {
		return nil, err
	}
	return &cluster{dir: dir, program: b.program}, nil
}

func quiet(string, ...any) {}

// up brings three masters up, or heals them, and waits until all nodes are Ready.
func (c *cluster) up(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	lc, err := local.Up(ctx, local.Options{
		Dir: c.dir, Servers: 3, Program: c.program, Progress: quiet, Log: slog.New(slog.DiscardHandler),
	})
	if lc != nil {
		c.Cluster = lc
	}
	if err != nil {
		return err
	}
	return lc.WaitNodes(ctx, quiet)
}

// down removes it, also when ctx of the measurement has ended.
func (c *cluster) down() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return local.Down(ctx, c.dir, quiet)
}

func measureUp(ctx context.Context, b *bench) error {
	for range b.times(5, 1) {
		if err := upOnce(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

func upOnce(ctx context.Context, b *bench) (err error) {
	c, err := b.newCluster()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.down()) }()
	started := time.Now()
	if err := c.up(ctx); err != nil {
		return err
	}
	ready := time.Since(started)
	if _, err := c.DeploySample(ctx, quiet); err != nil {
		return err
	}
	answers := time.Since(started)
	b.say("nodes Ready after %v, the sample answers after %v", ready, answers)
	b.add(report.Figure{Name: "until three nodes are Ready", Unit: "s", Aim: "10",
		Includes: "everything from an empty directory: keys, etcd, two joins, containerd and its start on three machines"}, ready.Seconds())
	b.add(report.Figure{Name: "until the sample answers", Unit: "s", Aim: "15",
		Includes: "the above, the import of its images on three machines, Deployment to first answer at the virtual IP"}, answers.Seconds())
	return nil
}

func measureStart(ctx context.Context, b *bench) error {
	for range b.times(10, 2) {
		if err := startOnce(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

func startOnce(ctx context.Context, b *bench) error {
	parent, err := tempDir()
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(parent) }()
	dir := filepath.Join(parent, "server")
	s, fresh, err := b.startServer(ctx, dir)
	if err != nil {
		return err
	}
	s.stop()
	s, again, err := b.startServer(ctx, dir)
	if err != nil {
		return err
	}
	s.stop()
	b.say("fresh %v, restart %v", fresh, again)
	b.add(report.Figure{Name: "fresh start to /readyz", Unit: "ms", Aim: "1000",
		Includes: "process start, keys and certificates, etcd, API server, stock roles; `barque server --disable agent`"}, milliseconds(fresh))
	b.add(report.Figure{Name: "restart to /readyz", Unit: "ms", Aim: "1000",
		Includes: "process start on the data of a stopped server; stock's API server alone took 2,900 beside a running etcd"}, milliseconds(again))
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
