package logs_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"barque.dev/internal/agent/logs"
)

func write(t *testing.T, path string, lines ...string) {
	t.Helper()
	var b strings.Builder
	for i, l := range lines {
		fmt.Fprintf(&b, "2026-01-01T00:00:%02dZ stdout F %s\n", i, l)
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o640); err != nil {
		t.Fatal(err)
	}
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	write(t, path, "one", "two", "three")
	two, five := int64(2), int64(5)
	for _, tt := range []struct {
		o    logs.Options
		want string
	}{
		{logs.Options{}, "one\ntwo\nthree\n"},
		{logs.Options{Tail: &two}, "two\nthree\n"},
		{logs.Options{LimitBytes: &five}, "one\nt"},
		{logs.Options{Since: time.Date(2026, 1, 1, 0, 0, 1, 500, time.UTC)}, "three\n"},
		{logs.Options{Tail: &two, Timestamps: true}, "2026-01-01T00:00:01.000000000Z two\n2026-01-01T00:00:02.000000000Z three\n"},
	} {
		var out bytes.Buffer
		if err := logs.Read(t.Context(), nil, path, "", tt.o, &out, &out); err != nil || out.String() != tt.want {
			t.Errorf("%+v: %q, %v", tt.o, out.String(), err)
		}
	}
	if got := logs.Tail(t.Context(), path, 2, 7); got != "\nthree\n" {
		t.Errorf("tail %q", got)
	}
}
