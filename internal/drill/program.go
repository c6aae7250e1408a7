package drill

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"barque.dev/internal/drill/fault"
)

// programs is where the file is that the machines run, if the drill replaces it: the user's own stays as it is.
func (d *drill) programs() string { return d.Dir + "-program" }

// machineProgram is the file that the machines' processes are started from.
func (d *drill) machineProgram() string {
	if !fault.ReplaceProgram(d.kinds) {
		return d.Program
	}
	return filepath.Join(d.programs(), "barque")
}

// placeProgram puts the program where the machines run it from.
func (d *drill) placeProgram() error {
	if !fault.ReplaceProgram(d.kinds) {
		return nil
	}
	if err := os.MkdirAll(d.programs(), 0o755); err != nil {
		return fmt.Errorf("make a directory for the program, beside --dir: %w", err)
	}
	return d.writeProgram(d.machineProgram())
}

// writeProgram writes the program as it is, but for so many bytes more at its end as there were upgrades, which nobody reads: it does
// the same, and is another file.
func (d *drill) writeProgram(path string) error {
	data, err := os.ReadFile(d.Program)
	if err != nil {
		return fmt.Errorf("read the program: %w", err)
	}
	if err := os.WriteFile(path, append(data, bytes.Repeat([]byte{0}, d.upgrades)...), 0o755); err != nil {
		return fmt.Errorf("write the program: %w", err)
	}
	return nil
}

// upgrade gives all machines another program.
func (d *drill) upgrade(ctx context.Context) error {
	d.upgrades++
	next := filepath.Join(d.programs(), "upgrade")
	if err := d.writeProgram(next); err != nil {
		return err
	}
	return d.barque(ctx, "upgrade", "--program", next, "--kubeconfig", d.cluster.Kubeconfig())
}
