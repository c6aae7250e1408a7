package dns

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestUpstreams(t *testing.T) {
	own := netip.MustParseAddr("10.43.0.10")
	for _, c := range []struct {
		name, config string
		want         []string
	}{
		{name: "empty"},
		{name: "servers", config: "search example.org\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n",
			want: []string{"192.0.2.1:53", "[2001:db8::1]:53"}},
		{name: "ourselves", config: "nameserver 10.43.0.10\nnameserver 192.0.2.1\n", want: []string{"192.0.2.1:53"}},
		{name: "ourselves in another form", config: "nameserver ::ffff:10.43.0.10\n"},
		{name: "nonsense", config: "nameserver localhost\nnameserver 0.0.0.0\n"},
	} {
		path := filepath.Join(t.TempDir(), "resolv.conf")
		if err := os.WriteFile(path, []byte(c.config), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := Upstreams(path, own); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q; want %q", c.name, got, c.want)
		}
	}
	if got := Upstreams(filepath.Join(t.TempDir(), "none"), own); got != nil {
		t.Errorf("no file: %q", got)
	}
}
