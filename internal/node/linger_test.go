package node

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestEntrance: what clients are told is what the user has in front of the servers, if there is something.
func TestEntrance(t *testing.T) {
	vip := netip.MustParseAddr("192.0.2.10")
	for _, c := range []struct {
		name string
		vip  netip.Addr
		want string
		san  string
	}{
		{"", netip.Addr{}, "", ""},
		{"", vip, "https://192.0.2.10:6443", ""},
		{"api.example.org", vip, "https://api.example.org:6443", "api.example.org"},
		{"api.example.org:443", netip.Addr{}, "https://api.example.org:443", "api.example.org"},
		{"192.0.2.1", netip.Addr{}, "https://192.0.2.1:6443", "192.0.2.1"},
		{"2001:db8::1", netip.Addr{}, "https://[2001:db8::1]:6443", "2001:db8::1"},
		{"[2001:db8::1]:443", netip.Addr{}, "https://[2001:db8::1]:443", "2001:db8::1"},
	} {
		s := &Server{cfg: ServerConfig{APIName: c.name, VIP: c.vip, HTTPSPort: 6443}}
		if err := s.cfg.checkEntrance(); err != nil {
			t.Errorf("%q: %v", c.name, err)
		}
		if got := s.entrance(); got != c.want {
			t.Errorf("%q, %v: clients are told %q, want %q", c.name, c.vip, got, c.want)
		}
		if got := strings.Join(s.tlsNames(), " "); got != c.san {
			t.Errorf("%q: certificates are for %q, want %q", c.name, got, c.san)
		}
	}
}

func TestCheckEntrance(t *testing.T) {
	for want, c := range map[string]ServerConfig{
		"--api-dns-name \"https://api\"":        {APIName: "https://api"},
		"--api-dns-name \"api_1.example.org\"":  {APIName: "api_1.example.org"},
		"choose a port":                         {APIName: "api:70000"},
		"--shutdown-delay-duration -1s: choose": {ShutdownDelay: -time.Second},
		"choose 0s to 1m0s":                     {ShutdownDelay: time.Hour},
		"--connection-age -1s: choose":          {ConnectionAge: -time.Second},
	} {
		if err := c.checkEntrance(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want …%s…", err, want)
		}
	}
}
