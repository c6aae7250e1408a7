// Package clients shows that what people point at a Kubernetes API works with Barque's: controller-runtime's own
// suites, as envtest runs them; Helm 4, by its Go SDK; and an operator whose servers die. It is a module of its own, so
// that Helm's dependencies stay out of Barque's. `make clients` runs it; it needs neither root nor network, for the
// nodes are played by the tests.
package clients

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"
)

var (
	root          string // of the repository
	barqueProgram string // bin/barque
)

func TestMain(m *testing.M) {
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "tests of clients can't run here:", err)
		os.Exit(1)
	}
	ctrllog.SetLogger(logr.Discard())
	klog.SetLogger(logr.Discard())
	os.Exit(m.Run())
}

func prepare() (err error) {
	if root, err = filepath.Abs(filepath.Join("..", "..")); err != nil {
		return err
	}
	if barqueProgram = os.Getenv("BARQUE_PROGRAM"); barqueProgram == "" {
		barqueProgram = filepath.Join(root, "bin", "barque")
	}
	if _, err := os.Stat(barqueProgram); err != nil {
		return fmt.Errorf("%w: run `make clients`", err)
	}
	return nil
}
