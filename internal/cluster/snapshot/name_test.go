package snapshot

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestNames(t *testing.T) {
	for want, n := range map[string]Name{
		"barque-20261123T120000Z-1a2b3c4d-r7-auto-server-1.tar":   {noon, "1a2b3c4d", 7, true, "server-1"},
		"barque-20261123T120000Z-1a2b3c4d-r7-saved-a.example.tar": {noon.In(time.FixedZone("", 3600)), "1a2b3c4d", 7, false, "a.example"},
	} {
		if n.String() != want {
			t.Errorf("%s, want %s", n, want)
		}
		if got, ok := ParseName(want); !ok || got.String() != want || !got.Time.Equal(n.Time) {
			t.Errorf("%s is read as %+v, %v", want, got, ok)
		}
	}
	for _, other := range []string{
		"", "barque.tar", "backup.db", "barque-20261123T120000Z-1a2b3c4d-r7-auto-server-1.tar.gz",
		"barque-20261399T120000Z-1a2b3c4d-r7-auto-a.tar", "barque-20261123T120000Z-1a2b3c4d-r7-else-a.tar",
		"barque-20261123T120000Z-1a2b3c4d-r99999999999999999999-auto-a.tar", "../barque-20261123T120000Z-1a2b3c4d-r7-auto-a.tar",
	} {
		if n, ok := ParseName(other); ok {
			t.Errorf("%q is taken for %+v", other, n)
		}
	}
	long := Manifest{Time: noon, Cluster: strings.Repeat("a", 64), Revision: 1 << 40, Server: strings.Repeat("x", 253)}.Name()
	if n := len(long.String()); n > 255 {
		t.Errorf("a name of %d bytes is no file's", n)
	}
	if got, ok := ParseName(long.String()); !ok || got != long {
		t.Errorf("%+v is read as %+v, %v", long, got, ok)
	}
}

func TestOlder(t *testing.T) {
	const c1, c2 = "11111111", "22222222"
	var list []Info
	for _, n := range []Name{
		{noon.Add(3 * time.Minute), c1, 1, true, "a"}, {noon.Add(2 * time.Minute), c1, 1, true, "a"}, {noon.Add(time.Minute), c1, 1, true, "a"},
		{noon, c1, 1, false, "a"}, {noon, c1, 1, true, "b"}, {noon, c2, 1, true, "a"},
	} {
		list = append(list, infoOf(n, 1))
	}
	list = append(list, Info{File: "not-one-of-ours.tar"})
	for keep, want := range map[int][]int{1: {2, 1}, 2: {1}, 3: nil, 9: nil} {
		var got []int
		for _, i := range older(ownOf(list, "a", c1), keep) {
			if n, _ := ParseName(i.File); !n.Scheduled || n.Server != "a" || n.Cluster != c1 {
				t.Errorf("keep %d removes %s", keep, n)
			}
			got = append(got, int(i.Time.Sub(noon).Minutes()))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("keep %d removes %v, want %v", keep, got, want)
		}
	}
}

// TestTurns: within one period each server has one turn, evenly spread.
func TestTurns(t *testing.T) {
	const every = 6 * time.Hour
	for of := 1; of <= 5; of++ {
		for rank := range of {
			first := turn(noon, every, rank, of)
			if !first.After(noon) || first.Sub(noon) > every {
				t.Errorf("turn %d of %d is at %v", rank, of, first)
			}
			if next := turn(first, every, rank, of); next.Sub(first) != every {
				t.Errorf("turn %d of %d comes again after %v", rank, of, next.Sub(first))
			}
			if rank > 0 {
				if gap := turn(noon, every, rank, of).Sub(turn(noon, every, rank-1, of)); gap != every/time.Duration(of) && gap != every/time.Duration(of)-every {
					t.Errorf("turns %d and %d of %d are %v apart", rank-1, rank, of, gap)
				}
			}
		}
	}
}

func TestIsDue(t *testing.T) {
	const every = 6 * time.Hour // with one server the turns are at 0, 6, 12 and 18 o'clock
	ago := func(d time.Duration) time.Time { return noon.Add(-d) }
	for name, tt := range map[string]struct {
		last, began, failed time.Time
		want                bool
	}{
		"a new cluster":                             {began: ago(time.Minute)},
		"a new cluster, a while later":              {began: ago(firstAfter), want: true},
		"its turn":                                  {last: ago(every), began: ago(time.Hour), want: true},
		"its turn was taken":                        {last: noon, began: ago(time.Hour)},
		"one was missed while the server was down":  {last: ago(25 * time.Hour), began: ago(time.Second), want: true},
		"it has just failed":                        {last: ago(every), failed: ago(time.Minute)},
		"it failed a while ago":                     {last: ago(every), failed: ago(retryAfter), want: true},
		"the clock went back":                       {last: noon.Add(1000 * time.Hour), began: ago(time.Hour)},
		"the clock went back before the first":      {began: noon.Add(1000 * time.Hour)},
		"the clock went back after it failed":       {last: ago(every), failed: noon.Add(time.Hour)},
		"a turn between the last and now was taken": {last: ago(time.Second), began: ago(time.Hour), want: true},
	} {
		if got := isDue(noon, tt.last, tt.began, tt.failed, every, 0, 1); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
