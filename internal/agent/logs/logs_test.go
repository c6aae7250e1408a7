package logs_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
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

func TestRotate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	r := logs.Rotation{MaxSize: 10, MaxFiles: 3}
	now := time.Unix(1_700_000_000, 0)
	for i := range 6 {
		write(t, path, fmt.Sprintf("generation %d", i))
		now = now.Add(time.Second)
		if err := r.Rotate(path, now, func() error { return os.WriteFile(path, nil, 0o640) }); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != 3 {
		t.Fatalf("files %v, %v", files, err)
	}
	f, err := os.Open(files[1])
	if err != nil || !strings.HasSuffix(files[1], ".gz") {
		t.Fatalf("%s: %v", files[1], err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(z); err != nil || !strings.Contains(string(data), "generation 4") {
		t.Errorf("%q, %v", data, err)
	}
	// Small logs stay, and a runtime that does not reopen keeps its file.
	write(t, path, "x")
	r.MaxSize = 1 << 20
	if err := r.Rotate(path, now, func() error { t.Error("reopened"); return nil }); err != nil {
		t.Error(err)
	}
	r.MaxSize = 1
	if err := r.Rotate(path, now, func() error { return errors.New("no") }); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
	if err := r.Rotate(filepath.Join(t.TempDir(), "none"), now, nil); err != nil {
		t.Error(err)
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
