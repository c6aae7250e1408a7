package suite

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/onsi/ginkgo/v2/reporters"
	"github.com/onsi/ginkgo/v2/types"
)

// State is what came of a spec.
type State string

// States of specs.
const (
	Passed State = "passed"
	Failed State = "failed"
	// NotRun are specs that looked at the cluster and declined, and those nobody has run.
	NotRun State = "not run"
)

// Result is what came of one spec.
type Result struct {
	State   State     `json:"state"`
	Seconds float64   `json:"seconds"`
	Ended   time.Time `json:"ended"`
	// Commit is the product's.
	Commit string `json:"commit"`
	// Error is the first line of why it failed, or declined to run.
	Error string `json:"error,omitempty"`
	// Images are those that could not be made and that the spec asked for.
	Images []string `json:"images,omitempty"`
}

// Results are by the specs' names.
type Results struct {
	// Version is the release of the suite.
	Version string            `json:"version"`
	Servers int               `json:"servers"`
	Specs   map[string]Result `json:"specs"`
}

// resultsFile keeps results between runs.
const resultsFile = "results.json"

// reportPrefix begins the names of ginkgo's reports and logs.
const reportPrefix = "batch-"

// Load reads the results in dir; without any, they are empty.
func Load(dir string) (Results, error) {
	r := Results{Specs: map[string]Result{}}
	data, err := os.ReadFile(filepath.Join(dir, resultsFile))
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return r, fmt.Errorf("read the results so far: %w", err)
	}
	return r, nil
}

// Save writes the results whole or not at all.
func (r Results) Save(dir string) error {
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return writeFile(filepath.Join(dir, resultsFile), append(data, '\n'))
}

// Merge takes over what is newer in other results.
func (r Results) Merge(other Results) {
	for name, result := range other.Specs {
		if result.Ended.After(r.Specs[name].Ended) {
			r.Specs[name] = result
		}
	}
}

func writeFile(name string, data []byte) error {
	if err := os.WriteFile(name+".new", data, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return os.Rename(name+".new", name)
}

// add takes over what a report says about specs that ran, or declined to. Those that were
// interrupted have no result.
func (r Results) add(report types.Report, commit string, unmade []string) {
	for _, s := range report.SpecReports {
		if result, ok := resultOf(s); ok {
			result.Commit = commit
			if result.State == Failed {
				result.Images = named(s, unmade)
			}
			r.Specs[s.FullText()] = result
		}
	}
}

func resultOf(s types.SpecReport) (Result, bool) {
	if !s.LeafNodeType.Is(types.NodeTypeIt) {
		return Result{}, false
	}
	result := Result{Seconds: s.RunTime.Seconds(), Ended: s.EndTime, Error: firstLine(s.Failure.Message)}
	switch {
	case s.State == types.SpecStatePassed:
		result.State = Passed
	case s.State.Is(types.SpecStateFailed | types.SpecStatePanicked | types.SpecStateTimedout):
		result.State = Failed
		if s.State == types.SpecStatePanicked {
			result.Error = firstLine("panic: " + s.Failure.ForwardedPanic)
		}
	case s.State == types.SpecStateSkipped && s.Failure.Message != "":
		// Without a message it was not chosen.
		result.State = NotRun
	default:
		return Result{}, false
	}
	return result, true
}

// firstLine is the first line that says something, shortened.
func firstLine(message string) string {
	const enough = 240
	for line := range strings.Lines(message) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if r := []rune(line); len(r) > enough {
			line = string(r[:enough]) + "…"
		}
		return line
	}
	return ""
}

// named are the images that a spec's output speaks of.
func named(s types.SpecReport, images []string) []string {
	var found []string
	for _, image := range images {
		if strings.Contains(s.Failure.Message, image) || strings.Contains(s.CapturedGinkgoWriterOutput, image) {
			found = append(found, image)
		}
	}
	return found
}

// readReport reads a report that ginkgo wrote.
func readReport(file string) (types.Report, error) {
	var reports []types.Report
	data, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(data, &reports)
	}
	if err != nil {
		return types.Report{}, fmt.Errorf("read ginkgo's report: %w", err)
	}
	if len(reports) != 1 {
		return types.Report{}, fmt.Errorf("read ginkgo's report %s: %d suites instead of one", file, len(reports))
	}
	return reports[0], nil
}

// WriteJUnit writes one JUnit file of all the reports in dir; of a spec that ran several times it
// has the last.
func WriteJUnit(dir string) error {
	files, err := filepath.Glob(filepath.Join(dir, reportPrefix+"*.json"))
	if err != nil {
		return fmt.Errorf("find ginkgo's reports: %w", err)
	}
	var all types.Report
	last := map[string]types.SpecReport{}
	for _, file := range files { // in the order of their times, which are in their names
		report, err := readReport(file)
		if err != nil {
			return err
		}
		all = report
		for _, s := range report.SpecReports {
			if _, ok := resultOf(s); ok {
				last[s.FullText()] = s
			}
		}
	}
	all.SpecReports, all.RunTime = nil, 0
	for _, name := range slices.Sorted(maps.Keys(last)) {
		all.SpecReports = append(all.SpecReports, last[name])
		all.RunTime += last[name].RunTime
	}
	if err := reporters.GenerateJUnitReport(all, filepath.Join(dir, "junit.xml")); err != nil {
		return fmt.Errorf("write JUnit: %w", err)
	}
	return nil
}

// Clear removes what earlier runs left in dir.
func Clear(dir string) error {
	old, err := filepath.Glob(filepath.Join(dir, reportPrefix+"*"))
	if err != nil {
		return fmt.Errorf("find earlier reports: %w", err)
	}
	for _, file := range append(old, filepath.Join(dir, resultsFile)) {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove an earlier run: %w", err)
		}
	}
	return nil
}
