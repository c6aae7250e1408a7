package upgrade

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// A Phase is how far a replacement has come.
type Phase string

// Phases. None is a machine whose program was never replaced.
const (
	None      Phase = ""
	Staged    Phase = "staged"    // the program is there, and may be switched to
	Switching Phase = "switching" // the machine's process ends, or the new one has to show that it does
	Done      Phase = "done"      // the new program runs, and is ready
	Reverted  Phase = "reverted"  // the old one runs again
)

// A Record is what a machine's last replacement is, and has come to.
type Record struct {
	Phase Phase   `json:"phase"`
	From  Version `json:"from"`
	To    Version `json:"to"`
	// Sum is the SHA-256 of the program that is switched to, in hex.
	Sum string `json:"sum"`
	// Reason is why it was reverted.
	Reason string    `json:"reason,omitempty"`
	Time   time.Time `json:"time"`

	// Program is the file, Args the command line, of the machine's process, for the guard.
	Program string   `json:"program"`
	Args    []string `json:"args"`
	Process process  `json:"process"`
}

const recordFile = "upgrade.json"

// readRecord reads the record of the machine with the data directory; the zero Record if there is none.
func readRecord(dir string) (Record, error) {
	var r Record
	data, err := os.ReadFile(filepath.Join(dir, recordFile))
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		return r, fmt.Errorf("read what is known of the machine's last upgrade: %w", err)
	}
	return r, nil
}

func (r Record) write(dir string) error {
	r.Time = time.Now().UTC()
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	fill := func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
	if err := put(filepath.Join(dir, recordFile), 0o600, fill, nil); err != nil {
		return fmt.Errorf("note how the upgrade goes: %w", err)
	}
	return nil
}

func (r Record) next() string     { return r.Program + ".next" }
func (r Record) previous() string { return r.Program + ".previous" }
