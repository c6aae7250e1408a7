package snapshot

import (
	"archive/zip"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// zipped is what k3s makes of a snapshot: the file's name, its time, deflated, and sizes that follow the content.
func zipped(t *testing.T, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for name, content := range files {
		out, err := w.CreateHeader(&zip.FileHeader{Name: name, Method: zip.Deflate, Modified: noon.Round(time.Second)})
		if err == nil {
			_, err = out.Write(content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestCompressedByK3s unpacks what `k3s etcd-snapshot save --etcd-snapshot-compress` writes, and refuses it when it is damaged.
func TestCompressedByK3s(t *testing.T) {
	h := newHarness(t)
	for i := range 50 {
		put(t, h.member, "/registry/k"+string(rune('A'+i)), strings.Repeat("v", 1000))
	}
	s, err := h.member.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var raw bytes.Buffer
	_, err = s.WriteTo(&raw)
	s.Close()
	if err != nil {
		t.Fatal(err)
	}
	const name = "on-demand-server-1-1764000000"
	whole := zipped(t, map[string][]byte{name: raw.Bytes()})
	file := filepath.Join(t.TempDir(), name+".zip")
	unpack := func(content []byte) (*Contents, error) {
		t.Helper()
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return Unpack(t.Context(), file, t.TempDir(), nil)
	}
	c, err := unpack(whole)
	if err != nil || c.Manifest != nil || c.Info.Keys != 50 || c.Info.Revision != s.Revision {
		t.Fatalf("%+v: %v", c, err)
	}
	noticed := 0 // behind the header, which says when it was written and more that does not count
	for at := 100; at < len(whole)-200; at += len(whole)/40 + 1 {
		changed := bytes.Clone(whole)
		changed[at] ^= 0x55
		if _, err := unpack(changed); errors.Is(err, ErrDamaged) {
			noticed++
		} else if err == nil {
			t.Errorf("byte %d of %d was changed, and nobody noticed", at, len(whole))
		}
	}
	if noticed < 20 {
		t.Errorf("%d changes were noticed", noticed)
	}
	for what, tt := range map[string]struct {
		content []byte
		want    string
	}{
		"cut":                    {whole[:len(whole)/2], "does not end as one"},
		"two files":              {zipped(t, map[string][]byte{"a": raw.Bytes(), "b": raw.Bytes()}), "a zip with 2 files"},
		"something else":         {zipped(t, map[string][]byte{"notes.txt": []byte(strings.Repeat("hello", 200))}), "something else in it"},
		"nothing":                {zipped(t, map[string][]byte{"empty": nil}), "can't be read"},
		"a database as it lies":  {zipped(t, map[string][]byte{name: raw.Bytes()[:raw.Len()-32]}), "has no checksum"},
		"another checksum of it": {zipped(t, map[string][]byte{name: append(bytes.Clone(raw.Bytes()[:raw.Len()-1]), raw.Bytes()[raw.Len()-1]^1)}), "checksum of etcd's database is wrong"},
	} {
		if _, err := unpack(tt.content); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", what, err, tt.want)
		}
	}
}
