package membership

import (
	"time"

	"barque.dev/internal/store/etcd"
)

// MaxVoters is how many servers vote. Five bear the loss of two at once. Each more would make every write wait for one
// more disk, and leaders harder to elect; so the others serve without a vote, and stand by for one.
const MaxVoters = 5

// Bounds say how long no server may reach another one until that is removed.
type Bounds struct {
	// Remove is for any server: more than 0.
	Remove time.Duration
	// Replace is for a voter whose place another server can take at once, which brings back what the cluster may lose. 0
	// makes no difference between the two. The voter itself comes back as one that stands by.
	Replace time.Duration
}

// of is the bound of one member, when standsBy tells whether a server is there to take a voter's place.
func (b Bounds) of(mb etcd.MemberInfo, standsBy bool) time.Duration {
	if mb.Learner || !standsBy || b.Replace == 0 {
		return b.Remove
	}
	return min(b.Remove, b.Replace)
}

// shortest is the least that any member's bound can be.
func (b Bounds) shortest() time.Duration { return b.of(etcd.MemberInfo{}, true) }

// voters counts the members that vote.
func voters(members []etcd.MemberInfo) (n int) {
	for _, mb := range members {
		if !mb.Learner {
			n++
		}
	}
	return n
}

// started tells whether a member has no vote and could use one, as far as is known without asking it.
func started(mb etcd.MemberInfo) bool { return mb.Learner && mb.Name != "" }

// promotions lists who may get a vote now, by ID, of those that are well; one of them shall get it. Nobody may while there are
// MaxVoters, dead ones included: they go first. Whether it has caught up only the leader's etcd knows.
//
// Nobody is ever demoted: etcd knows no such change. A voter that is too many leaves, and joins anew.
func promotions(members []etcd.MemberInfo, well func() map[uint64]bool) (list []uint64) {
	if voters(members) >= MaxVoters {
		return nil
	}
	var healthy map[uint64]bool
	for _, mb := range members {
		if !started(mb) {
			continue
		}
		if healthy == nil {
			healthy = well()
		}
		// One that is dead may have caught up, when little was written since. Its vote would count against the quorum.
		if healthy[mb.ID] {
			list = append(list, mb.ID)
		}
	}
	return list
}

// standsBy tells whether a member that told something just now has no vote only because there are enough: it
// takes the place of a voter as soon as one is removed.
func standsBy(members []etcd.MemberInfo, reports map[uint64][]uint64) bool {
	if voters(members) < MaxVoters {
		return false
	}
	for _, mb := range members {
		if _, told := reports[mb.ID]; told && started(mb) {
			return true
		}
	}
	return false
}
