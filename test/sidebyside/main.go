// Command sidebyside measures Barque's control plane beside stock Kubernetes' (etcd, kube-apiserver,
// kube-controller-manager and kube-scheduler of the release that Barque serves, built from their
// modules), under the same load, on the same cores and disk. `make bench-side-by-side` builds what
// it needs. Counting system calls and running containers takes root.
//
// The sides take turns, round by round: each starts on empty directories, carries the load, is
// looked at, and is stopped. Both sync every acknowledged write to disk, which the row "durable"
// shows by kill -9 and by counting system calls; both have TLS, client certificates, RBAC and
// stock's default admission. The load's client is the same for all: it
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
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"barque.dev/test/report"
)

// A row measures one section of the page: one plane after the other, each several times.
type row struct {
	name, title string
	members     int
	run         func(ctx context.Context, r *run) error
	// schedules: only the scheduler is of interest, as in upstream's scheduler_perf.
	schedules bool
	// elects: there are schedulers and controllers beside every member.
	elects bool
	// node: there is a node that runs pods, which takes root.
	node bool
	// bare: stock has no scheduler and no controllers.
	bare bool
	// smoke: it is part of the short run that shows that all of this still works.
	smoke bool
	// together: all turns are at once, since planes that nobody uses hardly disturb each other.
	together bool
	// untuned says why stock has no better settings here; if it does not, it is empty.
	untuned string
	note    string
}

// rows are what can be measured, in the page's order.
func rows() []row {
	all := []row{
		{name: "durable", title: "Beside stock: what was acknowledged survives", members: 1, run: measureDurable, smoke: true, untuned: "its settings change nothing about what is synced"},
		{name: "control-plane", title: "Beside stock: a control plane starts", members: 1, run: measureStart, untuned: "its settings are about load"},
		{name: "idle", title: "Beside stock: a control plane idles", members: 1, run: measureIdle, together: true, untuned: "its settings are about load",
			note: "All planes of all rounds idle at the same time; CPU is counted by process."},
		{name: "writes", title: "Beside stock: writes", members: 1, run: measureWrites, smoke: true},
		{name: "reads", title: "Beside stock: reads", members: 1, run: measureReads, smoke: true},
		{name: "watches", title: "Beside stock: watches", members: 1, run: measureWatches, smoke: true},
		{name: "leases", title: "Beside stock: leases", members: 1, run: measureLeases, smoke: true},
		{name: "memory", title: "Beside stock: memory after load", members: 1, run: measureMemory},
		{name: "three", title: "Beside stock: writes with three members", members: 3, run: measureWrites},
	}
	for _, s := range scheduled() {
		all = append(all, row{name: s.name, title: "Beside stock: upstream's " + s.name + ", " + s.workload, members: 1, schedules: true, run: s.measure, note: s.note()})
	}
	return append(all,
		row{name: "failover", title: "Beside stock: the leader of three is killed", members: 3, run: measureFailover, elects: true},
		row{name: "pod-start", title: "Beside stock: pods start", members: 1, run: measurePodStart, node: true,
			note: "Both nodes have Barque's containerd, CNI plugin and images, so that the difference is the agent's and the kubelet's own."},
	)
}

// run is one turn of one side in one row.
type run struct {
	side    side
	plane   *plane
	took    time.Duration // the plane's start to readiness
	quick   bool
	section *section
}

// section is what turns that may be at once add to.
type section struct {
	mu sync.Mutex
	report.Section
}

// add records samples of a figure of the side.
func (r *run) add(f report.Figure, samples ...float64) {
	r.section.mu.Lock()
	defer r.section.mu.Unlock()
	r.section.Add(f, r.side.name(), samples...)
}

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

func main() { os.Exit(report.Main("sidebyside", measure)) }

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
	all := map[string]row{}
	var names []string
	for _, r := range rows() {
		all[r.name] = r
		names = append(names, r.name)
	}
	flags := flag.NewFlagSet("sidebyside", flag.ContinueOnError)
	only := flags.String("only", "", "comma separated `rows` to measure: "+strings.Join(names, ", "))
	flags.StringVar(&o.root, "root", filepath.Join("..", ".."), "the repository's `directory`")
	flags.BoolVar(&o.quick, "quick", false, "small numbers and one round; the page is not written")
	smoke := flags.Bool("smoke", false, "a quick run, in minutes, of some rows, for which stock is etcd and kube-apiserver alone")
	sides := flags.String("sides", "barque,stock,tuned", "comma separated `sides` to measure; tuned is stock with settings that are meant to make it faster")
	flags.IntVar(&o.rounds, "rounds", 5, "how many turns each side takes")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if *smoke {
		o.quick, *sides = true, "barque,stock"
	}
	if o.quick {
		o.rounds = 1
	}
	chosen, err := report.Choose(names, *only)
	if err != nil {
		return o, err
	}
	for _, name := range chosen {
		r := all[name]
		if r.bare = *smoke; r.smoke || !*smoke {
			o.chosen = append(o.chosen, r)
		}
	}
	if o.root, err = filepath.Abs(o.root); err != nil {
		return o, err
	}
	o.programs, o.barque = filepath.Join(o.root, ".cache", "stock"), os.Getenv("BARQUE_PROGRAM")
	if o.barque == "" {
		o.barque = filepath.Join(o.root, "bin", "barque")
	}
	if err := o.choose(strings.Split(*sides, ",")); err != nil {
		return o, err
	}
	return o, o.check()
}

// choose takes the sides by their names, ours first, whichever way they are named: the others are compared with the first.
func (o *options) choose(names []string) error {
	all := []string{"barque", "stock", "tuned"}
	for _, name := range names {
		if !slices.Contains(all, name) {
			return fmt.Errorf("-sides %s: there are %s", name, strings.Join(all, ", "))
		}
	}
	if !o.quick && !slices.Contains(names, "barque") {
		return errors.New("-sides: the page compares the others with barque; without it, add -quick")
	}
	for _, name := range all {
		switch {
		case !slices.Contains(names, name):
		case name == "barque":
			o.sides = append(o.sides, barque{o.barque})
		default:
			o.sides = append(o.sides, stock{programs: o.programs, tuned: name == "tuned"})
		}
	}
	return nil
}

// check looks for what the rows need before the first of them takes its time.
func (o *options) check() error {
	needed := []string{o.barque}
	for _, r := range o.chosen {
		needed = append(needed, stockPrograms(o.programs, r)...)
		if r.node && os.Geteuid() != 0 {
			return fmt.Errorf("%s needs root, for containers", r.name)
		}
	}
	for _, p := range needed {
		if _, err := os.Stat(p); err != nil {
			return fmt.Errorf("%w: run `make bench-side-by-side`", err)
		}
	}
	return nil
}

func measure(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
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

// turns measures one row: side after side, round after round, or all at once.
func (o options) turns(ctx context.Context, r row) (report.Section, error) {
	made, err := report.NewSection(o.root, r.name, r.title)
	if err != nil {
		return made, err
	}
	s := &section{Section: made}
	s.Note = strings.TrimSpace(note + " " + r.note)
	if slices.Contains(o.sides, side(stock{programs: o.programs, tuned: true})) {
		s.Note += " " + tuning(r)
	}
	if r.together {
		err = o.together(ctx, r, s)
	} else {
		err = o.oneByOne(ctx, r, s)
	}
	var names []string
	for _, side := range o.sides {
		names = append(names, side.name())
	}
	s.Order(names...)            // of turns that are at once, any may have come first
	s.Machine = report.Machine() // with the load as it is at the end
	return s.Section, err
}

// order is who takes the row's turns.
func (o options) order(r row) []side {
	var all []side
	for range o.rounds {
		for _, s := range o.sides {
			if st, ok := s.(stock); !ok || !st.tuned || r.untuned == "" {
				all = append(all, s)
			}
		}
	}
	return all
}

func (o options) oneByOne(ctx context.Context, r row, section *section) error {
	for _, s := range o.order(r) {
		turn, end, err := o.start(ctx, r, s, section)
		if err == nil {
			err = r.run(ctx, turn)
		}
		if err := errors.Join(err, end()); err != nil {
			return fmt.Errorf("%s: %w", s.name(), err)
		}
	}
	return nil
}

// together starts one plane after the other, and measures when all are there.
func (o options) together(ctx context.Context, r row, section *section) (err error) {
	var turns []*run
	for _, s := range o.order(r) {
		turn, end, failed := o.start(ctx, r, s, section)
		defer func() { err = errors.Join(err, end()) }()
		if failed != nil {
			return fmt.Errorf("%s: %w", s.name(), failed)
		}
		turns = append(turns, turn)
	}
	var group errgroup.Group
	for _, turn := range turns {
		group.Go(func() error { return r.run(ctx, turn) })
	}
	return group.Wait()
}

// note is what all sections have in common.
const note = "Medians, with the least and the greatest sample in brackets; the sides took turns. CPU is the servers' user and system time, all processes of a side together."

// start starts a plane on empty directories for one turn. end, which is never nil, stops it and removes them.
func (o options) start(ctx context.Context, r row, s side, section *section) (turn *run, end func() error, err error) {
	dir, err := os.MkdirTemp("", "barque-side-")
	if err != nil {
		return nil, func() error { return nil }, err
	}
	started := time.Now()
	p, err := s.start(ctx, dir, r)
	end = func() error { return errors.Join(p.stop(), os.RemoveAll(dir)) }
	if err != nil {
		return nil, end, err
	}
	turn = &run{side: s, plane: p, took: time.Since(started), quick: o.quick, section: section}
	if !r.schedules {
		err = p.prepare(ctx, r.bare)
	}
	return turn, end, err
}
