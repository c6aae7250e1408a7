// Package suite knows upstream's conformance specs, runs them against a cluster, and keeps what
// came of each.
package suite

import (
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Spec is one conformance spec.
type Spec struct {
	// Name is the spec's whole text.
	Name string `json:"codename"`
	// File is where upstream has it, with the line.
	File string `json:"file"`
}

// area matches the special interest group that a spec belongs to.
var area = regexp.MustCompile(`^\[(sig-[a-z-]+)\]`)

// Area is the special interest group that owns a spec, such as sig-network.
func Area(name string) string {
	if m := area.FindStringSubmatch(name); m != nil {
		return m[1]
	}
	return "other"
}

// List asks e2e.test for all conformance specs, ordered by area and name.
func List(ctx context.Context, e2e string) ([]Spec, error) {
	out, err := exec.CommandContext(ctx, e2e, "--list-conformance-tests").Output()
	if err != nil {
		return nil, fmt.Errorf("list the conformance specs: %w", err)
	}
	var specs []Spec
	if err := yaml.Unmarshal(out, &specs); err != nil {
		return nil, fmt.Errorf("read the list of conformance specs: %w", err)
	}
	slices.SortFunc(specs, func(a, b Spec) int {
		return cmp.Or(cmp.Compare(Area(a.Name), Area(b.Name)), cmp.Compare(a.Name, b.Name))
	})
	return specs, nil
}

// Images asks e2e.test for the images that its specs, conformance or not, run.
func Images(ctx context.Context, e2e string) ([]string, error) {
	out, err := exec.CommandContext(ctx, e2e, "--list-images").Output()
	if err != nil {
		return nil, fmt.Errorf("list the images of the specs: %w", err)
	}
	return slices.Sorted(strings.FieldsSeq(string(out))), nil
}

// Choose picks the specs whose name matches focus and not skip; empty patterns pick all.
func Choose(specs []Spec, focus, skip string) ([]Spec, error) {
	wanted, err := regexp.Compile(focus)
	if err != nil {
		return nil, fmt.Errorf("the pattern of specs to run: %w", err)
	}
	unwanted, err := regexp.Compile(skip)
	if err != nil {
		return nil, fmt.Errorf("the pattern of specs to skip: %w", err)
	}
	var chosen []Spec
	for _, s := range specs {
		if wanted.MatchString(s.Name) && (skip == "" || !unwanted.MatchString(s.Name)) {
			chosen = append(chosen, s)
		}
	}
	return chosen, nil
}

// pattern matches exactly the specs' names; ginkgo puts the suite's name before them.
func pattern(specs []Spec) string {
	var names []string
	for _, s := range specs {
		names = append(names, regexp.QuoteMeta(s.Name))
	}
	return "(?:^| )(?:" + strings.Join(names, "|") + ")$"
}

// batches cuts specs, which are ordered by area, into runs of one area and at most size specs:
// results are kept after each.
func batches(specs []Spec, size int) [][]Spec {
	var all [][]Spec
	for _, s := range specs {
		last := len(all) - 1
		if last < 0 || len(all[last]) == size || Area(all[last][0].Name) != Area(s.Name) {
			all = append(all, nil)
			last++
		}
		all[last] = append(all[last], s)
	}
	return all
}
