package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"barque.dev/internal/api"
)

func TestPageIsCurrent(t *testing.T) {
	root := filepath.Join("..", "..")
	is, err := os.ReadFile(page(root))
	if err != nil {
		t.Fatal(err)
	}
	want, err := replace(string(is), table(api.Resources()))
	if err != nil {
		t.Fatal(err)
	}
	if string(is) != want {
		t.Error("docs/api.md is not current: go run ./hack/apitable")
	}
}

func TestReplace(t *testing.T) {
	got, err := replace("a\n"+begin+"old\n"+end+"b\n", "new\n")
	if want := "a\n" + begin + "new\n" + end + "b\n"; err != nil || got != want {
		t.Errorf("%q %v, want %q", got, err, want)
	}
	for _, text := range []string{"", begin, end} {
		if _, err := replace(text, "x"); err == nil {
			t.Errorf("%q is taken for a page", text)
		}
	}
}

func TestTable(t *testing.T) {
	text := table(api.Resources())
	for _, line := range []string{
		"| core | ConfigMap | configmaps (cm) | v1 | namespace | all |  |\n",
		"| authentication.k8s.io | TokenReview | tokenreviews | v1 | cluster | create |  |\n",
	} {
		if !strings.Contains(text, line) {
			t.Errorf("the table lacks %q", line)
		}
	}
	if strings.Count(text, "\n") != len(api.Resources())+2 {
		t.Error("not a line a resource")
	}
}
