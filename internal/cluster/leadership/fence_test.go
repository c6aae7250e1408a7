package leadership

import (
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"pgregory.net/rapid"
)

func TestPlan(t *testing.T) {
	value := func(term uint64, transitions int32, holder string) *mvccpb.KeyValue {
		return &mvccpb.KeyValue{Value: []byte(fence{term, transitions, holder}.String())}
	}
	for _, c := range []struct {
		what  string
		found *mvccpb.KeyValue
		want  step
		mine  fence
	}{
		{"nothing", nil, create, fence{7, 0, "me"}},
		{"an older leader's", value(6, 3, "other"), remove, fence{7, 4, "me"}},
		{"mine of an older term", value(5, 3, "me"), remove, fence{7, 3, "me"}},
		{"mine", value(7, 3, "me"), hold, fence{7, 3, "me"}},
		{"a newer leader's", value(8, 3, "other"), yield, fence{7, 0, "me"}},
		{"mine of a newer term", value(8, 3, "me"), yield, fence{7, 0, "me"}},
		{"the same term's under another name", value(7, 3, "other"), yield, fence{7, 0, "me"}},
		{"an accident", &mvccpb.KeyValue{Value: []byte("x")}, remove, fence{7, 0, "me"}},
	} {
		if got, mine := plan(c.found, 7, "me"); got != c.want || mine != c.mine {
			t.Errorf("%s: step %d with %v, want %d with %v", c.what, got, mine, c.want, c.mine)
		}
	}
}

func TestFenceText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(label string) fence {
			return fence{rapid.Uint64().Draw(t, label+" term"), rapid.Int32Min(0).Draw(t, label+" transitions"), rapid.String().Draw(t, label+" holder")}
		}
		a, b := draw("a"), draw("b")
		if got, err := parseFence(a.String()); err != nil || got != a {
			t.Fatalf("%v is read as %v, %v", a, got, err)
		}
		if a.term < b.term && (a.String() >= b.String() || a.String() >= termPrefix(b.term)) {
			t.Fatal("values do not sort by term")
		}
		if a.String() <= termPrefix(a.term) {
			t.Fatal("a term's prefix does not sort before it")
		}
	})
	for _, bad := range []string{"", "1", "x 1 n", "1 x n", "0000000000000001 1"} {
		if f, err := parseFence(bad); err == nil {
			t.Errorf("%q is read as %v", bad, f)
		}
	}
}

func TestLeaseSpec(t *testing.T) {
	a, r := time.Unix(1, 0), time.Unix(2, 0)
	s := LeaseSpec("n", a, r, 3)
	if *s.HolderIdentity != "n" || *s.LeaseDurationSeconds != 15 || *s.LeaseTransitions != 3 ||
		!s.AcquireTime.Time.Equal(a) || !s.RenewTime.Time.Equal(r) {
		t.Errorf("%+v", s)
	}
}
