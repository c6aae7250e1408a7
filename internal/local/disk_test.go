package local

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDisk: a machine's disk keeps what is on it while it is detached, is full when it was filled and has room again, and
// goes with what was on it when the machine is wiped.
func TestDisk(t *testing.T) {
	if err := CheckDisks(); err != nil {
		t.Fatal(err)
	}
	const size = 64 << 20
	c, _ := alone(t, "exit")
	m := c.Machines[0]
	attach := func() {
		t.Helper()
		for range 2 { // the second one finds it there
			if err := c.attachDisks(t.Context(), size); err != nil {
				t.Fatal(err)
			}
		}
	}
	attach()
	t.Cleanup(func() {
		if err := detachBelow(c.Dir); err != nil {
			t.Error(err)
		}
	})
	mark := filepath.Join(m.DataDir(), "joined")
	if err := os.WriteFile(mark, []byte("yes"), 0o600); err != nil {
		t.Fatal(err)
	}
	write := func() error {
		return os.WriteFile(filepath.Join(m.DataDir(), "more"), bytes.Repeat([]byte("x"), 1<<20), 0o600)
	}
	if err := m.Fill(true); err != nil {
		t.Fatal(err)
	}
	if err := write(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("a full disk takes more: %v", err)
	}
	for range 2 { // also when it has room already
		if err := m.Fill(false); err != nil {
			t.Fatal(err)
		}
	}
	if err := write(); err != nil {
		t.Errorf("a disk with room again takes nothing: %v", err)
	}

	if err := detachBelow(m.DataDir()); err != nil {
		t.Fatal(err)
	}
	if m.joined() {
		t.Error("what is on the disk is there without it")
	}
	if err := m.Fill(true); err == nil {
		t.Error("the disk of all was filled")
	}
	attach()
	if !m.joined() {
		t.Error("the disk has lost what was on it")
	}

	if err := m.Wipe(t.Context()); err != nil {
		t.Fatal(err)
	}
	attach()
	if m.joined() {
		t.Error("a machine that was wiped knows of its cluster")
	}
}
