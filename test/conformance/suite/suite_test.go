package suite

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onsi/ginkgo/v2/types"
	"pgregory.net/rapid"
)

func TestPatternMatchesExactlyTheSpecs(t *testing.T) {
	wanted := []Spec{{Name: "[sig-a] pods should (a|b) [Conformance]"}, {Name: "[sig-a] a.b should $x"}}
	p := regexp.MustCompile(pattern(wanted))
	for name, want := range map[string]bool{
		"Kubernetes e2e suite [sig-a] pods should (a|b) [Conformance]": true,
		"[sig-a] a.b should $x": true,
		"Kubernetes e2e suite [sig-a] pods should a [Conformance]":           false,
		"Kubernetes e2e suite [sig-a] pods should (a|b) [Conformance] twice": false,
		"Kubernetes e2e suite [sig-a] aXb should $x":                         false,
		"Kubernetes e2e suite more[sig-a] a.b should $x":                     false,
	} {
		if p.MatchString(name) != want {
			t.Errorf("%q matched: %v", name, !want)
		}
	}
}

// Batches keep every spec once, in order, and mix no areas.
func TestBatches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var specs []Spec
		for a := range rapid.IntRange(0, 4).Draw(t, "areas") {
			for i := range rapid.IntRange(0, 9).Draw(t, "specs") {
				specs = append(specs, Spec{Name: fmt.Sprintf("[sig-%c] %d", 'a'+a, i)})
			}
		}
		size := rapid.IntRange(1, 5).Draw(t, "size")
		all := batches(specs, size)
		if joined := slices.Concat(all...); !slices.Equal(joined, specs) {
			t.Fatalf("%v became %v", specs, joined)
		}
		for _, b := range all {
			if len(b) == 0 || len(b) > size {
				t.Fatalf("a batch has %d specs", len(b))
			}
			for _, s := range b {
				if Area(s.Name) != Area(b[0].Name) {
					t.Fatalf("%v has several areas", b)
				}
			}
		}
	})
}

func TestChoose(t *testing.T) {
	specs := []Spec{{Name: "[sig-a] pods"}, {Name: "[sig-a] jobs"}, {Name: "[sig-b] pods"}}
	for _, c := range []struct {
		focus, skip string
		want        int
	}{{"", "", 3}, {"pods", "", 2}, {"", "sig-a", 1}, {"pods", "sig-b", 1}, {"none", "", 0}} {
		got, err := Choose(specs, c.focus, c.skip)
		if err != nil || len(got) != c.want {
			t.Errorf("focus %q, skip %q: %v, %v", c.focus, c.skip, got, err)
		}
	}
	if _, err := Choose(specs, "(", ""); err == nil {
		t.Error("a broken pattern was taken")
	}
}

func it(name string, state types.SpecState, message string) types.SpecReport {
	return types.SpecReport{
		ContainerHierarchyTexts: []string{"[sig-a]"}, LeafNodeType: types.NodeTypeIt, LeafNodeText: name, State: state,
		RunTime: 2 * time.Second, EndTime: time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC), Failure: types.Failure{Message: message},
	}
}

func TestResultsOfAReport(t *testing.T) {
	pull := it("pull", types.SpecStateFailed, "timed out\nand more")
	pull.CapturedGinkgoWriterOutput = "Failed to pull image example.test/x:1"
	panicked := it("panic", types.SpecStatePanicked, "Test Panicked")
	panicked.Failure.ForwardedPanic = "nil map"
	r := Results{Specs: map[string]Result{}}
	r.add(types.Report{SpecReports: types.SpecReports{
		it("pass", types.SpecStatePassed, ""), pull, panicked,
		it("declined", types.SpecStateSkipped, "needs two zones"),
		it("not chosen", types.SpecStateSkipped, ""), it("cut off", types.SpecStateInterrupted, "by the user"),
		{LeafNodeType: types.NodeTypeBeforeSuite, State: types.SpecStateFailed},
	}}, "c0ffee", []string{"example.test/x:1", "example.test/y:1"})
	for name, want := range map[string]Result{
		"[sig-a] pass":     {State: Passed},
		"[sig-a] pull":     {State: Failed, Error: "timed out", Images: []string{"example.test/x:1"}},
		"[sig-a] panic":    {State: Failed, Error: "panic: nil map"},
		"[sig-a] declined": {State: NotRun, Error: "needs two zones"},
	} {
		got := r.Specs[name]
		if got.State != want.State || got.Error != want.Error || !slices.Equal(got.Images, want.Images) || got.Commit != "c0ffee" || got.Seconds != 2 {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if len(r.Specs) != 4 {
		t.Errorf("results: %v", r.Specs)
	}
}

func TestResultsAreKept(t *testing.T) {
	dir := t.TempDir()
	if r, err := Load(dir); err != nil || len(r.Specs) != 0 {
		t.Fatalf("a new folder holds %v, %v", r, err)
	}
	saved := Results{Version: "v1", Servers: 3, Specs: map[string]Result{"a": {State: Failed, Error: "no"}}}
	if err := saved.Save(dir); err != nil {
		t.Fatal(err)
	}
	loaded, err := Load(dir)
	if err != nil || loaded.Specs["a"].Error != "no" || loaded.Servers != 3 {
		t.Fatalf("loaded %+v, %v", loaded, err)
	}
	if err := os.WriteFile(filepath.Join(dir, reportPrefix+"x.json"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Clear(dir); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Fatalf("left: %v, %v", left, err)
	}
	if err := os.WriteFile(filepath.Join(dir, resultsFile), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("broken results were read: %v", err)
	}
}

func TestPage(t *testing.T) {
	day := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	specs := []Spec{{Name: "[sig-a] one"}, {Name: "[sig-a] two"}, {Name: "[sig-b] three"}, {Name: "[sig-b] four"}}
	r := Results{Version: "v1.37.1", Servers: 3, Specs: map[string]Result{
		"[sig-a] one":   {State: Passed, Seconds: 60, Ended: day, Commit: "aaa"},
		"[sig-a] two":   {State: Failed, Seconds: 30, Ended: day.Add(time.Hour), Commit: "bbb", Error: "a `b`", Images: []string{"x"}},
		"[sig-b] three": {State: NotRun, Ended: day, Commit: "aaa", Error: "needs two zones"},
	}}
	page := Page(specs, r)
	for _, want := range []string{
		"2026-01-02, commits aaa, bbb.", "| sig-a | 2 | 1 | 1 | 0 | 1.5 |", "| sig-b | 2 | 0 | 0 | 2 | 0.0 |", "| **all** | 4 | 1 | 1 | 2 | 1.5 |",
		"- \\[sig-a\\] two: `a 'b'`", "`needs two zones` (1)", "`it was not part of the run` (1)", "- `x`: \\[sig-a\\] two",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q:\n%s", want, page)
		}
	}
}

func TestMergeKeepsTheNewest(t *testing.T) {
	day := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	r := Results{Specs: map[string]Result{"a": {State: Failed, Ended: day}, "b": {State: Passed, Ended: day}}}
	r.Merge(Results{Specs: map[string]Result{"a": {State: Passed, Ended: day.Add(time.Hour)}, "b": {State: Failed, Ended: day.Add(-time.Hour)}, "c": {State: Failed, Ended: day}}})
	if r.Specs["a"].State != Passed || r.Specs["b"].State != Passed || r.Specs["c"].State != Failed {
		t.Errorf("merged: %+v", r.Specs)
	}
}
