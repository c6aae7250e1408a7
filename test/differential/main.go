// Command differential plays one stream of API requests to a stock kube-apiserver and to Barque and prints where their
// answers differ: statuses, bodies, warnings and headers, less what no two servers have in common (package compare). What
// differs for a reason is in the table of exceptions, each of which must be needed. `make differential` builds what it
// takes; neither root nor network is needed.
//
// Streams are made from a seed and from what stock serves (package stream). Both servers run without scheduler and
// controllers, so that nothing happens that no request asked for.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"barque.dev/test/differential/compare"
	"barque.dev/test/differential/stream"
	"barque.dev/test/report"
)

func main() { os.Exit(report.Main("differential", run)) }

// options are the command line's.
type options struct {
	programs, barque string
	seed             uint64
	requests         int
	record, replay   string
	needed           bool
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("differential", flag.ContinueOnError)
	root := flags.String("root", ".", "the repository's `directory`")
	flags.Uint64Var(&o.seed, "seed", 1, "what the stream is made from")
	flags.IntVar(&o.requests, "requests", 3000, "about how many requests the stream has; every stream has some 1,500")
	flags.StringVar(&o.record, "record", "", "`file` to write the stream to, a request a line")
	flags.StringVar(&o.replay, "replay", "", "`file` to read the stream from")
	flags.BoolVar(&o.needed, "needed", false, "print also what each exception was needed for")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.programs, o.barque = filepath.Join(*root, ".cache", "stock"), os.Getenv("BARQUE_PROGRAM")
	if o.barque == "" {
		o.barque = filepath.Join(*root, "bin", "barque")
	}
	for _, p := range []string{o.barque, filepath.Join(o.programs, "etcd"), filepath.Join(o.programs, "kube-apiserver")} {
		if _, err := os.Stat(p); err != nil {
			return o, fmt.Errorf("%w: run `make differential`", err)
		}
	}
	return o, nil
}

func run(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "barque-differential-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	stock, ours, err := start(ctx, o, dir)
	defer func() { err = errors.Join(err, stop(stock, ours)) }()
	if err != nil {
		return err
	}
	players := []*player{newPlayer(stock), newPlayer(ours)}
	for _, p := range players {
		defer p.close()
	}
	requests, err := o.stream(ctx, players[0])
	if err != nil {
		return err
	}
	began := time.Now()
	var group sync.WaitGroup
	for _, p := range players {
		group.Go(func() { p.play(ctx, requests) })
	}
	group.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	r, err := compareAll(requests, players[0], players[1])
	if err != nil {
		return err
	}
	fmt.Print(r)
	if o.needed {
		fmt.Print("\nExceptions:\n", r.Needed())
	}
	fmt.Printf("\nseed %d: %d answers compared after %v: %d alike, %d differ as they are meant to, %d differ\n",
		o.seed, r.Compared, time.Since(began).Round(time.Second), r.Compared-r.Excepted-r.Differing(), r.Excepted, r.Differing())
	if n := r.Differing(); n > 0 {
		return fmt.Errorf("%d answers differ", n)
	}
	if unused := r.Unused(); len(unused) > 0 && o.replay == "" {
		return fmt.Errorf("exceptions that nothing needs: %s", strings.Join(unused, "; "))
	}
	return nil
}

// stream reads or makes the requests, and writes them down.
func (o options) stream(ctx context.Context, of *player) ([]stream.Request, error) {
	if o.replay != "" {
		return read(o.replay)
	}
	served, err := of.served(ctx)
	if err != nil {
		return nil, err
	}
	requests, err := stream.Make(served, o.seed, o.requests)
	if err != nil || o.record == "" {
		return requests, err
	}
	f, err := os.Create(o.record)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	encoder := json.NewEncoder(f)
	for _, r := range requests {
		if err := encoder.Encode(r); err != nil {
			return nil, err
		}
	}
	return requests, f.Close()
}

func read(file string) ([]stream.Request, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var requests []stream.Request
	for d := json.NewDecoder(f); d.More(); {
		var r stream.Request
		if err := d.Decode(&r); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		requests = append(requests, r)
	}
	return requests, nil
}

// compareAll compares what two players were answered.
func compareAll(requests []stream.Request, stock, ours *player) (*compare.Report, error) {
	r, err := compare.NewReport(exceptions())
	if err != nil {
		return nil, err
	}
	now := time.Now()
	names := []*compare.Names{compare.NewNames(stock.side.address, now), compare.NewNames(ours.side.address, now)}
	for i := 0; i < len(requests); {
		last := i + 1
		for last < len(requests) && requests[i].Rivals && requests[last].Race == requests[i].Race {
			last++
		}
		answers := make([][]compare.Normal, 2)
		for n, p := range []*player{stock, ours} {
			for _, q := range requests[i:last] {
				answers[n] = append(answers[n], names[n].Normalize(q, p.answers[q.ID]))
			}
			answers[n] = compare.Rivals(answers[n])
		}
		for n, q := range requests[i:last] {
			r.Add(q, answers[0][n], answers[1][n])
		}
		i = last
	}
	return r, nil
}
