package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"barque.dev/internal/pki"
	"barque.dev/internal/pki/expiry"
)

func TestSpan(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"none": 0, "0m1s": time.Second, "59m59s": time.Hour - time.Second, "47h59m": 48*time.Hour - time.Second,
		"2d0h": 48 * time.Hour, "365d1h": 365*24*time.Hour + 119*time.Minute,
	} {
		if got := span(d); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
	if got := span(-time.Hour); got != "none" {
		t.Errorf("in the past: %q", got)
	}
}

func TestWantsAttention(t *testing.T) {
	if err := wantsAttention(expiry.Report{}, 0); err != nil {
		t.Error(err)
	}
	for want, tt := range map[string]struct {
		silent []string
		count  int
	}{
		"one certificate wants":                       {nil, 1},
		"2 certificates want":                         {nil, 2},
		"of s2, s3, which did not":                    {[]string{"s2", "s3"}, 0},
		"one certificate wants attention; not all is": {[]string{"s2"}, 1},
	} {
		if err := wantsAttention(expiry.Report{Silent: tt.silent}, tt.count); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// The files of a server that does not run are looked at.
func TestCertsOfAStoppedServer(t *testing.T) {
	dir := t.TempDir()
	a, err := pki.Create(filepath.Join(dir, "pki"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "role"), []byte("server\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "certs"), 0o700); err != nil {
		t.Fatal(err)
	}
	issue := func(name string, at time.Time) {
		pair, err := a.Cluster.Issue(pki.Client("barque:server:s1"), at)
		if err != nil {
			t.Fatal(err)
		}
		if err := pki.WritePair(filepath.Join(dir, "certs", name+".crt"), filepath.Join(dir, "certs", name+".key"), pair); err != nil {
			t.Fatal(err)
		}
	}
	issue("server-client", time.Now())
	code, out, errs := barque(t, "certs", "--data-dir", dir)
	if code != 0 || !strings.Contains(out, "front-proxy-ca") || !strings.Contains(out, "server-client") || !strings.Contains(errs, "no barque runs") {
		t.Errorf("code %d: %s%s", code, out, errs)
	}
	issue("apiserver", time.Now().Add(-pki.Validity))
	if code, out, _ = barque(t, "certs", "--data-dir", dir, "-o", "json"); code != 1 || !strings.Contains(out, `"attention": "expired"`) {
		t.Errorf("code %d: %s", code, out)
	}
	refused(t, 1, "one certificate wants attention", "certs", "--data-dir", dir)
	refused(t, 1, "is not the data directory of a barque", "certs", "--data-dir", t.TempDir())
}

// A kubeconfig that has expired says so by itself.
func TestCertsByAnExpiredKubeconfig(t *testing.T) {
	a, err := pki.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config")
	if err := a.WriteAdminKubeconfig(path, "x", nowhere, time.Hour, time.Now().Add(-2*time.Hour)); err != nil {
		t.Fatal(err)
	}
	refused(t, 1, "take a new kubeconfig from a server", "certs", "--kubeconfig", path)
}
