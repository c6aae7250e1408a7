package main

import (
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	function := func(lines int) string { return "package p\nfunc f() {" + strings.Repeat("\n", lines-1) + "}\n" }
	for name, test := range map[string]struct {
		path, text string
		want       string // part of the only finding; "" for none
	}{
		"fine":               {"a.go", function(maxFunction), ""},
		"long function":      {"a.go", function(maxFunction + 1), "f has 81 lines"},
		"long test":          {"a_test.go", function(maxFunction + 1), ""},
		"long file":          {"a.sh", strings.Repeat("\n", maxFile+1), "801 lines"},
		"longest file":       {"a.sh", strings.Repeat("\n", maxFile), ""},
		"unfinished":         {"a.sh", "# TODO: all", "a.sh:1: finish it"},
		"part of a word":     {"a.sh", "MXXXL TODOS", ""},
		"machine":            {"a.md", "see\n/home/someone/x", "a.md:2: a path"},
		"not a machine":      {"a.md", "see test/work/x and https://example.org/home/x", ""},
		"skip":               {"a_test.go", "package p\nfunc f() { t.Skipf(\"no\") }\n", "no test is skipped"},
		"skip, not a test":   {"a.go", "package p\nfunc f() { r.Skip() }\n", ""},
		"sleep":              {"a_test.go", "package p\nfunc f() { time.Sleep(1) }\n", "a_test.go:2:12: tests don't sleep"},
		"sleep in text":      {"a_test.go", "package p\nvar s = \"time.Sleep(1)\"\n", ""},
		"sleep, not a test":  {"a.go", "package p\nfunc f() { time.Sleep(1) }\n", ""},
		"not a Go file":      {"a.go", "packag p", "expected 'package'"},
		"these examples too": {"hack/house/main_test.go", "TODO", ""},
	} {
		t.Run(name, func(t *testing.T) {
			found := check(test.path, test.text)
			switch {
			case test.want == "" && len(found) > 0:
				t.Errorf("found %q", found)
			case test.want != "" && (len(found) != 1 || !strings.Contains(found[0], test.want)):
				t.Errorf("found %q, want %q", found, test.want)
			}
		})
	}
}
