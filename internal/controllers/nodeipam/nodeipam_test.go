package nodeipam

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"
)

func TestFirstFree(t *testing.T) {
	prefix := netip.MustParsePrefix
	tests := []struct {
		cluster string
		used    []string
		want    string
	}{
		{"10.42.0.0/16", nil, "10.42.0.0/24"},
		{"10.42.0.0/16", []string{"10.42.0.0/24", "10.42.2.0/24"}, "10.42.1.0/24"},
		{"10.42.0.0/16", []string{"10.42.0.0/17"}, "10.42.128.0/24"},
		{"10.42.0.0/23", []string{"10.42.0.0/24", "10.42.1.0/24"}, ""},
		{"255.255.254.0/23", []string{"255.255.254.0/24", "255.255.255.0/24"}, ""},
	}
	for _, tt := range tests {
		var used []netip.Prefix
		for _, u := range tt.used {
			used = append(used, prefix(u))
		}
		got, ok := firstFree(prefix(tt.cluster), 24, used)
		if ok != (tt.want != "") || ok && got != prefix(tt.want) {
			t.Errorf("firstFree(%s, %v) = %v, %v; want %q", tt.cluster, tt.used, got, ok, tt.want)
		}
	}
}

func TestFirstFreeNeverOverlaps(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cluster := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, 0, 0}), rapid.IntRange(19, 24).Draw(t, "bits"))
		var used []netip.Prefix
		for {
			p, ok := firstFree(cluster, NodeBits, used)
			if !ok {
				break
			}
			for _, u := range used {
				if u.Overlaps(p) {
					t.Fatalf("%s overlaps %s", p, u)
				}
			}
			used = append(used, p)
		}
		if want := 1 << (NodeBits - cluster.Bits()); len(used) != want {
			t.Fatalf("%s holds %d ranges, want %d", cluster, len(used), want)
		}
	})
}
