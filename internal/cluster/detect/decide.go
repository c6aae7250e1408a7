package detect

import (
	"sort"
	"time"

	"barque.dev/internal/store/etcd"
)

// window decides, from when echoes were answered, whether a machine is gone.
type window struct {
	interval time.Duration
	silence  time.Duration

	armed bool      // it has answered before; one that never does isn't suspected
	heard time.Time // when it was last known to be there
	last  time.Time // of the tick before
}

// tick is called once an interval with the number of answers since the last call. A tick that
// comes late tells that this process, or machine, was held up: what it didn't hear meanwhile
// means nothing, so the window starts anew.
func (w *window) tick(now time.Time, answers int) (gone bool) {
	late := !w.last.IsZero() && now.Sub(w.last) > w.interval+w.silence/4
	w.last = now
	if answers > 0 {
		w.armed = true
	}
	if answers > 0 || late || w.heard.IsZero() {
		w.heard = now
		return false
	}
	return w.armed && now.Sub(w.heard) >= w.silence
}

// rank orders the voters that are left without leader, by ID: 0 campaigns first. A member that
// doesn't vote, or a witness, which shall not lead, comes after all that do.
func rank(members []etcd.MemberInfo, leader, self uint64) int {
	var voters []uint64
	for _, m := range members {
		if !m.Learner && m.Witness == "" && m.ID != leader {
			voters = append(voters, m.ID)
		}
	}
	sort.Slice(voters, func(i, j int) bool { return voters[i] < voters[j] })
	for i, id := range voters {
		if id == self {
			return i
		}
	}
	return len(voters)
}

// trust is what a detector learns from having been wrong about a leader: where echoes get lost
// or connections are refused for another reason, it suspects that leader less and less often.
type trust struct {
	leader uint64
	until  time.Time // not suspected before
	pause  time.Duration
}

const (
	firstTrust = time.Second
	mostTrust  = time.Minute
)

func (t *trust) suspects(leader uint64, now time.Time) bool {
	return t.leader != leader || !now.Before(t.until)
}

func (t *trust) wasWrong(leader uint64, now time.Time) {
	if t.leader != leader {
		*t = trust{leader: leader}
	}
	t.pause = min(max(2*t.pause, firstTrust), mostTrust)
	t.until = now.Add(t.pause)
}
