// Package report makes a drill's report of what it measured and found: drill.json, drill.md with the
// table, and requests.svg with the requests that each server answered, the errors, and when faults struck.
package report

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"barque.dev/internal/drill/check"
)

// A Gap is the longest time without an acknowledgement in each phase of a step. It belongs to the phase
// in which it begins; one that begins before the fault and ends after it is the fault's.
type Gap struct {
	Calm    time.Duration `json:"calm"`    // before the fault
	Struck  time.Duration `json:"struck"`  // from the fault on
	Healing time.Duration `json:"healing"` // from when healing began until all was well
}

// A Strike is one fault that was. Times are since the drill began.
type Strike struct {
	Kind   string        `json:"kind"`
	Title  string        `json:"title"`
	Hit    []string      `json:"hit"`
	Round  int           `json:"round"`
	At     time.Duration `json:"at"`
	Heal   time.Duration `json:"heal"` // when healing began
	Well   time.Duration `json:"well"` // when every server was ready, and writes and reads went on
	Writes Gap           `json:"writes"`
	Reads  Gap           `json:"reads"`
}

// A Report is all of it. Durations are in nanoseconds.
type Report struct {
	Command string        `json:"command"` // that repeats the drill
	Seed    uint64        `json:"seed"`
	Servers int           `json:"servers"`
	Began   time.Time     `json:"began"`
	Took    time.Duration `json:"took"`
	Cores   int           `json:"cores"`
	Version string        `json:"version"`
	// Rounds counts those that were judged; Failure says why the drill ended early, if it did.
	Rounds  int           `json:"rounds"`
	Failure string        `json:"failure,omitempty"`
	Verdict check.Verdict `json:"verdict"`
	Strikes []Strike      `json:"strikes"`
	Series  *Series       `json:"series"`
}

// jsonFile is the report for programs.
const jsonFile = "drill.json"

// Prepare makes the directory of a report to come, so that nobody drills for hours and can't write what was
// found. One that has a report already is refused: a violation's history is in it, perhaps.
func Prepare(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("%s can't be made: %w; choose another directory", dir, err)
	}
	if _, err := os.Stat(filepath.Join(dir, jsonFile)); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s holds the report of an earlier drill: choose another directory, or remove it", dir)
	}
	return nil
}

// Write writes the report's files into a directory that was prepared.
func (r *Report) Write(dir string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	var errs []error
	for name, text := range map[string]string{jsonFile: string(data) + "\n", "drill.md": r.Markdown(), "requests.svg": r.Picture()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			errs = append(errs, fmt.Errorf("write the report: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Markdown is the report to read.
func (r *Report) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Drill of seed %d\n\n", r.Seed)
	fmt.Fprintf(&b, "`%s`, begun %s, took %v; %d servers on one machine of %d cores, barque %s.\n\n", r.Command,
		r.Began.UTC().Format(time.RFC3339), r.Took.Round(time.Second), r.Servers, r.Cores, r.Version)
	if r.Failure != "" {
		fmt.Fprintf(&b, "**Ended early:** %s\n\n", r.Failure)
	}
	v := r.Verdict
	fmt.Fprintf(&b, "%d faults in %d rounds that were judged: %d operations on %d objects (%d without an answer), %d lists, %d events of watches. **%d violations**",
		len(r.Strikes), r.Rounds, v.Operations, v.Objects, v.Unknown, v.Lists, v.Events, len(v.Violations))
	if len(v.Undecided) > 0 {
		fmt.Fprintf(&b, "; the operations on %d objects could not be judged in time", len(v.Undecided))
	}
	b.WriteString(".\n\n")
	for i, violation := range v.Violations {
		if i == maxShown {
			fmt.Fprintf(&b, "- … and %d more, in drill.json\n", len(v.Violations)-i)
			break
		}
		fmt.Fprintf(&b, "- %s\n", violation)
	}
	b.WriteString(r.Table())
	b.WriteString("\n![requests](requests.svg)\n")
	return b.String()
}

// maxShown bounds the violations in a text.
const maxShown = 20

// Table is the longest time without writes and reads, by kind of fault, in milliseconds.
func (r *Report) Table() string {
	var b strings.Builder
	b.WriteString("\nLongest time without an acknowledgement at the virtual IP, in ms:\n\n")
	b.WriteString("| fault | count | no write: p50 | p90 | worst | no read: p50 | p90 | worst | healing, no write: worst | no read: worst |\n")
	b.WriteString("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	var titles []string
	for _, s := range r.Strikes {
		if !slices.Contains(titles, s.Title) {
			titles = append(titles, s.Title)
		}
	}
	slices.Sort(titles)
	for _, title := range titles {
		of := slices.DeleteFunc(slices.Clone(r.Strikes), func(s Strike) bool { return s.Title != title })
		row(&b, title, of, func(g Gap) time.Duration { return g.Struck })
		fmt.Fprintf(&b, " %s | %s |\n",
			millis(quantile(of, func(s Strike) time.Duration { return s.Writes.Healing }, 1)),
			millis(quantile(of, func(s Strike) time.Duration { return s.Reads.Healing }, 1)))
	}
	if len(r.Strikes) > 0 {
		row(&b, "none, in the second before each", r.Strikes, func(g Gap) time.Duration { return g.Calm })
		b.WriteString(" | |\n")
	}
	return b.String()
}

func row(b *strings.Builder, title string, of []Strike, gap func(Gap) time.Duration) {
	fmt.Fprintf(b, "| %s | %d |", title, len(of))
	for _, of2 := range []func(Strike) time.Duration{
		func(s Strike) time.Duration { return gap(s.Writes) }, func(s Strike) time.Duration { return gap(s.Reads) },
	} {
		for _, q := range []float64{0.5, 0.9, 1} {
			fmt.Fprintf(b, " %s |", millis(quantile(of, of2, q)))
		}
	}
}

// quantile is a strike's figure at q of 0..1, by the nearest rank.
func quantile(strikes []Strike, figure func(Strike) time.Duration, q float64) time.Duration {
	var all []time.Duration
	for _, s := range strikes {
		all = append(all, figure(s))
	}
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[max(0, int(math.Ceil(q*float64(len(all))))-1)]
}

func millis(d time.Duration) string { return fmt.Sprint(d.Round(time.Millisecond).Milliseconds()) }
