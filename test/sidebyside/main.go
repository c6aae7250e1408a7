// Command sidebyside measures Barque's control plane beside stock Kubernetes' (etcd, kube-apiserver,
// kube-controller-manager and kube-scheduler of the release that Barque serves, built from their
// modules), under the same load, on the same cores and disk. `make bench-side-by-side` builds what
// it needs; it needs no root.
//
// The sides take turns, round by round: each starts on empty directories, carries the load, is
// looked at, and is stopped. Both sync every acknowledged write to disk, which the row "durable"
// shows by kill -9 and by counting system calls; both have TLS, client certificates, RBAC and
// stock's default admission as far as they have it. The load's client is the same for all: it
// encodes its requests beforehand and does not decode the answers. It runs on the same cores, so
// that ratios of wall-clock time are held down by what it takes; the CPU time of the servers
// themselves is given beside them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"barque.dev/test/report"
)

// A row measures one section of the page: one plane after the other, each several times.
type row struct {
	name, title string
	members     int
	run         func(ctx context.Context, r *run) error
	// schedules: only the scheduler is of interest, as in upstream's scheduler_perf.
	schedules bool
}

// rows are what can be measured, in the page's order.
func rows() []row {
	all := []row{
		{"durable", "Beside stock: what was acknowledged survives", 1, measureDurable, false},
		{"control-plane", "Beside stock: a control plane starts and idles", 1, measureStart, false},
		{"writes", "Beside stock: writes", 1, measureWrites, false},
		{"reads", "Beside stock: reads", 1, measureReads, false},
		{"watches", "Beside stock: watches", 1, measureWatches, false},
		{"leases", "Beside stock: leases", 1, measureLeases, false},
		{"memory", "Beside stock: memory after load", 1, measureMemory, false},
		{"three", "Beside stock: writes with three members", 3, measureWrites, false},
	}
	for i, s := range scheduled() {
		all = append(all, row{name: s.name, title: "Beside stock: upstream's " + s.name + ", " + s.workload, members: 1, schedules: true, run: scheduling(i)})
	}
	return all
}

// run is one turn of one side in one row.
type run struct {
	side    side
	plane   *plane
	took    time.Duration // the plane's start to readiness
	quick   bool
	section *report.Section
}

// add records samples of a figure of the side.
func (r *run) add(f report.Figure, samples ...float64) { r.section.Add(f, r.side.name(), samples...) }

// scale is n, or less in a quick run.
func (r *run) scale(n int) int {
	if r.quick {
		return max(n/10, 10)
	}
	return n
}

func (r *run) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  %s, %s: %s\n", time.Now().Format(time.TimeOnly), r.section.Name, r.side.name(), fmt.Sprintf(format, args...))
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := measure(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "sidebyside:", err)
		os.Exit(1)
	}
}

// options are the command line's.
type options struct {
	root, programs, barque string
	quick                  bool
	rounds                 int
	chosen                 []row
	sides                  []side
}

func parse(args []string) (options, error) {
	var o options
	var names []string
	for _, r := range rows() {
		names = append(names, r.name)
	}
	flags := flag.NewFlagSet("sidebyside", flag.ContinueOnError)
	only := flags.String("only", "", "comma separated `rows` to measure: "+strings.Join(names, ", "))
	flags.StringVar(&o.root, "root", filepath.Join("..", ".."), "the repository's `directory`")
	flags.BoolVar(&o.quick, "quick", false, "small numbers and one round; the page is not written")
	sides := flags.String("sides", "barque,stock,tuned", "comma separated `sides` to measure; tuned is stock with its best settings that we know of")
	flags.IntVar(&o.rounds, "rounds", 5, "how many turns each side takes")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	for _, r := range rows() {
		if *only == "" || slices.Contains(strings.Split(*only, ","), r.name) {
			o.chosen = append(o.chosen, r)
		}
	}
	if want := strings.Split(*only, ","); *only != "" && len(o.chosen) != len(want) {
		return o, fmt.Errorf("-only %s: there are %s", *only, strings.Join(names, ", "))
	}
	root, err := filepath.Abs(o.root)
	if err != nil {
		return o, err
	}
	o.root, o.programs, o.barque = root, filepath.Join(root, ".cache", "stock"), os.Getenv("BARQUE_PROGRAM")
	if o.barque == "" {
		o.barque = filepath.Join(root, "bin", "barque")
	}
	for _, name := range strings.Split(*sides, ",") {
		switch name {
		case "barque":
			o.sides = append(o.sides, barque{o.barque})
		case "stock", "tuned":
			o.sides = append(o.sides, stock{programs: o.programs, tuned: name == "tuned"})
		default:
			return o, fmt.Errorf("-sides %s: there are barque, stock and tuned", name)
		}
	}
	for _, p := range append([]string{o.barque}, stockPrograms(o.programs)...) {
		if _, err := os.Stat(p); err != nil {
			return o, fmt.Errorf("%w: run `make bench-side-by-side`", err)
		}
	}
	return o, nil
}

func measure(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.quick {
		o.rounds = 1
	}
	page, err := report.Load(o.root)
	if err != nil {
		return err
	}
	shown := &report.Page{}
	for _, r := range o.chosen {
		section, err := o.turns(ctx, r)
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		shown.Put(section)
		page.Put(section)
		if o.quick {
			continue
		}
		if err := page.Write(o.root); err != nil {
			return err
		}
	}
	fmt.Print(shown.Markdown())
	return nil
}

// turns measures one row: side after side, round after round.
func (o options) turns(ctx context.Context, r row) (report.Section, error) {
	section, err := report.NewSection(o.root, r.name, r.title)
	if err != nil {
		return section, err
	}
	section.Note = note
	for range o.rounds {
		for _, s := range o.sides {
			if err := o.turn(ctx, r, s, &section); err != nil {
				return section, fmt.Errorf("%s: %w", s.name(), err)
			}
		}
	}
	section.Machine = report.Machine() // with the load as it is at the end
	return section, nil
}

// note is what all sections have in common.
const note = "Medians, with the least and the greatest sample in brackets; the sides took turns. CPU is the servers' user and system time, all processes of a side together."

func (o options) turn(ctx context.Context, r row, s side, section *report.Section) (err error) {
	dir, err := os.MkdirTemp("", "barque-side-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	started := time.Now()
	p, err := s.start(ctx, dir, r)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	turn := &run{side: s, plane: p, took: time.Since(started), quick: o.quick, section: section}
	if !r.schedules {
		if err := p.prepare(ctx); err != nil {
			return err
		}
	}
	return r.run(ctx, turn)
}
