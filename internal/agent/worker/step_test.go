package worker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"barque.dev/internal/agent/cri"
)

// TestLastWords: a message is the end of what the container wrote, and a container that makes the
// file larger than the node's memory does the node no harm.
func TestLastWords(t *testing.T) {
	for name, test := range map[string]struct {
		text, want string
		size       int64 // of the file, with a hole before the text
	}{
		"empty": {},
		"short": {text: "done", want: "done"},
		"long":  {text: strings.Repeat("x", maxMessage) + "the end", want: strings.Repeat("x", maxMessage-len("the end")) + "the end"},
		"huge":  {text: strings.Repeat("x", maxMessage), want: strings.Repeat("x", maxMessage), size: 1 << 42},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "message")
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte(test.text), max(test.size-int64(len(test.text)), 0)); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if got := lastWords(t.Context(), cri.Container{MessageFile: path}); got != test.want {
				t.Errorf("%d bytes that end in %q", len(got), got[max(len(got)-20, 0):])
			}
		})
	}
}
