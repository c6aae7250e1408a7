package api

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration"
)

// upstreamPriorities reads the priorities that kube-apiserver registers its versions with out of its source: they
// are nowhere else.
func upstreamPriorities(t *testing.T) map[schema.GroupVersion]Priority {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes").Output()
	if err != nil {
		t.Fatalf("find the kubernetes module: %v", err)
	}
	entry := regexp.MustCompile(`\{Group: "([^"]*)", Version: "([^"]*)"\}:\s*\{Group: (\d+), Version: (\d+)\}`)
	found := map[schema.GroupVersion]Priority{}
	for _, name := range []string{"pkg/controlplane/apiserver/aggregator.go", "cmd/kube-apiserver/app/aggregator.go"} {
		source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), name))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range entry.FindAllStringSubmatch(string(source), -1) {
			group, _ := strconv.ParseInt(m[3], 10, 32)
			version, _ := strconv.ParseInt(m[4], 10, 32)
			found[schema.GroupVersion{Group: m[1], Version: m[2]}] = Priority{Group: int32(group), Version: int32(version)}
		}
	}
	return found
}

func TestPrioritiesEqualUpstream(t *testing.T) {
	want := upstreamPriorities(t)
	if len(want) < 40 {
		t.Fatalf("only %d priorities found upstream", len(want))
	}
	for _, gv := range stableGroups() {
		if gv.Group == apiregistration.GroupName {
			continue // it has no APIService
		}
		if got := PriorityOf(gv); got != want[gv] {
			t.Errorf("%s has priority %v, want %v", gv, got, want[gv])
		}
	}
	if got := PriorityOf(schema.GroupVersion{Group: "example.com", Version: "v1"}); got != (Priority{Group: 1000, Version: 100}) {
		t.Errorf("custom resources have priority %v", got)
	}
}
