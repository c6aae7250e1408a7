package main

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

// figure is one line of the page.
type figure struct {
	Row      string    `json:"row"`
	Name     string    `json:"name"`
	Unit     string    `json:"unit"`
	Aim      string    `json:"aim,omitempty"`
	Includes string    `json:"includes"`
	Samples  []float64 `json:"samples"`
}

// quantile is the sample at q of 0..1, by the nearest rank.
func (f figure) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(f.Samples))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// median is the mean of the two in the middle when their number is even.
func (f figure) median() float64 {
	sorted := slices.Sorted(slices.Values(f.Samples))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// section is one row's figures and where they come from.
type section struct {
	Row     string   `json:"row"`
	Date    string   `json:"date"`
	Commit  string   `json:"commit"`
	Machine string   `json:"machine"`
	Figures []figure `json:"figures"`
}

// page is all of them, as docs/benchmarks.json keeps them.
type page struct {
	Sections []section `json:"sections"`
}

const (
	pageJSON     = "docs/benchmarks.json"
	pageMarkdown = "docs/benchmarks.md"
)

// newPage puts the figures of this run in the place of the earlier ones of the same rows.
func newPage(root string, figures []figure, chosen []string) (*page, error) {
	old := &page{}
	data, err := os.ReadFile(filepath.Join(root, pageJSON))
	if err == nil {
		err = json.Unmarshal(data, old)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read %s: %w", pageJSON, err)
	}
	commit, err := commit(root)
	if err != nil {
		return nil, err
	}
	p := &page{}
	for _, r := range rows() {
		if !slices.Contains(chosen, r.name) {
			i := slices.IndexFunc(old.Sections, func(s section) bool { return s.Row == r.name })
			if i >= 0 {
				p.Sections = append(p.Sections, old.Sections[i])
			}
			continue
		}
		s := section{Row: r.name, Date: time.Now().UTC().Format(time.DateOnly), Commit: commit, Machine: machine()}
		for _, f := range figures {
			if f.Row == r.name {
				s.Figures = append(s.Figures, f)
			}
		}
		p.Sections = append(p.Sections, s)
	}
	return p, nil
}

func (p *page) write(root string) error {
	data, err := json.MarshalIndent(p, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, pageJSON), append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, pageMarkdown), []byte(p.markdown()), 0o644)
}

func (p *page) markdown() string {
	var b strings.Builder
	b.WriteString("# Benchmarks\n\nWritten by `make bench`; do not edit. All processes of a figure, the one that measures included, share the machine's cores and disk;\n" +
		"etcd's writes are synced to disk, TLS, authentication and RBAC are on. Absolute figures move with the machine.\n")
	for _, s := range p.Sections {
		i := slices.IndexFunc(rows(), func(r row) bool { return r.name == s.Row })
		if i < 0 {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n%s, commit %s; %s.\n\n", rows()[i].title, s.Date, s.Commit, s.Machine)
		b.WriteString("| figure | median | min | p90 | max | n | aim | what it includes |\n|---|---|---|---|---|---|---|---|\n")
		for _, f := range s.Figures {
			fmt.Fprintf(&b, "| %s, %s | %s | %s | %s | %s | %d | %s | %s |\n", f.Name, f.Unit, show(f.median()),
				show(f.quantile(0)), show(f.quantile(0.9)), show(f.quantile(1)), len(f.Samples), f.Aim, f.Includes)
		}
	}
	return b.String()
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

// commit names what is measured; a tree with changes says so.
func commit(root string) (string, error) {
	out, err := exec.Command("git", "-C", root, "describe", "--always", "--dirty", "--abbrev=10").Output()
	if err != nil {
		return "", fmt.Errorf("find the commit: %w", err)
	}
	return string(bytes.TrimSpace(out)), nil
}

// machine describes what the figures were taken on.
func machine() string {
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
