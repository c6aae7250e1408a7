// Package report keeps the figures that the benchmarks take, and makes docs/benchmarks.md of them.
//
// A run measures some sections and leaves the others as earlier runs left them; each says when, of
// which commit and on what machine it was taken. Nobody edits the page by hand.
package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A Figure is one quantity that was measured, of one side or of several side by side.
type Figure struct {
	Name     string `json:"name"`
	Unit     string `json:"unit"`
	Aim      string `json:"aim,omitempty"`
	Includes string `json:"includes"`
	// Samples are the figure's own, where there is one side.
	Samples Samples `json:"samples,omitempty"`
	// Sides are the samples of each, the first being what the others are compared with.
	Sides []Side `json:"sides,omitempty"`
	// Better is "more" or "less": which way the ratio of two sides is taken, so that above 1
	// always means that the first side does better. Empty for no ratio.
	Better string `json:"better,omitempty"`
}

// A Side is one of those that were measured side by side.
type Side struct {
	Name    string  `json:"name"`
	Samples Samples `json:"samples"`
}

// Samples are one quantity, taken several times.
type Samples []float64

// Quantile is the sample at q of 0..1, by the nearest rank; 0 if there is none.
func (s Samples) Quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(s))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// Median is the mean of the two in the middle when their number is even; 0 if there is none.
func (s Samples) Median() float64 {
	sorted := slices.Sorted(slices.Values(s))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// Ratio tells how many times better the first side is than side i; 0 where there is no telling.
func (f Figure) Ratio(i int) float64 {
	mine, other := f.Sides[0].Samples.Median(), f.Sides[i].Samples.Median()
	switch {
	case mine == 0 || other == 0 || i == 0:
		return 0
	case f.Better == "more":
		return mine / other
	case f.Better == "less":
		return other / mine
	default:
		return 0
	}
}

// A Section is one group of figures and where they come from.
type Section struct {
	Name    string   `json:"row"`
	Title   string   `json:"title"`
	Date    string   `json:"date"`
	Commit  string   `json:"commit"`
	Machine string   `json:"machine"`
	Note    string   `json:"note,omitempty"`
	Figures []Figure `json:"figures"`
}

// NewSection returns an empty one, taken now on this machine of the tree at root.
func NewSection(root, name, title string) (Section, error) {
	commit, err := commit(root)
	if err != nil {
		return Section{}, fmt.Errorf("find the commit: %w", err)
	}
	return Section{Name: name, Title: title, Date: time.Now().UTC().Format(time.DateOnly), Commit: commit, Machine: Machine()}, nil
}

// commit names what is measured; a tree with changes says so, but for those of the page itself.
func commit(root string) (string, error) {
	out, err := exec.Command("git", "-C", root, "rev-parse", "--short=10", "HEAD").Output()
	if err != nil {
		return "", err
	}
	name := string(bytes.TrimSpace(out))
	changed, err := exec.Command("git", "-C", root, "status", "--porcelain", "--", ".", ":!"+pageJSON, ":!"+pageMarkdown).Output()
	if err != nil {
		return "", err
	}
	if len(bytes.TrimSpace(changed)) > 0 {
		name += "-dirty"
	}
	return name, nil
}

// Add records samples of a figure; side is empty where there is one alone.
func (s *Section) Add(spec Figure, side string, samples ...float64) {
	i := slices.IndexFunc(s.Figures, func(f Figure) bool { return f.Name == spec.Name })
	if i < 0 {
		i = len(s.Figures)
		s.Figures = append(s.Figures, spec)
	}
	f := &s.Figures[i]
	if side == "" {
		f.Samples = append(f.Samples, samples...)
		return
	}
	j := slices.IndexFunc(f.Sides, func(s Side) bool { return s.Name == side })
	if j < 0 {
		j = len(f.Sides)
		f.Sides = append(f.Sides, Side{Name: side})
	}
	f.Sides[j].Samples = append(f.Sides[j].Samples, samples...)
}

// Order puts the sides of all figures in an order, by their names; those that are not named come last.
func (s *Section) Order(names ...string) {
	rank := func(side Side) int {
		if i := slices.Index(names, side.Name); i >= 0 {
			return i
		}
		return len(names)
	}
	for _, f := range s.Figures {
		slices.SortStableFunc(f.Sides, func(a, b Side) int { return rank(a) - rank(b) })
	}
}

// Where the page is kept, below the repository's root.
const (
	pageJSON     = "docs/benchmarks.json"
	pageMarkdown = "docs/benchmarks.md"
)

// Page is the whole page.
type Page struct {
	Sections []Section `json:"sections"`
}

// Load reads the page of the repository at root; an empty one if there is none.
func Load(root string) (*Page, error) {
	p := &Page{}
	data, err := os.ReadFile(filepath.Join(root, pageJSON))
	if errors.Is(err, os.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(data, p)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", pageJSON, err)
	}
	return p, nil
}

// Put takes a section in, in the place of an earlier one of its name.
func (p *Page) Put(s Section) {
	i := slices.IndexFunc(p.Sections, func(o Section) bool { return o.Name == s.Name })
	if i < 0 {
		p.Sections = append(p.Sections, s)
		return
	}
	p.Sections[i] = s
}

// Write stores the page in the repository at root, for programs and for readers.
func (p *Page) Write(root string) error {
	// A section a line: a run that measures some changes these lines and no others.
	data := []byte(`{"sections": [`)
	for i, s := range p.Sections {
		line, err := json.Marshal(s)
		if err != nil {
			return fmt.Errorf("write section %s: %w", s.Name, err)
		}
		if i > 0 {
			data = append(data, ',')
		}
		data = append(append(data, '\n'), line...)
	}
	data = append(data, "\n]}\n"...)
	if err := os.WriteFile(filepath.Join(root, pageJSON), data, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, pageMarkdown), []byte(p.Markdown()), 0o644)
}

const preamble = `# Benchmarks

Written by ` + "`make bench` and `make bench-side-by-side`" + `; do not edit. All processes of a figure, the one that measures included, share the machine's cores and disk;
etcd's writes are synced to disk, TLS, authentication and RBAC are on; the load is that of a member of system:masters, whom
every side lets through before roles are looked at, and lets wait for no seat. Absolute figures move with the machine; ratios less so.
A ratio above 1 says that Barque does better.
`

// Markdown is the page for readers.
func (p *Page) Markdown() string {
	var b strings.Builder
	b.WriteString(preamble)
	for _, s := range p.Sections {
		fmt.Fprintf(&b, "\n## %s\n\n%s, commit %s; %s.\n", s.Title, s.Date, s.Commit, s.Machine)
		if s.Note != "" {
			fmt.Fprintf(&b, "%s\n", s.Note)
		}
		b.WriteString("\n")
		if slices.ContainsFunc(s.Figures, func(f Figure) bool { return len(f.Sides) > 0 }) {
			s.compared(&b)
		} else {
			s.alone(&b)
		}
	}
	return b.String()
}

func (s *Section) alone(b *strings.Builder) {
	b.WriteString("| figure | median | min | p90 | max | n | aim | what it includes |\n|---|---|---|---|---|---|---|---|\n")
	for _, f := range s.Figures {
		fmt.Fprintf(b, "| %s, %s | %s | %s | %s | %s | %d | %s | %s |\n", f.Name, f.Unit, show(f.Samples.Median()),
			show(f.Samples.Quantile(0)), show(f.Samples.Quantile(0.9)), show(f.Samples.Quantile(1)), len(f.Samples), f.Aim, f.Includes)
	}
}

// compared prints medians with the range that the samples had, and ratios of medians.
func (s *Section) compared(b *strings.Builder) {
	var sides []string
	for _, f := range s.Figures {
		for _, side := range f.Sides {
			if !slices.Contains(sides, side.Name) {
				sides = append(sides, side.Name)
			}
		}
	}
	b.WriteString("| figure |")
	for i, name := range sides {
		fmt.Fprintf(b, " %s |", name)
		if i > 0 {
			b.WriteString(" ratio |")
		}
	}
	b.WriteString(" n | what it includes |\n|---|" + strings.Repeat("---|", 2*len(sides)-1) + "---|---|\n")
	for _, f := range s.Figures {
		fmt.Fprintf(b, "| %s, %s |", f.Name, f.Unit)
		for i, name := range sides {
			j := slices.IndexFunc(f.Sides, func(s Side) bool { return s.Name == name })
			if j < 0 {
				b.WriteString(strings.Repeat(" |", 1+min(i, 1)))
				continue
			}
			v := f.Sides[j].Samples
			fmt.Fprintf(b, " %s (%s–%s) |", show(v.Median()), show(v.Quantile(0)), show(v.Quantile(1)))
			if i > 0 {
				fmt.Fprintf(b, " %s |", ratio(f.Ratio(j)))
			}
		}
		fmt.Fprintf(b, " %d | %s |\n", len(f.Sides[0].Samples), f.Includes)
	}
}

func ratio(r float64) string {
	if r == 0 {
		return ""
	}
	return show(r) + "×"
}

// show prints three digits that count.
func show(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// Machine describes what the figures were taken on.
func Machine() string {
	var u unix.Utsname
	release := "unknown"
	if err := unix.Uname(&u); err == nil {
		release = unix.ByteSliceToString(u.Release[:])
	}
	load := "unknown"
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		load, _, _ = strings.Cut(string(data), " ")
	}
	return fmt.Sprintf("%d cores, Linux %s, %s, load average at the end %s", runtime.NumCPU(), release, runtime.Version(), load)
}
