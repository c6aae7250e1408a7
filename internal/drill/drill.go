// Package drill shows by doing that a cluster survives the loss of its servers: `barque drill`.
//
// It starts a local cluster of its own and goes through rounds. In each, clients write, read, list and watch
// objects through the virtual IP and through every server (package load), while faults strike one after the other
// in an order that follows from a seed (package fault). After each fault the cluster is healed, and well again before
// the next. At the end of a round the clients stop, and everything that they did and saw (package history) is
// judged (package check). So the memory that a drill takes is bounded by a round, however long it lasts.
//
// Beside the clients, a careful prober (package probe) writes to and reads from the virtual IP all the time: the
// longest times without an acknowledgement, by kind of fault, are the report's table (package report).
package drill

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"barque.dev/internal/drill/check"
	"barque.dev/internal/drill/fault"
	"barque.dev/internal/drill/report"
	"barque.dev/internal/local"
)

// DefaultDir is where the drill's cluster lives. It is short because unix sockets below it may be at most
// 107 bytes long.
const DefaultDir = "/var/lib/barque-drill"

// Options are what the user can choose.
type Options struct {
	// Seed says which faults strike, in which order, for how long.
	Seed uint64
	// Duration is for how long new faults strike; each kind strikes at least once.
	Duration time.Duration
	// Faults are names of kinds; all for none.
	Faults []string
	// Servers is 3 to 9.
	Servers int
	// Workloads has controllers and nodes work, too, and judges what they do.
	Workloads bool
	// Report is the directory that the report is written to.
	Report string
	// Dir holds the drill's cluster while it lasts.
	Dir string
	// Program is the barque binary that the machines run, Version its version.
	Program, Version string
	// Progress receives a line for each step; never nil.
	Progress func(format string, args ...any)
	Log      *slog.Logger
}

// command repeats the drill.
func (o *Options) command() string {
	text := fmt.Sprintf("barque drill --seed %d --duration %v", o.Seed, o.Duration)
	if len(o.Faults) > 0 {
		text += " --faults " + strings.Join(o.Faults, ",")
	}
	if o.Servers != 3 {
		text += fmt.Sprintf(" --servers %d", o.Servers)
	}
	if o.Workloads {
		text += " --workloads"
	}
	return text
}

// ErrViolated: a rule did not hold.
var ErrViolated = errors.New("the drill found violations")

// downTimeout bounds the removal of the drill's cluster.
const downTimeout = time.Minute

// Run drills until the time is over, a rule is violated, or ctx ends; then it takes its cluster away and writes the
// report of what there was until then.
func Run(ctx context.Context, o Options) (err error) {
	kinds, err := o.choose()
	if err != nil {
		return err
	}
	if o.Servers < 3 || o.Servers > 9 {
		return fmt.Errorf("--servers %d: choose 3 to 9, since fewer do not survive the loss of any", o.Servers)
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return fmt.Errorf("--dir %s: %w", o.Dir, err)
	}
	release, err := reserve(o.Dir)
	if err != nil {
		return err
	}
	defer release()
	if err := report.Prepare(o.Report); err != nil {
		return fmt.Errorf("--report: %w", err)
	}
	d := &drill{Options: o, began: time.Now(), plan: fault.NewPlan(o.Seed, kinds), kinds: kinds, series: report.NewSeries(), writes: newGauge(), reads: newGauge()}
	defer func() {
		down, cancel := context.WithTimeout(context.WithoutCancel(ctx), downTimeout)
		defer cancel()
		if derr := local.Down(down, o.Dir, func(string, ...any) {}); derr != nil {
			err = errors.Join(err, fmt.Errorf("take the drill's cluster away: %w", derr))
		}
		err = errors.Join(err, os.RemoveAll(d.programs()))
	}()
	if err := d.placeProgram(); err != nil {
		return err
	}
	err = d.run(ctx)
	if ctx.Err() != nil {
		err = fmt.Errorf("the drill was interrupted: %d rounds were judged, what came after them was not", d.rounds)
	}
	return errors.Join(err, d.report(err))
}

// choose returns the kinds that strike. All includes none that this machine cannot do, since there are others; one that was
// named must be possible. The faults that are left then stand in o, and so in the command that repeats the drill.
func (o *Options) choose() ([]fault.Kind, error) {
	kinds, err := fault.Choose(o.Faults)
	if err != nil {
		return nil, fmt.Errorf("--faults: %w", err)
	}
	var can []fault.Kind
	var names []string
	for _, k := range kinds {
		switch err := k.Can(); {
		case err == nil:
			can, names = append(can, k), append(names, k.Name)
		case len(o.Faults) > 0:
			return nil, fmt.Errorf("--faults: this machine cannot do %w", err)
		default:
			o.Progress("left out, since this machine cannot do it: %v", err)
		}
	}
	if len(can) < len(kinds) {
		o.Faults = names
	}
	return can, nil
}

// reserve makes sure that no cluster but the drill's own lives in the directory: the drill kills its servers,
// and takes it away in the end.
func reserve(dir string) (release func(), err error) {
	// The name of an abstract socket lasts as long as its process, however that ends.
	l, err := net.Listen("unix", "@barque-drill:"+dir)
	if err != nil {
		return nil, fmt.Errorf("another drill runs in %s: wait for it to end, or choose another --dir", dir)
	}
	_, err = local.Load(dir)
	if !errors.Is(err, os.ErrNotExist) {
		_ = l.Close()
		return nil, fmt.Errorf("there is a cluster in %s already, which the drill will not touch: choose another --dir, or remove that cluster with `barque down --dir %s`", dir, dir)
	}
	return func() { _ = l.Close() }, nil
}

// drill is one run.
type drill struct {
	Options
	began   time.Time
	plan    *fault.Plan
	kinds   []fault.Kind
	cluster *local.Cluster

	series        *report.Series
	writes, reads *gauge
	strikes       []report.Strike
	rounds        int
	verdict       check.Verdict
	upgrades      int
}

// since is the time since the drill began to measure.
func (d *drill) since() time.Duration { return time.Since(d.began) }

// up starts what does not run of the cluster.
func (d *drill) up(ctx context.Context, progress func(string, ...any)) (*local.Cluster, error) {
	o := local.Options{Dir: d.Dir, Servers: d.Servers, Program: d.machineProgram(), Progress: progress, Log: d.Log}
	if fault.NeedDisks(d.kinds) {
		o.DiskSize = diskSize
	}
	return local.Up(ctx, o)
}

// diskSize is what a server's disk holds, where it has one of its own: some logs of etcd's of 64 MB each, and as much again. Only
// what is written is taken.
const diskSize = 4 << 30

// startTimeout bounds the cluster's first start.
const startTimeout = 5 * time.Minute

func (d *drill) run(ctx context.Context) error {
	starting, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var err error
	if d.cluster, err = d.up(starting, d.Progress); err != nil {
		return err
	}
	if err := d.cluster.WaitNodes(starting, d.Progress); err != nil {
		return err
	}
	if d.Workloads {
		if err := d.cluster.ImportSample(starting); err != nil {
			return err
		}
	}
	d.began, d.series = time.Now(), report.NewSeries()
	return d.probing(ctx, func(ctx context.Context) error {
		for last := false; !last; {
			if last, err = d.round(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

// over tells that no further fault is to strike.
func (d *drill) over() bool { return d.since() >= d.Duration && len(d.strikes) >= len(d.kinds) }

// report writes what was found. Violations are an error.
func (d *drill) report(cause error) error {
	if d.cluster == nil {
		return nil // nothing was done
	}
	r := &report.Report{
		Command: d.command(), Seed: d.Seed, Servers: d.Servers, Began: d.began, Took: d.since(), Cores: runtime.NumCPU(), Version: d.Version,
		Rounds: d.rounds, Verdict: d.verdict, Strikes: d.strikes, Series: d.series,
	}
	if cause != nil {
		r.Failure = cause.Error()
	}
	var err error
	if len(d.verdict.Violations) > 0 {
		err = fmt.Errorf("%w: %d, such as %s; repeat it with `%s`", ErrViolated, len(d.verdict.Violations), d.verdict.Violations[0], d.command())
	}
	if cause != nil || err != nil {
		err = errors.Join(err, d.keepLogs())
	}
	if werr := r.Write(d.Report); werr != nil {
		return errors.Join(err, werr)
	}
	d.Progress("%s", strings.TrimSpace(r.Table()))
	d.Progress("the report is %s", filepath.Join(d.Report, "drill.md"))
	return err
}

// keepLogs copies the machines' logs into the report, since they go with the cluster.
func (d *drill) keepLogs() error {
	var errs []error
	for _, m := range d.cluster.Machines {
		data, err := os.ReadFile(m.LogFile())
		if err == nil {
			err = os.WriteFile(filepath.Join(d.Report, filepath.Base(m.LogFile())), data, 0o600)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("keep the log of %s: %w", m.Name, err))
		}
	}
	return errors.Join(errs...)
}
