package suite

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Page is docs/conformance.md: the results by area, what failed with its first error line, and what
// did not run with the reason.
func Page(specs []Spec, r Results) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Conformance\n\nWritten by `make conformance`; do not edit. Upstream's %d conformance specs of Kubernetes %s, unmodified, against a cluster of %d\n"+
		"servers that `barque up` started on one machine.\n\n%s.\n\n", len(specs), r.Version, r.Servers, when(specs, r))
	b.WriteString("| area | specs | passed | failed | not run | minutes |\n|---|---|---|---|---|---|\n")
	var all tally
	for _, a := range areas(specs) {
		t := count(specs, r, func(name string) bool { return Area(name) == a })
		t.row(&b, a)
		all.sum(t)
	}
	all.row(&b, "**all**")
	failures(&b, specs, r)
	declined(&b, specs, r)
	images(&b, specs, r)
	return b.String()
}

// tally counts what came of specs.
type tally struct {
	specs   int
	states  map[State]int
	seconds float64
}

func (t *tally) sum(u tally) {
	t.specs += u.specs
	t.seconds += u.seconds
	if t.states == nil {
		t.states = map[State]int{}
	}
	for s, n := range u.states {
		t.states[s] += n
	}
}

func (t *tally) row(b *strings.Builder, name string) {
	fmt.Fprintf(b, "| %s | %d | %d | %d | %d | %.1f |\n", name, t.specs, t.states[Passed], t.states[Failed], t.states[NotRun], t.seconds/60)
}

func count(specs []Spec, r Results, of func(string) bool) tally {
	t := tally{states: map[State]int{}}
	for _, s := range specs {
		if of(s.Name) {
			result := r.of(s)
			t.specs++
			t.states[result.State]++
			t.seconds += result.Seconds
		}
	}
	return t
}

// of is what came of a spec, whether or not anybody ran it.
func (r Results) of(s Spec) Result {
	result, ok := r.Specs[s.Name]
	if !ok {
		return Result{State: NotRun, Error: "it was not part of the run"}
	}
	return result
}

func areas(specs []Spec) []string {
	found := map[string]bool{}
	for _, s := range specs {
		found[Area(s.Name)] = true
	}
	return slices.Sorted(maps.Keys(found))
}

// when names the days and commits of the results.
func when(specs []Spec, r Results) string {
	days, commits := map[string]time.Time{}, map[string]time.Time{}
	for _, s := range specs {
		if result, ok := r.Specs[s.Name]; ok {
			days[result.Ended.UTC().Format(time.DateOnly)] = result.Ended
			if first, ok := commits[result.Commit]; !ok || result.Ended.Before(first) {
				commits[result.Commit] = result.Ended
			}
		}
	}
	if len(days) == 0 {
		return "Nothing has run"
	}
	inOrder := slices.SortedFunc(maps.Keys(commits), func(a, b string) int { return commits[a].Compare(commits[b]) })
	noun := "commit"
	if len(inOrder) > 1 {
		noun = "commits"
	}
	return fmt.Sprintf("%s, %s %s", strings.Join(slices.Sorted(maps.Keys(days)), " to "), noun, strings.Join(inOrder, ", "))
}

func failures(b *strings.Builder, specs []Spec, r Results) {
	b.WriteString("\n## Failed\n")
	for _, a := range areas(specs) {
		title := "\n### " + a + "\n\n"
		for _, s := range specs {
			if result := r.of(s); Area(s.Name) == a && result.State == Failed {
				fmt.Fprintf(b, "%s- %s: `%s`\n", title, plain(s.Name), code(result.Error))
				title = ""
			}
		}
	}
}

// declined lists specs that did not run, by the reason.
func declined(b *strings.Builder, specs []Spec, r Results) {
	b.WriteString("\n## Not run\n\n")
	reasons := map[string][]string{}
	for _, s := range specs {
		if result := r.of(s); result.State == NotRun {
			reasons[result.Error] = append(reasons[result.Error], plain(s.Name))
		}
	}
	if len(reasons) == 0 {
		b.WriteString("Every spec ran.\n")
	}
	for _, reason := range slices.SortedFunc(maps.Keys(reasons), func(a, b string) int { return cmp.Or(len(reasons[b])-len(reasons[a]), cmp.Compare(a, b)) }) {
		fmt.Fprintf(b, "`%s` (%d):\n\n", code(reason), len(reasons[reason]))
		for _, name := range reasons[reason] {
			fmt.Fprintf(b, "- %s\n", name)
		}
		b.WriteString("\n")
	}
}

// images lists those that could not be made, if a failed spec asked for them.
func images(b *strings.Builder, specs []Spec, r Results) {
	b.WriteString("\n## Images\n\nNothing is pulled: the specs' images are made from Debian packages and Go modules. " +
		"Images that could not be made, with the failed specs that asked for them:\n\n")
	none := true
	for _, s := range specs {
		for _, image := range r.of(s).Images {
			fmt.Fprintf(b, "- `%s`: %s\n", image, plain(s.Name))
			none = false
		}
	}
	if none {
		b.WriteString("None.\n")
	}
}

// Table lists every spec: state, seconds, name.
func Table(specs []Spec, r Results) string {
	var b strings.Builder
	for _, s := range specs {
		result := r.of(s)
		fmt.Fprintf(&b, "%-8s %7.1f  %s\n", result.State, result.Seconds, s.Name)
	}
	return b.String()
}

// plain is text that Markdown shows as it is.
func plain(text string) string {
	return strings.NewReplacer("[", "\\[", "]", "\\]", "*", "\\*", "_", "\\_", "<", "&lt;", "|", "\\|").Replace(text)
}

// code is text for between back quotes.
func code(text string) string { return strings.ReplaceAll(text, "`", "'") }
