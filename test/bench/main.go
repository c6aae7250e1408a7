// Command bench measures Barque on this machine and writes docs/benchmarks.md: how long a cluster
// takes to come up, what it weighs when idle, and how long clients notice the loss of a machine. It needs root and bin/barque; `make bench` builds that.
//
// Every figure is absolute: median, least, greatest and how often it was taken; test/sidebyside
// measures the control plane beside stock's. Nobody edits
// the page by hand; a run with -only replaces the sections that it measured, a run with -quick
// prints without writing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"barque.dev/test/report"
)

// row is one section of the page.
type row struct {
	name  string
	title string
	run   func(context.Context, *bench) error
}

// rows lists what can be measured, in the page's order.
func rows() []row {
	return []row{
		{"up", "A cluster of three comes up", measureUp},
		{"start", "A control plane starts", measureStart},
		{"idle", "What an idle cluster weighs", measureIdle},
		{"gap", "What a client notices when the leader is lost", measureGap},
		{"lost", "From a lost machine to the replacement pod", measureLost},
	}
}

// bench is one run.
type bench struct {
	program string
	quick   bool
	rounds  int             // overrides how often a figure is taken, when not 0
	section *report.Section // that is measured
}

// times is how often to take a figure.
func (b *bench) times(full, quick int) int {
	switch {
	case b.rounds > 0:
		return b.rounds
	case b.quick:
		return quick
	default:
		return full
	}
}

// say prints progress.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s: %s\n", time.Now().Format(time.TimeOnly), b.section.Name, fmt.Sprintf(format, args...))
}

// add records a sample of a figure of the current row.
func (b *bench) add(spec report.Figure, samples ...float64) { b.section.Add(spec, "", samples...) }

func main() { os.Exit(report.Main("bench", run)) }

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	var names []string
	for _, r := range rows() {
		names = append(names, r.name)
	}
	b := &bench{}
	only := flags.String("only", "", "comma separated `rows` to measure: "+strings.Join(names, ", "))
	root := flags.String("root", ".", "the repository's `directory`")
	flags.StringVar(&b.program, "program", os.Getenv("BARQUE_PROGRAM"), "the `binary` to measure; bin/barque by default")
	flags.BoolVar(&b.quick, "quick", false, "small numbers, under two minutes; the page is not written")
	flags.IntVar(&b.rounds, "n", 0, "take figures of whole clusters `n` times")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("it needs root, for network namespaces and containers")
	}
	if b.program == "" {
		b.program = filepath.Join(*root, "bin", "barque")
	}
	program, err := filepath.Abs(b.program)
	if err != nil {
		return err
	}
	if b.program = program; !exists(program) {
		return fmt.Errorf("%s is missing: run `make build` first", program)
	}
	chosen, err := report.Choose(names, *only)
	if err != nil {
		return err
	}
	return b.measure(ctx, *root, chosen)
}

// measure takes the rows' figures; the page has each as soon as it is done.
func (b *bench) measure(ctx context.Context, root string, chosen []string) error {
	if err := cleanUp(ctx); err != nil {
		return err
	}
	shown := &report.Page{}
	for _, r := range rows() {
		if !slices.Contains(chosen, r.name) {
			continue
		}
		section, err := report.NewSection(root, r.name, r.title)
		if err != nil {
			return err
		}
		b.section = &section
		b.say("%s", r.title)
		if err := r.run(ctx, b); err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		section.Machine = report.Machine() // with the load as it is at the end
		shown.Put(section)
		if b.quick {
			continue
		}
		page, err := report.Load(root)
		if err != nil {
			return err
		}
		page.Put(section)
		if err := page.Write(root); err != nil {
			return err
		}
	}
	fmt.Print(shown.Markdown())
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
