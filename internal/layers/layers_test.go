// Package layers holds the tree to its layers (docs/architecture.md): imports point down only,
// and k8s.io/kubernetes has one importer.
package layers

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "barque.dev/"

// layer ranks the first path element below internal/. Within one layer above L1, packages do
// not import each other.
var layer = map[string]int{
	"run": 0, "reconnect": 0, "testkit": 0, "tracing": 0,
	"store": 1, "api": 1,
	"auth": 2, "admission": 2, "client": 2, "cluster": 2, "encryption": 2, "pki": 2, "runtime": 2,
	"apiserver": 3, "scheduler": 3, "controllers": 3, "agent": 3, "network": 3,
	"compose": 4, "dockerapi": 4, "delivery": 4, "registry": 4,
	"cli": 5, "node": 5, "local": 5, "drill": 5,
	"layers": 6,
}

// allowedPeers are the imports inside layer 5, which composes, in the one direction that they go.
var allowedPeers = map[string]bool{"cli → node": true, "cli → local": true, "cli → drill": true, "drill → local": true}

func TestImportsPointDown(t *testing.T) {
	files := 0
	root := filepath.Join("..", "..")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() && (rel == "test" || strings.HasPrefix(d.Name(), ".") && rel != ".") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		files++
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, imp := range f.Imports {
			name, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			check(t, rel, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Fatalf("only %d Go files found: the test looks in the wrong place", files)
	}
}

func check(t *testing.T, file, imported string) {
	t.Helper()
	from := area(filepath.ToSlash(file))
	if strings.HasPrefix(imported, "k8s.io/kubernetes/") && from != "api" {
		t.Errorf("%s imports %s: internal/api alone may", file, imported)
	}
	to, ok := strings.CutPrefix(imported, module)
	if !ok || from == "" {
		return
	}
	target := area(to)
	if target == "" || target == from {
		return
	}
	lf, okFrom := layer[from]
	lt, okTo := layer[target]
	if !okFrom || !okTo {
		t.Errorf("%s (%s) imports %s (%s): give both a layer", file, from, imported, target)
		return
	}
	test := strings.HasSuffix(file, "_test.go")
	switch {
	case from == "testkit" || test: // a test may stand on anything
	case target == "testkit" && !strings.HasSuffix(filepath.Dir(file), "test"):
		t.Errorf("%s imports %s: tests and what serves them may", file, imported)
	case lt > lf:
		t.Errorf("%s (layer %d) imports %s (layer %d): imports point down only", file, lf, imported, lt)
	case lt == lf && lf > 1 && !allowedPeers[from+" → "+target]:
		t.Errorf("%s imports %s: packages of one layer meet through API objects", file, imported)
	}
}

// area is the first path element below internal/, or "" for files outside it.
func area(path string) string {
	rest, ok := strings.CutPrefix(path, "internal/")
	if !ok {
		return ""
	}
	first, _, _ := strings.Cut(rest, "/")
	return first
}
