package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func second(s float64) time.Time { return epoch.Add(time.Duration(s * float64(time.Second))) }

// threeClocks is a history from revision 10 to 40, in which three servers renew leases every five seconds or so. The third's clock is an hour
// ahead.
func threeClocks() *Times {
	return &Times{first: 10, last: 40, clocks: map[string][]mark{
		"one":   {{12, second(0)}, {20, second(5)}, {30, second(10)}},
		"two":   {{14, second(1)}, {22, second(6)}, {31, second(11)}},
		"three": {{15, second(3602)}, {24, second(3607)}, {33, second(3612)}},
	}}
}

func TestUntil(t *testing.T) {
	wrong := threeClocks()
	alone := &Times{first: 10, last: 40, clocks: map[string][]mark{"one": wrong.clocks["one"]}}
	for name, c := range map[string]struct {
		times *Times
		at    time.Time
		want  int64 // 0: ErrNoTime
	}{
		"long before":                  {wrong, second(-60), 0},
		"between renewals":             {wrong, second(5.5), 21},
		"before anything was renewed":  {wrong, second(2), 19},
		"after the last, a little":     {wrong, second(15), 40},
		"long after":                   {wrong, second(60), 0},
		"one server":                   {alone, second(7), 29},
		"one server, at a renewal":     {alone, second(5), 29},
		"nobody renewed a lease":       {&Times{first: 10, last: 40, clocks: map[string][]mark{}}, second(5), 0},
		"nothing is in the history":    {&Times{clocks: map[string][]mark{}}, second(5), 0},
		"the first that can be chosen": {&Times{first: 12, last: 12, clocks: map[string][]mark{"one": {{12, second(0)}}}}, second(0), 12},
	} {
		got, err := c.times.Until(c.at)
		if got != c.want || errors.Is(err, ErrNoTime) != (c.want == 0) {
			t.Errorf("%s: revision %d, want %d: %v", name, got, c.want, err)
		}
	}
}

func TestTimeOf(t *testing.T) {
	times := threeClocks()
	for revision, want := range map[int64]time.Time{
		10: {}, 11: {}, 12: second(0), 14: second(1), 23: second(6), 29: second(6), 40: second(11),
	} {
		if got := times.Of(revision); !got.Equal(want) {
			t.Errorf("revision %d is of %v, want %v", revision, got, want)
		}
	}
}

// TestReadTimes reads what a member has stored: the masters' leases count, those of others, and what is none, do not.
func TestReadTimes(t *testing.T) {
	member := etcdtest.New(t, 1, nil).Member(0)
	put := func(key string, value []byte) int64 {
		t.Helper()
		resp, err := member.Server().Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte(key), Value: value})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Header.Revision
	}
	put("/registry/configmaps/default/a", []byte("v"))
	put(leasesOfMasters+"sealed", []byte("k8s:enc:secretbox:v1:…"))
	put(leasesOfMasters+"damaged", []byte("k8s\x00\xff\xff"))
	put("/registry/leases/kube-node-lease/agent-1", leaseAt(t, second(-500)))
	put(leasesOfMasters+"barque-apiserver-server-1", leaseAt(t, second(0)))
	wanted := put("/registry/configmaps/default/a", []byte("w"))
	put(leasesOfMasters+"barque-apiserver-server-1", leaseAt(t, second(5)))
	put("/registry/configmaps/default/a", []byte("x"))

	times, err := ReadTimes(t.Context(), databaseOf(t, member))
	if err != nil {
		t.Fatal(err)
	}
	if got := times.Of(wanted); !got.Equal(second(0)) {
		t.Errorf("revision %d is of %v", wanted, got)
	}
	if got, err := times.Until(second(3)); got != wanted || err != nil {
		t.Errorf("revision %d, want %d: %v", got, wanted, err)
	}
}

// leaseAt is a lease that was renewed at a time, as it is stored.
func leaseAt(t *testing.T, at time.Time) []byte {
	t.Helper()
	renewed := metav1.NewMicroTime(at)
	raw, err := (&coordinationv1.Lease{Spec: coordinationv1.LeaseSpec{RenewTime: &renewed}}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	data, err := (&runtime.Unknown{Raw: raw}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return append([]byte("k8s\x00"), data...)
}

// databaseOf writes what a member has into a file.
func databaseOf(t *testing.T, member *etcd.Member) string {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "etcd.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	db, err := member.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.WriteTo(file); err != nil {
		t.Fatal(err)
	}
	return file.Name()
}
