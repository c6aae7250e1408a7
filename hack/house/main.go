// Command house checks the rules of this repository that no linter knows. It reads the names of
// files from its arguments, and prints and fails on what breaks a rule.
package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strings"
)

const (
	maxFile     = 800 // lines
	maxFunction = 80  // lines; tables of tests may be longer
)

var (
	unfinished = regexp.MustCompile(`\b(TODO|FIXME|XXX)\b`)
	// A path of somebody's machine means nothing on another.
	machinePath = regexp.MustCompile(`(^|[\s"'(=:])/(home|Users|work)/[a-z]`)
)

func main() {
	broken := 0
	for _, path := range os.Args[1:] {
		text, err := os.ReadFile(path)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		for _, finding := range check(path, string(text)) {
			fmt.Fprintln(os.Stderr, finding)
			broken++
		}
	}
	if broken > 0 {
		os.Exit(1)
	}
}

// check returns what is wrong with a file, a line each.
func check(path, text string) []string {
	var found []string
	if strings.HasPrefix(path, "hack/house/") {
		return nil // its own examples break the rules
	}
	if n := strings.Count(text, "\n"); n > maxFile {
		found = append(found, fmt.Sprintf("%s: %d lines: split files over %d", path, n, maxFile))
	}
	for i, line := range strings.Split(text, "\n") {
		if unfinished.MatchString(line) {
			found = append(found, fmt.Sprintf("%s:%d: finish it, or file an issue: %s", path, i+1, strings.TrimSpace(line)))
		}
		if machinePath.MatchString(line) {
			found = append(found, fmt.Sprintf("%s:%d: a path of one machine: %s", path, i+1, strings.TrimSpace(line)))
		}
	}
	if strings.HasSuffix(path, ".go") {
		found = append(found, checkGo(path, text)...)
	}
	return found
}

func checkGo(path, text string) []string {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, text, parser.SkipObjectResolution)
	if err != nil {
		return []string{err.Error()}
	}
	test := strings.HasSuffix(path, "_test.go")
	var found []string
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			lines := files.Position(n.End()).Line - files.Position(n.Pos()).Line + 1
			if !test && lines > maxFunction {
				found = append(found, fmt.Sprintf("%s: %s has %d lines: split functions over %d", files.Position(n.Pos()), n.Name.Name, lines, maxFunction))
			}
		case *ast.CallExpr:
			if said := forbidden(n, test); said != "" {
				found = append(found, fmt.Sprintf("%s: %s", files.Position(n.Pos()), said))
			}
		}
		return true
	})
	return found
}

// forbidden says why a call must not be in a test, or nothing.
func forbidden(call *ast.CallExpr, test bool) string {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || !test {
		return ""
	}
	of, _ := method.X.(*ast.Ident)
	switch name := method.Sel.Name; {
	case name == "Skip" || name == "Skipf" || name == "SkipNow":
		return "no test is skipped: make it run, or remove it"
	case name == "Sleep" && of != nil && of.Name == "time":
		return "tests don't sleep: wait for the event, or use testkit.Poll"
	}
	return ""
}
