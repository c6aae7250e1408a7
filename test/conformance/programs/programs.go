// Package programs builds what a conformance run executes: upstream's e2e.test and kubectl of the
// release that the module requires, and the ginkgo that spreads specs over processes.
package programs

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Names of the programs in the cache folder.
const (
	E2E     = "e2e.test"
	Ginkgo  = "ginkgo"
	Kubectl = "kubectl"
)

// Kubernetes is the module whose release is tested against.
const Kubernetes = "k8s.io/kubernetes"

// stampFile says of what the programs in a folder were built.
const stampFile = "programs.stamp"

// Build builds the programs into dir, unless they are there and of the same modules and
// toolchain. Without Go's build cache it takes about ten minutes on two cores.
func Build(ctx context.Context, dir string, progress func(string, ...any)) error {
	version, err := Version(ctx)
	if err != nil {
		return err
	}
	stamp, err := stamp(version)
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(filepath.Join(dir, stampFile)); err == nil && string(old) == stamp && complete(dir) {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the cache folder: %w", err)
	}
	flags := ldflags(version)
	for _, b := range [][]string{
		{"build", "-o", filepath.Join(dir, Ginkgo), "github.com/onsi/ginkgo/v2/ginkgo"},
		{"build", "-ldflags", flags, "-o", filepath.Join(dir, Kubectl), Kubernetes + "/cmd/kubectl"},
		{"test", "-c", "-vet=off", "-ldflags", flags, "-o", filepath.Join(dir, E2E), Kubernetes + "/test/e2e"},
	} {
		progress("building %s of %s %s", b[len(b)-1], Kubernetes, version)
		if err := Go(ctx, b...); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, stampFile), []byte(stamp), 0o644)
}

func complete(dir string) bool {
	for _, name := range []string{E2E, Ginkgo, Kubectl} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

// Version is the release of Kubernetes that go.mod requires.
func Version(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", Kubernetes).Output()
	if err != nil {
		return "", fmt.Errorf("find the version of %s: %w", Kubernetes, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Dir is where the module of Kubernetes is unpacked.
func Dir(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", Kubernetes).Output()
	if err != nil {
		return "", fmt.Errorf("find the files of %s: %w", Kubernetes, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// stamp changes whenever the programs have to be built again.
func stamp(version string) (string, error) {
	mod, err := os.ReadFile("go.mod")
	if err != nil {
		return "", fmt.Errorf("run this in the folder of its module: %w", err)
	}
	sum := sha256.Sum256(append(mod, runtime.Version()...))
	return version + " " + hex.EncodeToString(sum[:]), nil
}

// ldflags tell the programs their release, as upstream's build does.
func ldflags(version string) string {
	const where = "k8s.io/component-base/version."
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	return fmt.Sprintf("-s -w -X %[1]sgitVersion=%[2]s -X %[1]sgitMajor=%[3]s -X %[1]sgitMinor=%[4]s", where, version, major, minor)
}

// Go runs the go command. What it builds needs no C library when it runs.
func Go(ctx context.Context, args ...string) error {
	args = slices.Insert(args, 1, "-tags=netgo,osusergo")
	cmd := exec.CommandContext(ctx, "go", args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
