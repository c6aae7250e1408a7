package report

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSamples(t *testing.T) {
	for _, c := range []struct {
		samples     Samples
		median, p90 float64
	}{
		{nil, 0, 0},
		{Samples{3}, 3, 3},
		{Samples{4, 1}, 2.5, 4},
		{Samples{5, 1, 3}, 3, 5},
		{Samples{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}, 5.5, 10},
	} {
		if got := c.samples.Median(); got != c.median {
			t.Errorf("median of %v is %v, want %v", c.samples, got, c.median)
		}
		if got := c.samples.Quantile(0.9); got != c.p90 {
			t.Errorf("p90 of %v is %v, want %v", c.samples, got, c.p90)
		}
	}
}

func TestRatioIsAboveOneWhereTheFirstSideDoesBetter(t *testing.T) {
	for _, c := range []struct {
		better      string
		mine, other float64
		want        float64
	}{
		{"more", 400, 100, 4},
		{"more", 100, 400, 0.25},
		{"less", 100, 400, 4},
		{"less", 0, 400, 0},
		{"", 100, 400, 0},
	} {
		f := Figure{Better: c.better, Sides: []Side{{"a", Samples{c.mine}}, {"b", Samples{c.other}}}}
		if got := f.Ratio(1); got != c.want {
			t.Errorf("%s of %v and %v: %v, want %v", c.better, c.mine, c.other, got, c.want)
		}
	}
}

func TestPage(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, "docs"), 0o755); err != nil {
		t.Fatal(err)
	}
	page, err := Load(root)
	if err != nil {
		t.Fatal(err)
	}
	alone := Section{Name: "one", Title: "One"}
	alone.Add(Figure{Name: "start", Unit: "ms", Aim: "10"}, "", 7)
	alone.Add(Figure{Name: "start", Unit: "ms", Aim: "10"}, "", 9)
	both := Section{Name: "two", Title: "Two"}
	both.Add(Figure{Name: "creates", Unit: "1/s", Better: "more"}, "ours", 500)
	both.Add(Figure{Name: "creates", Unit: "1/s", Better: "more"}, "theirs", 125)
	page.Put(alone)
	page.Put(both)
	if err := page.Write(root); err != nil {
		t.Fatal(err)
	}

	data, err := os.ReadFile(filepath.Join(root, pageJSON))
	if err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(string(data), "\n"); lines != 4 {
		t.Errorf("two sections take %d lines, want one each and two around them:\n%s", lines, data)
	}

	// What a later run measures takes the place of its own section alone.
	if page, err = Load(root); err != nil {
		t.Fatal(err)
	}
	again := Section{Name: "one", Title: "One"}
	again.Add(Figure{Name: "start", Unit: "ms"}, "", 5)
	page.Put(again)
	text := page.Markdown()
	for _, want := range []string{"| start, ms | 5.00 | 5.00 | 5.00 | 5.00 | 1 |", "| creates, 1/s | 500 (500–500) | 125 (125–125) | 4.00× | 1 |"} {
		if !strings.Contains(text, want) {
			t.Errorf("the page lacks %q:\n%s", want, text)
		}
	}
}

// The first side is the one that the others are compared with, whoever came first.
func TestOrder(t *testing.T) {
	s := Section{Name: "one", Title: "One"}
	s.Add(Figure{Name: "CPU", Unit: "s", Better: "less"}, "theirs", 20)
	s.Add(Figure{Name: "CPU", Unit: "s", Better: "less"}, "ours", 5)
	s.Order("ours", "theirs")
	if text := (&Page{Sections: []Section{s}}).Markdown(); !strings.Contains(text, "| figure | ours | theirs | ratio |") ||
		!strings.Contains(text, "| CPU, s | 5.00 (5.00–5.00) | 20.0 (20.0–20.0) | 4.00× | 1 |") {
		t.Error(text)
	}
}
