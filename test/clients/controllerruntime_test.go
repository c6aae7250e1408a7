package clients

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ginkgo "github.com/onsi/ginkgo/v2/types"

	// What the suites need must be among this module's requirements.
	_ "sigs.k8s.io/controller-runtime"
	_ "sigs.k8s.io/controller-runtime/pkg/envtest"
	_ "sigs.k8s.io/controller-runtime/pkg/metrics/filters"
)

const controllerRuntime = "sigs.k8s.io/controller-runtime"

// A suite is one of controller-runtime's packages whose tests start an API server by envtest.
type suite struct {
	// pkg is its path below pkg/.
	pkg string
	// args choose some of its tests, if not all of them can be asked of one cluster, and part says which.
	args []string
	part string
	// differs are specs that don't pass, and why. Each of them must fail.
	differs map[string]string
	// apart are specs that on a busy machine may wait for ever, and why. They don't run among the others, so that those
	// need not wait with them.
	apart map[string]string
}

// suites are all of them but those that test the starting of stock's programs (pkg/internal/testing). The longest are
// in parts, which run beside each other.
func suites() []suite {
	return []suite{
		{pkg: "manager"},
		{pkg: "cache", part: "several namespaces", args: []string{"-test.run=^TestSource$", "-ginkgo.focus=Multi-Namespace Informer Cache"}},
		{pkg: "cache", part: "without copies", args: []string{"-test.run=^TestSource$", "-ginkgo.focus=Informer Cache without global"}},
		{pkg: "cache", part: "others", args: []string{"-ginkgo.skip=Multi-Namespace Informer Cache|Informer Cache without global"}, differs: map[string]string{
			"Informer Cache with ReaderFailOnMissingInformer Cache test with ReaderFailOnMissingInformer = true as a Reader with structured objects should be able to list objects that are configured to be watched": "it expects that kubernetes is the only Service; kube-dns is there too",
		}},
		{pkg: "builder"},
		{pkg: "client"},
		// Its other half is for servers without aggregated discovery, that is of 1.26 and before.
		{pkg: "client/apiutil", part: "aggregated discovery", args: []string{"-test.run=^TestLazyRestMapperProvider$/^aggregatedDiscovery=true$"}},
		{pkg: "cluster"},
		{pkg: "controller"},
		{pkg: "controller/controllerutil"},
		{pkg: "envtest"},
		{pkg: "handler"},
		{pkg: "internal/controller", apart: map[string]string{
			"when manager is stopped with warmup runnable and with leader election enabled":    leftOpen,
			"when manager is stopped with warmup runnable and without leader election enabled": leftOpen,
		}},
		{pkg: "internal/recorder"},
		// Each of the two makes an object of the same name.
		{pkg: "manager/internal/integration", part: "warmed up", args: []string{"-ginkgo.focus=warmup enabled"}},
		{pkg: "manager/internal/integration", part: "cold", args: []string{"-ginkgo.focus=warmup not enabled"}},
		{pkg: "metrics/filters"},
		{pkg: "reconcile"},
		{pkg: "source"},
		{pkg: "webhook"},
	}
}

const leftOpen = "it ends the API server to get rid of connections; this one goes on, and so does a connection that brings an event away when it looks"

// TestControllerRuntime runs controller-runtime's own tests, each package against a control plane of its own. Envtest
// starts an API server and nothing else, and leaves service accounts out; so does this.
func TestControllerRuntime(t *testing.T) {
	t.Parallel()
	sources := moduleDir(t, controllerRuntime)
	built := newPrograms(t)
	ctx := t.Context()
	for _, s := range suites() {
		t.Run(path.Join(s.pkg, s.part), func(t *testing.T) {
			t.Parallel()
			binary, err := built.of(ctx, s.pkg)
			if err != nil {
				t.Fatal(err)
			}
			s.run(t, binary, filepath.Join(sources, "pkg", filepath.FromSlash(s.pkg)))
		})
	}
}

// moduleDir is where the sources of a module are.
func moduleDir(t *testing.T, module string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		t.Fatalf("find the module %s: %v", module, err)
	}
	return strings.TrimSpace(string(out))
}

// programs are the suites', built when they are first needed.
type programs struct {
	dir  string
	made sync.Map // from the package to a func() (string, error)
}

// newPrograms keeps them in the repository's cache, as long as they are what this module's requirements and the compiler
// make them.
func newPrograms(t *testing.T) *programs {
	t.Helper()
	sum := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		sum.Write(data)
	}
	sum.Write([]byte(runtime.Version()))
	all := filepath.Join(root, ".cache", "clients")
	dir := filepath.Join(all, fmt.Sprintf("%x", sum.Sum(nil)[:8]))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	found, err := os.ReadDir(all)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if old := filepath.Join(all, f.Name()); old != dir {
			if err := os.RemoveAll(old); err != nil {
				t.Fatal(err)
			}
		}
	}
	return &programs{dir: dir}
}

// of is the program of a package's tests.
func (p *programs) of(ctx context.Context, pkg string) (string, error) {
	made, _ := p.made.LoadOrStore(pkg, sync.OnceValues(func() (string, error) { return p.compile(ctx, pkg) }))
	return made.(func() (string, error))() //nolint:forcetypeassert // as stored
}

func (p *programs) compile(ctx context.Context, pkg string) (string, error) {
	program := filepath.Join(p.dir, strings.ReplaceAll(pkg, "/", "-")+".test")
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-ldflags=-s -w", "-o", program+".new", controllerRuntime+"/pkg/"+pkg)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the tests of %s: %w\n%s", pkg, err, out)
	}
	return program, os.Rename(program+".new", program)
}

// suiteTimeout bounds a suite; the longest takes about a minute.
const suiteTimeout = 8 * time.Minute

// run runs the suite's program in the directory of its sources, where its test data is.
func (s suite) run(t *testing.T, binary, dir string) {
	t.Helper()
	others := s.args
	if len(s.apart) > 0 {
		others = append(slices.Clone(s.args), "-ginkgo.skip="+anyOf(slices.Collect(maps.Keys(s.apart))...))
	}
	r := runSpecs(t, binary, dir, startAPI(t), others...)
	t.Logf("%d passed, %d failed, %d were not run", r.passed, len(r.failed), r.waiting)
	if r.passed == 0 {
		t.Error("nothing has passed")
	}
	for name, why := range r.broken {
		t.Errorf("%s\n%s", name, why)
	}
	for name := range s.differs {
		if r.failed[name] == "" {
			t.Errorf("it need not differ any more, or was not run: %s", name)
		}
		delete(r.failed, name)
	}
	for name, why := range r.failed {
		if len(r.failed) > maxAgain {
			t.Errorf("%s\n%s", name, why)
			continue
		}
		t.Logf("failed among the others: %s\n%s", name, why)
		r.alone(t, binary, dir, name)
	}
	for name := range s.apart {
		r.alone(t, binary, dir, name)
	}
}

// Several of these specs ask who is first: whether an informer has synced before somebody looks that does not wait,
// whether a connection has gone within a second. Beside four busy loops on two cores every third attempt of the worst of
// them failed.
const (
	attempts = 6
	// maxAgain is how many specs of a suite may need further attempts; more don't just race.
	maxAgain = 3
)

// alone runs one of the suite's specs until it passes. Each attempt has a control plane of its own, since a failed one may
// leave behind what the next would wait for.
func (r results) alone(t *testing.T, binary, dir, name string) {
	t.Helper()
	for attempt := range attempts {
		again := runSpecs(t, binary, dir, startAPI(t), "-test.run=^"+r.entry+"$", "-ginkgo.focus="+anyOf(name), "-ginkgo.timeout=1m")
		if again.passed > 0 && len(again.failed) == 0 && len(again.broken) == 0 {
			return
		}
		t.Logf("attempt %d of %d: %d passed, failed: %v %v", attempt+1, attempts, again.passed, again.failed, again.broken)
	}
	t.Errorf("it has not passed in %d attempts: %s", attempts, name)
}

// anyOf is Ginkgo's pattern for specs whose names end so.
func anyOf(names ...string) string {
	var quoted []string
	for _, name := range names {
		quoted = append(quoted, regexp.QuoteMeta(name))
	}
	return "(" + strings.Join(quoted, "|") + ")$"
}

// startAPI starts what envtest starts, and returns the administrator's kubeconfig.
func startAPI(t *testing.T) string {
	t.Helper()
	return start(t, 1, "--disable=agent,scheduler,controllers", "--disable-admission-plugins=ServiceAccount").servers[0].Kubeconfig()
}

// runSpecs runs some of a suite's specs.
func runSpecs(t *testing.T, binary, dir, kubeconfig string, args ...string) results {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), suiteTimeout)
	defer cancel()
	report := filepath.Join(t.TempDir(), "report.json")
	cmd := exec.CommandContext(ctx, binary, append([]string{"-test.v", "-ginkgo.no-color", "-ginkgo.json-report=" + report}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "USE_EXISTING_CLUSTER=true", "KUBECONFIG="+kubeconfig)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	ended := cmd.Run()
	r, err := read(report, out.Bytes())
	if err != nil || ended != nil && len(r.failed)+len(r.broken) == 0 {
		t.Fatalf("the suite ended with %v, %v:\n%s", ended, err, tail(out.Bytes()))
	}
	return r
}

// results are a suite's: of Ginkgo's specs, and of tests beside them.
type results struct {
	passed  int
	waiting int               // of those that were chosen; their authors don't run them either
	failed  map[string]string // specs by their names, and why
	broken  map[string]string // tests, and what is run before and after specs
	entry   string            // the test that runs Ginkgo's specs, and ends as they do
}

var (
	verdict = regexp.MustCompile(`(?m)^\s*--- (PASS|FAIL|SKIP): (\S+)`)
	entry   = regexp.MustCompile(`(?m)^=== RUN\s+(\S+)\nRunning Suite:`)
)

// read takes Ginkgo's report, if there is one, and what the program printed.
func read(report string, out []byte) (results, error) {
	r := results{failed: map[string]string{}, broken: map[string]string{}}
	data, err := os.ReadFile(report)
	var suites []ginkgo.Report
	if err == nil {
		err = json.Unmarshal(data, &suites)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return r, fmt.Errorf("read the suite's report: %w", err)
	}
	for _, s := range suites {
		for _, reason := range s.SpecialSuiteFailureReasons {
			r.broken["the suite"] = reason
		}
		for _, spec := range s.SpecReports {
			r.count(spec)
		}
	}
	if found := entry.FindSubmatch(out); found != nil {
		r.entry = string(found[1])
	}
	for _, found := range verdict.FindAllSubmatch(out, -1) {
		switch name := string(found[2]); {
		case name == r.entry:
		case string(found[1]) == "PASS":
			r.passed++
		case string(found[1]) == "FAIL":
			r.broken[name] = tail(out)
		default:
			r.waiting++
		}
	}
	return r, nil
}

// count takes one of Ginkgo's specs; of what is run before and after them only failures count.
func (r *results) count(spec ginkgo.SpecReport) {
	failure := spec.FailureMessage() + "\n" + spec.FailureLocation().String()
	switch {
	case spec.LeafNodeType != ginkgo.NodeTypeIt:
		if spec.State.Is(ginkgo.SpecStateFailureStates) {
			r.broken[spec.LeafNodeType.String()] = failure
		}
	case spec.State.Is(ginkgo.SpecStateFailureStates):
		r.failed[spec.FullText()] = failure
	case spec.State == ginkgo.SpecStatePassed:
		r.passed++
	case spec.State == ginkgo.SpecStatePending || spec.Failure.Message != "": // or it skips itself
		r.waiting++
	}
}

func tail(out []byte) string { return string(out[max(0, len(out)-4000):]) }
