// Package local runs a whole cluster on this machine: `barque up`.
//
// Each "machine" of the cluster is a network namespace with an address of its own on a private
// bridge, a data directory of its own, a control group of its own, and a `barque server` (or
// `barque agent`) process in it: the same program, started the same way, as on real machines.
// A virtual IP on the bridge fronts the servers.
//
// What exists is written down in DIR/cluster.yaml before it is made, and every name is derived
// from the directory, so that [Down] finds every trace, also after a crash half-way, and [Up]
// can be run again: it brings back what is missing and leaves alone what runs.
package local

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// DefaultDir is where a local cluster lives unless the user says otherwise. It is short
// because unix sockets below it may be at most 107 bytes long.
const DefaultDir = "/var/lib/barque"

// Options are what the user can choose about a local cluster.
type Options struct {
	// Dir holds everything of the cluster. Only root may read it.
	Dir string
	// Servers is the number of masters, 1 to 9; an odd number tolerates most failures.
	Servers int
	// Agents is the number of machines that only run pods, 0 to 90.
	Agents int
	// Program is the barque binary that the machines run.
	Program string
	// ServerFlags are appended to every server's command line.
	ServerFlags []string
	// DiskSize gives each server a disk of its own, a file of so many bytes of which only those are taken that were
	// written; 0 has all keep their data on the disk of Dir. See [CheckDisks].
	DiskSize int64
	// Progress receives one line for each step; never nil.
	Progress func(format string, args ...any)
	// Log is for details; never nil.
	Log *slog.Logger
}

func (o Options) validate() error {
	switch {
	case o.Servers < 1 || o.Servers > 9:
		return fmt.Errorf("--servers %d: choose 1 to 9 (3 survive the loss of one, 5 of two)", o.Servers)
	case o.Agents < 0 || o.Agents > 90:
		return fmt.Errorf("--agents %d: choose 0 to 90", o.Agents)
	case os.Geteuid() != 0:
		return fmt.Errorf("a local cluster needs root, for network namespaces and containers: run it with sudo")
	}
	return nil
}

// Up brings the cluster up, or heals it: when it returns, every machine runs, and every server
// answers /readyz. It waits no longer than ctx.
func Up(ctx context.Context, o Options) (*Cluster, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	if err := checkKernel(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("directory %s: %w", o.Dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("--dir %s can't be made: %w; choose another", dir, err)
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()

	c, err := Load(dir)
	fresh := errors.Is(err, os.ErrNotExist)
	if fresh {
		if err = ours(dir); err != nil {
			_ = os.Remove(filepath.Join(dir, lockFile))
			return nil, err
		}
		c, err = plan(dir, o.Servers, o.Agents)
	}
	if err != nil {
		return nil, err
	}
	if err := c.grow(o.Servers, o.Agents); err != nil {
		return nil, err
	}
	if err := c.save(); err != nil {
		return nil, err
	}
	err = c.connect()
	if err == nil {
		err = c.attachDisks(ctx, o.DiskSize)
	}
	if err == nil {
		err = c.startAll(ctx, o)
	}
	switch {
	case err == nil:
		return c, nil
	case fresh && !c.founded():
		return nil, c.undo(ctx, err)
	default:
		return c, fmt.Errorf("%w (logs are in %s); what runs stays: `barque up` goes on from here, `barque down` removes it all", err, dir)
	}
}

// undoTimeout bounds the removal of a cluster that did not come to be.
const undoTimeout = 30 * time.Second

// undo removes a cluster whose first server did not start, which therefore holds nothing.
func (c *Cluster) undo(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	err := c.removeKernelObjects(ctx)
	if err == nil {
		err = removeFiles(c.Dir)
	}
	if err != nil {
		return fmt.Errorf("%w; what was made so far could not be removed: %w; `barque down --dir %s` tries again", cause, err, c.Dir)
	}
	return fmt.Errorf("%w; what was made so far was removed again", cause)
}

// startAll starts the machines that do not run: a founding server first, then the others by
// joining it, all at once.
func (c *Cluster) startAll(ctx context.Context, o Options) error {
	started := time.Now()
	rest := slices.DeleteFunc(slices.Clone(c.Machines), func(m *Machine) bool {
		if m.Left() {
			o.Progress("%s has left the cluster: remove %s to have it join again", m.Name, m.DataDir())
		}
		return m.Left()
	})
	if !c.founded() {
		first := c.Machines[0]
		o.Progress("starting %s (%s), the first master", first.Name, first.IP)
		if err := c.start(ctx, o, first, ""); err != nil {
			return err
		}
		if err := c.waitReady(ctx, first); err != nil {
			return err
		}
		o.Progress("%s is ready (%.1f s)", first.Name, time.Since(started).Seconds())
		rest = rest[1:]
	} else if err := c.reviveMembers(ctx, o); err != nil {
		return err
	}
	return c.joinRest(ctx, o, rest, started)
}

// reviveMembers restarts the servers that were members before: without a quorum of them
// nobody can join.
func (c *Cluster) reviveMembers(ctx context.Context, o Options) error {
	for _, m := range c.Machines {
		if m.Role == RoleServer && m.joined() && !m.Left() && !m.Running() {
			o.Progress("restarting %s (%s)", m.Name, m.IP)
			if err := c.start(ctx, o, m, ""); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Cluster) joinRest(ctx context.Context, o Options, rest []*Machine, started time.Time) (err error) {
	token := ""
	defer func() {
		if token == "" {
			return
		}
		if rerr := c.revokeToken(ctx, token); rerr != nil {
			o.Log.Warn("a token is left behind", "error", rerr)
		}
	}()
	for _, m := range rest {
		if m.Running() {
			continue
		}
		if token == "" {
			c.awaitMember(ctx)
			if token, err = c.createToken(ctx); err != nil {
				return err
			}
		}
		o.Progress("starting %s (%s), joining", m.Name, m.IP)
		if err := c.start(ctx, o, m, token); err != nil {
			return err
		}
	}
	for _, m := range rest {
		if m.Role != RoleServer {
			if err := c.waitJoined(ctx, m); err != nil {
				return err
			}
			continue
		}
		if err := c.waitReady(ctx, m); err != nil {
			return err
		}
		o.Progress("%s is ready (%.1f s)", m.Name, time.Since(started).Seconds())
	}
	return c.writeKubeconfig()
}

// VIPURL is where clients outside reach the API, whichever servers are alive.
func (c *Cluster) VIPURL() string {
	return "https://" + netip.AddrPortFrom(c.VIP, apiPort).String()
}
