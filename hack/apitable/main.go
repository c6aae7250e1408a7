// Command apitable writes into docs/api.md which resources the cluster serves, as package api has them. A test checks
// that the page is current.
package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"barque.dev/internal/api"
)

const (
	begin = "<!-- written by `go run ./hack/apitable` -->\n"
	end   = "<!-- until here -->\n"
)

func main() {
	if err := run("."); err != nil {
		fmt.Fprintln(os.Stderr, "apitable:", err)
		os.Exit(1)
	}
}

func page(root string) string { return filepath.Join(root, "docs", "api.md") }

func run(root string) error {
	was, err := os.ReadFile(page(root))
	if err != nil {
		return err
	}
	text, err := replace(string(was), table(api.Resources()))
	if err != nil {
		return err
	}
	return os.WriteFile(page(root), []byte(text), 0o600)
}

// replace puts a table where the page has one.
func replace(text, table string) (string, error) {
	before, rest, ok := strings.Cut(text, begin)
	if !ok {
		return "", fmt.Errorf("docs/api.md has no line %q", begin)
	}
	_, after, ok := strings.Cut(rest, end)
	if !ok {
		return "", fmt.Errorf("docs/api.md has no line %q", end)
	}
	return before + begin + table + end + after, nil
}

// table lists resources by group.
func table(all []*api.Resource) string {
	var out strings.Builder
	out.WriteString("| group | kind | resource | versions | scope | verbs | subresources |\n|---|---|---|---|---|---|---|\n")
	for _, r := range all {
		group, scope := r.Group, "cluster"
		if group == "" {
			group = "core"
		}
		if r.Namespaced {
			scope = "namespace"
		}
		name := r.Resource
		if len(r.ShortNames) > 0 {
			name += " (" + strings.Join(r.ShortNames, ", ") + ")"
		}
		fmt.Fprintf(&out, "| %s | %s | %s | %s | %s | %s | %s |\n", group, r.Kind, name, strings.Join(r.Served, ", "), scope, verbs(r.Verbs),
			strings.Join(slices.Sorted(maps.Keys(r.Subresources)), ", "))
	}
	return out.String()
}

// verbs is a list of them, in short where all are there.
func verbs(has []string) string {
	every := []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
	sorted := slices.Sorted(slices.Values(has))
	if slices.Equal(sorted, every) {
		return "all"
	}
	return strings.Join(sorted, ", ")
}
