// Package portability shows that the state is nobody's prisoner: what Barque writes to etcd a
// stock kube-apiserver reads, changes and deletes, and the other way round, byte for byte the
// same. It is a module of its own, since it builds a stock kube-apiserver. `make portability`
// builds that and runs the tests; they need neither root nor network.
package portability

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

var (
	barqueProgram string // bin/barque
	stockProgram  string // kube-apiserver of the release that Barque serves
)

func TestMain(m *testing.M) {
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "portability tests can't run here:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func prepare() error {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		return err
	}
	stockProgram = filepath.Join(root, ".cache", "kube-apiserver")
	if barqueProgram = os.Getenv("BARQUE_PROGRAM"); barqueProgram == "" {
		barqueProgram = filepath.Join(root, "bin", "barque")
	}
	for _, program := range []string{barqueProgram, stockProgram} {
		if _, err := os.Stat(program); err != nil {
			return fmt.Errorf("%w: run `make portability`", err)
		}
	}
	return nil
}
