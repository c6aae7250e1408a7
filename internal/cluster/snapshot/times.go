package snapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"barque.dev/internal/store/etcd"
)

// ErrNoTime: a history does not tell which revision there was at a time.
var ErrNoTime = errors.New("the snapshot's history does not tell")

// Times tells when the revisions of a history were written. Etcd does not note that; but the masters renew leases every few seconds, and
// write the time into them. Each lease is a clock of its own, and the one in the middle counts: a server whose clock
// is wrong among three does no harm.
type Times struct {
	clocks map[string][]mark // by the lease's key, by revision
	first  int64             // the oldest revision that can be gone back to
	last   int64
}

type mark struct {
	revision int64
	time     time.Time
}

// leasesOfMasters are the leases that count: those of nodes and applications may be written by anybody's clock.
const leasesOfMasters = "/registry/leases/kube-system/"

// ReadTimes reads the history in a database's file. Without leases in it that can be read there are no times.
func ReadTimes(ctx context.Context, database string) (*Times, error) {
	t := &Times{clocks: map[string][]mark{}}
	err := etcd.History(ctx, database, func(c etcd.Change) error {
		if t.first == 0 {
			t.first = c.Revision
		}
		t.last = c.Revision
		if at := renewal(c); !at.IsZero() {
			t.clocks[c.Key] = append(t.clocks[c.Key], mark{c.Revision, at})
		}
		return nil
	})
	return t, err
}

// protobuf is what objects begin with that are stored as Kubernetes stores them, and are not encrypted.
var protobuf = []byte("k8s\x00")

// renewal is the time that a change writes into a lease of a master; zero if it is no such change.
func renewal(c etcd.Change) time.Time {
	if !strings.HasPrefix(c.Key, leasesOfMasters) || !bytes.HasPrefix(c.Value, protobuf) {
		return time.Time{}
	}
	var envelope runtime.Unknown
	var lease coordinationv1.Lease
	if envelope.Unmarshal(c.Value[len(protobuf):]) != nil || lease.Unmarshal(envelope.Raw) != nil || lease.Spec.RenewTime == nil {
		return time.Time{}
	}
	return lease.Spec.RenewTime.Time
}

// Of is about when a revision was written, a few seconds before at most; zero if that is not known.
func (t *Times) Of(revision int64) time.Time {
	var times []time.Time
	for _, marks := range t.clocks {
		if i := after(marks, revision); i > 0 {
			times = append(times, marks[i-1].time)
		}
	}
	if len(times) == 0 {
		return time.Time{}
	}
	slices.SortFunc(times, time.Time.Compare)
	return times[len(times)/2]
}

// after is the index of the first mark after a revision.
func after(marks []mark, revision int64) int {
	i, _ := slices.BinarySearchFunc(marks, revision+1, func(m mark, r int64) int { return int(m.revision - r) })
	return i
}

// Until is the newest revision that is surely not later than a time; it may be some seconds from before. The error is ErrNoTime when the history
// does not reach that far, has not come that far, or knows no times.
func (t *Times) Until(at time.Time) (int64, error) {
	begin, end := t.Of(t.begin()), t.Of(t.last)
	switch {
	case end.IsZero():
		return 0, fmt.Errorf("%w times, since no server has renewed a lease in it, or they are encrypted: choose a revision", ErrNoTime)
	case at.Before(begin):
		return 0, fmt.Errorf("%w of %s, it begins at %s", ErrNoTime, at.Local().Format(time.DateTime), begin.Local().Format(time.DateTime))
	case at.After(end.Add(leeway)):
		return 0, fmt.Errorf("%w of %s, it ends at %s: for the newest state give no time", ErrNoTime, at.Local().Format(time.DateTime), end.Local().Format(time.DateTime))
	}
	var revisions []int64
	for _, marks := range t.clocks {
		i := slices.IndexFunc(marks, func(m mark) bool { return m.time.After(at) })
		if i < 0 {
			revisions = append(revisions, t.last)
		} else {
			revisions = append(revisions, marks[i].revision-1)
		}
	}
	slices.Sort(revisions)
	return max(revisions[(len(revisions)-1)/2], t.first), nil
}

// leeway is how long after the last lease was renewed a history may still be going on.
const leeway = 10 * time.Second

// begin is the first revision of which a time is known.
func (t *Times) begin() int64 {
	begin := t.last
	for _, marks := range t.clocks {
		begin = min(begin, marks[0].revision)
	}
	return begin
}
