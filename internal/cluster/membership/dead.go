package membership

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"barque.dev/internal/run"
	"barque.dev/internal/store/etcd"
)

const (
	// roundEvery is how often the leader asks all servers whom they reach, or four times in the shortest grace if that is
	// shorter.
	roundEvery = 5 * time.Second
	// askTimeout bounds how long one of them may take to tell; it asks the others meanwhile.
	askTimeout = etcd.RespondTimeout + 2*time.Second
)

// WatchConfig is what watching for dead servers needs.
type WatchConfig struct {
	// Bounds say how long a server has to be silent before it is removed.
	Bounds Bounds
	// Ask has another server tell which members it reaches, itself included: its Membership's Reached.
	Ask func(ctx context.Context, m etcd.MemberInfo) ([]uint64, error)
	// Removing is called before a removal, which does not take place if it fails: see ControlConfig.Lost. May be nil.
	Removing func(ctx context.Context, name string) error
	// Removed is called after a removal; it may tidy up. May be nil.
	Removed func(ctx context.Context, name string)
}

// Reached lists the members that respond to this server now, itself included. One that stands still is not among them, though
// its machine accepts connections.
func (m *Membership) Reached(ctx context.Context) []uint64 {
	var ids []uint64
	for id := range m.member.Responding(ctx) {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// RemoveDead removes servers that are gone for good until ctx ends. Only the leader does so, on what it watched
// itself: another leader begins anew.
func (m *Membership) RemoveDead(ctx context.Context, cfg WatchConfig) error {
	pause := min(roundEvery, cfg.Bounds.shortest()/4)
	silence := map[uint64]time.Duration{}
	var last time.Time
	for run.Pause(ctx, pause) {
		if m.member.Leader() != m.member.ID() {
			clear(silence)
			last = time.Time{}
			continue
		}
		members, reports := m.member.Members(), m.collect(ctx, cfg.Ask)
		now := time.Now()
		// Time that nobody watched, since this process stood still, is not silence.
		watched := min(now.Sub(last), pause+2*askTimeout)
		if last.IsZero() {
			watched = 0
		}
		last = now
		id := m.dead(members, reports, silence, watched, cfg.Bounds)
		if id == 0 {
			continue
		}
		m.removeDead(ctx, cfg, members, id, silence[id])
		clear(silence) // the next one has to be found silent by those who are left
	}
	return nil
}

func (m *Membership) removeDead(ctx context.Context, cfg WatchConfig, members []etcd.MemberInfo, id uint64, silent time.Duration) {
	at := slices.IndexFunc(members, func(mb etcd.MemberInfo) bool { return mb.ID == id })
	name := members[at].Name
	log := m.log.With("server", name, "member", fmt.Sprintf("%x", id), "silent", silent.Round(time.Second))
	ctx, cancel := context.WithTimeout(ctx, 2*removalTimeout)
	defer cancel()
	if cfg.Removing != nil {
		if err := cfg.Removing(ctx, name); err != nil {
			log.Warn("a server that is gone is not removed yet", "error", err)
			return
		}
	}
	if err := m.remove(ctx, id); err != nil {
		log.Warn("a server that is gone could not be removed", "error", err)
		return
	}
	log.Warn("a server that no other one reached for so long was removed from the cluster; when it comes back it joins anew by itself")
	if cfg.Removed != nil {
		cfg.Removed(ctx, name)
	}
}

// dead does the reckoning of one round: it adds to the members' silence, and says whom to remove.
func (m *Membership) dead(members []etcd.MemberInfo, reports map[uint64][]uint64, silence map[uint64]time.Duration, watched time.Duration, bounds Bounds) uint64 {
	before := make(map[uint64]bool, len(silence))
	for id := range silence {
		before[id] = true
	}
	listen(members, reports, silence, watched)
	for _, mb := range members {
		if _, now := silence[mb.ID]; now && !before[mb.ID] {
			m.log.Warn("no server reaches this one; it is removed from the cluster if that lasts", "server", mb.Name, "for", bounds.of(mb, standsBy(members, reports)))
		}
	}
	return gone(members, reports, silence, bounds)
}

// collect asks every member whom it reaches. Who doesn't tell is left out.
func (m *Membership) collect(ctx context.Context, ask func(context.Context, etcd.MemberInfo) ([]uint64, error)) map[uint64][]uint64 {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	reports := map[uint64][]uint64{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, mb := range m.member.Members() {
		wg.Go(func() {
			var reached []uint64
			var err error
			if mb.ID == m.member.ID() {
				reached = m.Reached(ctx)
			} else if reached, err = ask(ctx, mb); err != nil {
				m.log.Log(ctx, slog.LevelDebug, "a server does not tell whom it reaches", "server", mb.Name, "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			reports[mb.ID] = reached
		})
	}
	wg.Wait()
	return reports
}

// listen takes a round's reports, of whom each member that told reaches, into account. Who told, or is reached by
// one that told, isn't silent. Who is reached by none of a majority of the voters has been silent for watched longer. Of
// the others nothing is known: what silence they had stays.
func listen(members []etcd.MemberInfo, reports map[uint64][]uint64, silence map[uint64]time.Duration, watched time.Duration) {
	heard := map[uint64]bool{}
	for from, reached := range reports {
		heard[from] = true
		for _, id := range reached {
			heard[id] = true
		}
	}
	present := map[uint64]bool{}
	for _, mb := range members {
		present[mb.ID] = true
		_, known := silence[mb.ID]
		switch {
		case heard[mb.ID]:
			delete(silence, mb.ID)
		case !majority(members, reports):
		case !known:
			silence[mb.ID] = 0
		default:
			silence[mb.ID] += watched
		}
	}
	for id := range silence {
		if !present[id] {
			delete(silence, id)
		}
	}
}

// majority tells whether most voters are among those that told.
func majority(members []etcd.MemberInfo, reports map[uint64][]uint64) bool {
	voters, told := 0, 0
	for _, mb := range members {
		if mb.Learner {
			continue
		}
		voters++
		if _, ok := reports[mb.ID]; ok {
			told++
		}
	}
	return told >= voters/2+1 && told > 1
}

// gone picks the member to remove now, or 0: the one that has been silent for longest, and for its bound, if a majority of
// the voters told so just now and those that would remain have a majority that told.
func gone(members []etcd.MemberInfo, reports map[uint64][]uint64, silence map[uint64]time.Duration, bounds Bounds) uint64 {
	if !majority(members, reports) {
		return 0
	}
	told := map[uint64]bool{}
	for id := range reports {
		told[id] = true
	}
	replaceable := standsBy(members, reports)
	var candidates []uint64
	for _, mb := range members {
		silent, known := silence[mb.ID]
		// One that joins has no name until it starts, and listens to nobody; Run looks after those.
		if mb.Name != "" && known && silent >= bounds.of(mb, replaceable) && etcd.CheckRemoval(members, told, mb.ID) == nil {
			candidates = append(candidates, mb.ID)
		}
	}
	if len(candidates) == 0 {
		return 0
	}
	return slices.MinFunc(candidates, func(a, b uint64) int {
		return cmp.Or(cmp.Compare(silence[b], silence[a]), cmp.Compare(a, b))
	})
}
