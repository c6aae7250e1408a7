package job

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestIndexes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const completions = 40
		a := rapid.SliceOf(rapid.IntRange(0, completions-1)).Draw(t, "a")
		b := rapid.SliceOf(rapid.IntRange(0, completions-1)).Draw(t, "b")
		sa, sb := indexes(nil).with(a...), indexes(nil).with(b...)
		union := sa.union(sb)
		in := func(list []int) map[int]bool {
			m := map[int]bool{}
			for _, n := range list {
				m[n] = true
			}
			return m
		}
		ma, mb := in(a), in(b)
		total, both := 0, 0
		var absent []int
		for n := range completions {
			if sa.has(n) != ma[n] || union.has(n) != (ma[n] || mb[n]) {
				t.Fatalf("%d: %v %v %v", n, sa, sb, union)
			}
			if ma[n] || mb[n] {
				total++
			} else {
				absent = append(absent, n)
			}
			if ma[n] && mb[n] {
				both++
			}
		}
		if union.total() != total || sa.overlap(sb) != both {
			t.Fatalf("total %d, want %d; overlap %d, want %d", union.total(), total, sa.overlap(sb), both)
		}
		if back := parseIndexes(union.String(), completions); back.String() != union.String() || !slices.Equal(back, union) {
			t.Fatalf("%q comes back as %q", union, back)
		}
		n := rapid.IntRange(0, completions).Draw(t, "n")
		if got := union.missing(n, completions); !slices.Equal(got, absent[:min(n, len(absent))]) {
			t.Fatalf("missing %v, want %v of %v", got, n, absent)
		}
	})
}

func TestIndexesText(t *testing.T) {
	for text, want := range map[string]string{
		"":          "",
		"0":         "0",
		"0,1":       "0,1",
		"0-2":       "0-2",
		"0,2-4,9":   "0,2-4,9",
		"1,x,3-y,5": "1,5",
		"8-20":      "8,9",
		"12":        "",
		"3,4,5":     "3-5",
	} {
		if got := parseIndexes(text, 10).String(); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
