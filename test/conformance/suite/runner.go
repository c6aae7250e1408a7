package suite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/onsi/ginkgo/v2/types"

	"barque.dev/test/conformance/programs"
)

// Runner runs specs against one cluster.
type Runner struct {
	// Programs is the folder of the programs.
	Programs string
	// Dir takes reports, logs and results.
	Dir        string
	Kubeconfig string
	// Procs is how many specs run side by side; those that are serial run alone after them.
	Procs int
	// Commit is the product's.
	Commit string
	// Diagnose makes failed specs tell the events and the state of the cluster, which takes
	// them up to minutes longer.
	Diagnose bool
	// Unmade are the images that could not be made.
	Unmade []string
	// Progress receives a line for each step; never nil.
	Progress func(string, ...any)
}

const (
	// batchSize bounds what a run that is killed loses. The end of a batch waits for its slowest
	// spec, so that small batches take long.
	batchSize = 120
	// batchTimeout bounds a batch in which everything hangs.
	batchTimeout = 3 * time.Hour
	// patience is how long specs may clean up after an interrupt.
	patience = 2 * time.Minute
)

// Run runs specs, area by area, and saves the results after each batch. It ends early when ctx
// does; what has ended by then is kept.
func (r Runner) Run(ctx context.Context, specs []Spec, results Results) error {
	all := batches(specs, batchSize)
	for i, batch := range all {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.Progress("batch %d of %d:", i+1, len(all))
		if err := r.together(ctx, Area(batch[0].Name), batch, results); err != nil {
			return err
		}
	}
	return nil
}

// RunTogether runs a few specs of several areas in one batch.
func (r Runner) RunTogether(ctx context.Context, specs []Spec, results Results) error {
	return r.together(ctx, "mixed", specs, results)
}

// together runs one batch and saves its results.
func (r Runner) together(ctx context.Context, label string, batch []Spec, results Results) error {
	name := fmt.Sprintf(reportPrefix+"%s-%s", time.Now().UTC().Format("20060102-150405"), label)
	r.Progress("%s: %d specs, log %s", label, len(batch), filepath.Join(r.Dir, name+".log"))
	failed := r.batch(ctx, name, batch)
	report, err := readReport(filepath.Join(r.Dir, name+".json"))
	if err != nil {
		return errors.Join(failed, err)
	}
	results.add(report, r.Commit, r.Unmade)
	if err := results.Save(r.Dir); err != nil {
		return err
	}
	if done := r.summary(batch, results); done == 0 && ctx.Err() == nil {
		return fmt.Errorf("none of %d specs ran: %w: %s", len(batch), cmp.Or(failed, errors.New("no reason given")), whyNone(report))
	}
	return nil
}

// summary prints what came of a batch, and returns how many of its specs have a result.
func (r Runner) summary(batch []Spec, results Results) int {
	count := map[State]int{}
	for _, s := range batch {
		result, ok := results.Specs[s.Name]
		if !ok {
			continue
		}
		count[result.State]++
		if result.State == Failed {
			r.Progress("  FAILED %s: %s", s.Name, result.Error)
		}
	}
	r.Progress("  %d passed, %d failed, %d declined", count[Passed], count[Failed], count[NotRun])
	return count[Passed] + count[Failed] + count[NotRun]
}

// whyNone is why the suite as a whole failed.
func whyNone(report types.Report) string {
	reasons := report.SpecialSuiteFailureReasons
	for _, s := range report.SpecReports {
		if !s.LeafNodeType.Is(types.NodeTypeIt) && s.Failed() {
			reasons = append(reasons, firstLine(s.Failure.Message))
		}
	}
	return strings.Join(reasons, "; ")
}

// batch runs specs in one go. Its error says that some failed, which the report says better.
func (r Runner) batch(ctx context.Context, name string, specs []Spec) error {
	log, err := os.Create(filepath.Join(r.Dir, name+".log"))
	if err != nil {
		return fmt.Errorf("make a log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.CommandContext(ctx, filepath.Join(r.Programs, programs.Ginkgo), "run",
		"--procs="+strconv.Itoa(min(r.Procs, len(specs))), "--no-color", "--v", "--silence-skips", "--keep-going",
		"--timeout="+batchTimeout.String(), "--focus="+pattern(specs),
		"--output-dir="+r.Dir, "--json-report="+name+".json",
		filepath.Join(r.Programs, programs.E2E), "--")
	cmd.Args = append(cmd.Args, r.flags()...)
	cmd.Stdout, cmd.Stderr = log, log
	interruptible(cmd)
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("ginkgo: %w (see %s)", err, log.Name())
	}
	return nil
}

// One runs one spec, or those that match a pattern, one after another, and shows their output. That none matches is an
// error.
func (r Runner) One(ctx context.Context, focus string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(r.Programs, programs.E2E), "--ginkgo.focus="+focus, "--ginkgo.v", "--ginkgo.silence-skips", "--ginkgo.fail-on-empty")
	cmd.Args = append(cmd.Args, r.flags()...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	interruptible(cmd)
	return cmd.Run()
}

// Exactly is the pattern that One takes for a spec's whole name.
func Exactly(s Spec) string { return pattern([]Spec{s}) }

// flags are e2e.test's own. Nothing in them changes what a spec asks for.
func (r Runner) flags() []string {
	return []string{
		"--kubeconfig=" + r.Kubeconfig, "--kubectl-path=" + filepath.Join(r.Programs, programs.Kubectl),
		"--provider=skeleton", "--disable-log-dump", "--dump-logs-on-failure=" + strconv.FormatBool(r.Diagnose),
	}
}

// interruptible lets specs clean up when the context ends, and keeps a terminal's interrupt, which
// ends the context, from reaching them twice: a second one cuts cleaning up short. ginkgo does not
// pass a signal on to the processes that run specs.
func interruptible(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = patience
}
