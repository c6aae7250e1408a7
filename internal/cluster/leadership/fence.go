package leadership

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// fenceKey is where the fence of a cluster stands: beside the API's keys, and apart from that of a
// cluster whose snapshot this one was restored from, whose terms mean nothing here.
func fenceKey(cluster uint64) string { return fmt.Sprintf("/barque/leader/%016x", cluster) }

// A fence is the content of the key: which leader put it there. There is one leader a term, so
// that the greater term is the newer leader. Values sort by term.
type fence struct {
	term        uint64
	transitions int32
	holder      string
}

func (f fence) String() string {
	return fmt.Sprintf("%s %d %s", termPrefix(f.term), f.transitions, f.holder)
}

// termPrefix sorts before the values of its term and behind those of every term before.
func termPrefix(term uint64) string { return fmt.Sprintf("%016x", term) }

func parseFence(value string) (fence, error) {
	parts := strings.SplitN(value, " ", 3)
	if len(parts) != 3 {
		return fence{}, fmt.Errorf("fence %q: it has no three parts", value)
	}
	term, err := strconv.ParseUint(parts[0], 16, 64)
	if err != nil {
		return fence{}, fmt.Errorf("fence %q: %w", value, err)
	}
	transitions, err := strconv.ParseInt(parts[1], 10, 32)
	if err != nil {
		return fence{}, fmt.Errorf("fence %q: %w", value, err)
	}
	return fence{term: term, transitions: int32(transitions), holder: parts[2]}, nil
}

// stands tells whether what was found at the key is the fence that was put at a revision.
func stands(found []*mvccpb.KeyValue, createRevision int64) bool {
	return len(found) == 1 && found[0].CreateRevision == createRevision
}

// A step is what a leader does next to hold the fence.
type step int

const (
	create step = iota // nothing is there: put mine
	remove             // an older leader's is there
	hold               // mine is there
	yield              // a newer leader's is there
)

// plan decides on the next step of the leader of a term, and what its fence says, from what stands
// at the key. A value that can't be read is somebody's accident: remove it.
func plan(found *mvccpb.KeyValue, term uint64, holder string) (step, fence) {
	mine := fence{term: term, holder: holder}
	if found == nil {
		return create, mine
	}
	old, err := parseFence(string(found.Value))
	switch {
	case err != nil:
		return remove, mine
	case old.term > term:
		return yield, mine
	case old.term == term && old.holder == holder:
		return hold, old
	case old.term == term:
		return yield, mine // impossible while names are unique
	}
	mine.transitions = old.transitions
	if old.holder != holder {
		mine.transitions++
	}
	return remove, mine
}

// LeaseSpec is what a Lease object says of a leader, as the stock components write it.
func LeaseSpec(holder string, acquired, renewed time.Time, transitions int32) coordinationv1.LeaseSpec {
	seconds := int32(LeaseDuration / time.Second)
	acquire, renew := metav1.NewMicroTime(acquired), metav1.NewMicroTime(renewed)
	return coordinationv1.LeaseSpec{
		HolderIdentity:       &holder,
		LeaseDurationSeconds: &seconds,
		AcquireTime:          &acquire,
		RenewTime:            &renew,
		LeaseTransitions:     &transitions,
	}
}
