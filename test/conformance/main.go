// Command conformance runs upstream's conformance specs against Barque:
//
//	conformance run    all, or those that -focus and -skip choose; writes results, JUnit and docs/conformance.md
//	conformance one    one spec, by its name or a pattern, against the cluster that is up
//	conformance smoke  a few specs of every area, in minutes
//	conformance page   docs/conformance.md from results so far, which may be in several folders
//	conformance down   takes away the cluster that `one`, or `run -keep`, left up
//
// It needs root, bin/barque (`make build`) and Debian's apt. It has a module of
// its own, since it builds upstream's tests, and is started in the module's folder: see `make conformance`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"barque.dev/test/conformance/programs"
	"barque.dev/test/conformance/suite"
	"barque.dev/test/conformance/testimages"
)

// page is where the last full run is recorded, from the repository's root.
const page = "docs/conformance.md"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
}

// command is what the user asked for.
type command struct {
	root, cache, results      string
	focus, skip, resume, spec string
	keep, diagnose            bool
	procs                     int
	cluster                   cluster
	progress                  func(string, ...any)
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("say what to do: run, one, smoke, page or down")
	}
	c, err := parse(args)
	if err != nil {
		return err
	}
	switch args[0] {
	case "run":
		return c.run(ctx)
	case "one":
		return c.one(ctx)
	case "smoke":
		return c.smoke(ctx)
	case "page":
		return c.page(ctx)
	case "down":
		return c.cluster.down(ctx)
	}
	return fmt.Errorf("there is no command %q: run, one, smoke, page or down", args[0])
}

func parse(args []string) (*command, error) {
	c := &command{}
	// The smoke takes its cluster away at its end: never the one that somebody looks into.
	results, dir := "run", "/var/lib/barque-conf"
	if args[0] == "smoke" {
		results, dir = "smoke", "/var/lib/barque-smoke"
	}
	flags := flag.NewFlagSet("conformance "+args[0], flag.ContinueOnError)
	flags.StringVar(&c.root, "root", "../..", "the repository's `directory`")
	flags.StringVar(&c.cluster.program, "program", os.Getenv("BARQUE_PROGRAM"), "the `binary` to test; bin/barque by default")
	flags.StringVar(&c.cluster.dir, "dir", dir, "`directory` of the cluster")
	flags.IntVar(&c.cluster.servers, "servers", 3, "`number` of servers, all of which run pods")
	flags.IntVar(&c.procs, "procs", 4, "`number` of specs side by side")
	flags.StringVar(&c.focus, "focus", "", "run only specs that match this `regex`")
	flags.StringVar(&c.skip, "skip", "", "leave out specs that match this `regex`")
	flags.StringVar(&c.resume, "resume", "", "what to do with earlier results: go on after them (`all`), or only after those that passed (passed)")
	flags.StringVar(&c.results, "results", results, "`folder` below .cache/conformance for results; page takes several, with commas between")
	flags.StringVar(&c.spec, "spec", "", "the `name` of a spec, or a regex")
	flags.BoolVar(&c.diagnose, "diagnose", true, "let failed specs tell the events and the state of the cluster")
	flags.BoolVar(&c.keep, "keep", false, "leave the cluster up")
	if err := flags.Parse(args[1:]); err != nil {
		return nil, err
	}
	switch {
	case os.Geteuid() != 0:
		return nil, errors.New("it needs root, for network namespaces and containers")
	case !slices.Contains([]string{"", "all", "passed"}, c.resume):
		return nil, fmt.Errorf("-resume %s: choose all or passed", c.resume)
	case args[0] == "one" && c.spec == "":
		return nil, errors.New("name a spec, such as SPEC='Probing container should be restarted with'")
	}
	if c.cluster.program == "" {
		c.cluster.program = filepath.Join(c.root, "bin", "barque")
	}
	start := time.Now()
	c.progress = func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%6.0fs  %s\n", time.Since(start).Seconds(), fmt.Sprintf(format, args...))
	}
	return c, c.absolute()
}

// absolute makes paths good for processes that run elsewhere.
func (c *command) absolute() error {
	var err error
	for _, path := range []*string{&c.root, &c.cluster.program} {
		if *path, err = filepath.Abs(*path); err != nil {
			return fmt.Errorf("path %s: %w", *path, err)
		}
	}
	c.cache = filepath.Join(c.root, ".cache", "conformance")
	if _, err := os.Stat(c.cluster.program); err != nil {
		return fmt.Errorf("%w: run `make build` first", err)
	}
	return nil
}

// prepare builds programs and images, and brings a cluster up that has them: the images named by
// their short names, or all that upstream knows.
func (c *command) prepare(ctx context.Context, only ...string) (suite.Runner, []suite.Spec, error) {
	r := suite.Runner{
		Programs: c.cache, Dir: filepath.Join(c.cache, c.results), Kubeconfig: c.cluster.kubeconfig(), Procs: c.procs, Progress: c.progress,
		Diagnose: c.diagnose,
	}
	if err := os.MkdirAll(r.Dir, 0o755); err != nil {
		return r, nil, fmt.Errorf("make a folder for results: %w", err)
	}
	if err := programs.Build(ctx, c.cache, c.progress); err != nil {
		return r, nil, err
	}
	e2e := filepath.Join(c.cache, programs.E2E)
	specs, err := suite.List(ctx, e2e)
	if err != nil {
		return r, nil, err
	}
	names, err := suite.Images(ctx, e2e)
	if err != nil {
		return r, nil, err
	}
	if len(only) > 0 {
		names = slices.DeleteFunc(names, func(name string) bool { return !slices.Contains(only, testimages.Short(name)) })
	}
	archive, err := testimages.Make(ctx, c.cache, names, c.progress)
	if err != nil {
		return r, nil, err
	}
	r.Unmade = archive.Missing
	if r.Commit, err = commit(ctx, c.root); err != nil {
		return r, nil, err
	}
	if err := c.cluster.up(ctx, archive.File); err != nil {
		return r, specs, err
	}
	return r, specs, c.cluster.mirror(ctx, archive.File)
}

// run is `make conformance`.
func (c *command) run(ctx context.Context) (err error) {
	r, specs, err := c.prepare(ctx)
	defer func() { err = errors.Join(err, c.end()) }()
	if err != nil {
		return err
	}
	if c.resume == "" {
		if err := suite.Clear(r.Dir); err != nil {
			return err
		}
	}
	results, err := suite.Load(r.Dir)
	if err != nil {
		return err
	}
	if results.Version, err = programs.Version(ctx); err != nil {
		return err
	}
	results.Servers = c.cluster.servers
	chosen, err := suite.Choose(specs, c.focus, c.skip)
	if err != nil {
		return err
	}
	chosen = slices.DeleteFunc(chosen, func(s suite.Spec) bool {
		result, ok := results.Specs[s.Name]
		return ok && (c.resume == "all" || result.State == suite.Passed)
	})
	ran := r.Run(ctx, chosen, results)
	return errors.Join(ran, c.record(r, specs, results))
}

// record writes what is known after a run. The page speaks of the whole suite: it is written
// when nothing was left out by choice.
func (c *command) record(r suite.Runner, specs []suite.Spec, results suite.Results) error {
	if err := suite.WriteJUnit(r.Dir); err != nil {
		return err
	}
	table := filepath.Join(r.Dir, "specs.txt")
	if err := os.WriteFile(table, []byte(suite.Table(specs, results)), 0o644); err != nil {
		return fmt.Errorf("write the table of specs: %w", err)
	}
	c.progress("every spec: %s; JUnit: %s", table, filepath.Join(r.Dir, "junit.xml"))
	if c.focus != "" || c.skip != "" {
		return nil
	}
	return c.writePage(specs, results)
}

func (c *command) writePage(specs []suite.Spec, results suite.Results) error {
	c.progress("writing %s", page)
	return os.WriteFile(filepath.Join(c.root, page), []byte(suite.Page(specs, results)), 0o644)
}

// page is for runs that were made in parts: of a spec that ran in several, the last counts.
func (c *command) page(ctx context.Context) error {
	specs, err := suite.List(ctx, filepath.Join(c.cache, programs.E2E))
	if err != nil {
		return err
	}
	var all suite.Results
	for i, name := range strings.Split(c.results, ",") {
		part, err := suite.Load(filepath.Join(c.cache, name))
		if err != nil {
			return err
		}
		if i == 0 {
			all = part
		}
		all.Merge(part)
	}
	return c.writePage(specs, all)
}

// end takes the cluster down, unless it is to stay; an interrupted command does so too.
func (c *command) end() error {
	if c.keep {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return c.cluster.down(ctx)
}

// one is `make conformance-one`: the cluster stays up for the next.
func (c *command) one(ctx context.Context) error {
	r, specs, err := c.prepare(ctx)
	if err != nil {
		return err
	}
	for _, s := range specs {
		if s.Name == c.spec {
			return r.One(ctx, suite.Exactly(s))
		}
	}
	return r.One(ctx, c.spec)
}

// commit names what is tested.
func commit(ctx context.Context, root string) (string, error) {
	out, err := exec.CommandContext(ctx, "git", "-C", root, "describe", "--always", "--dirty", "--abbrev=10").Output()
	if err != nil {
		return "", fmt.Errorf("find the commit: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
