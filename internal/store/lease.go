package store

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// leases lets objects with a lifetime share etcd leases, as kube-apiserver does for events: a
// lease serves writes of the same TTL for a while, and lives that much longer.
type leases struct {
	mu      sync.Mutex
	granted map[int64]*lease // by TTL in seconds
}

type lease struct {
	id     int64
	until  time.Time // shared by writes before
	writes int
}

const (
	leaseShare  = 20   // a lease is shared for a twentieth of its TTL, at least 1 s
	leaseWrites = 1000 // and by so many writes, since its end removes them in one revision
)

// get returns a lease for a write with ttl, or 0 when ttl is.
func (ls *leases) get(ctx context.Context, s *Store, ttl time.Duration) (int64, error) {
	if ttl <= 0 {
		return 0, nil
	}
	seconds := int64((ttl + time.Second - 1) / time.Second)
	ls.mu.Lock()
	defer ls.mu.Unlock() // held while granting: others of the same burst want the same lease
	now := time.Now()
	if l := ls.granted[seconds]; l != nil && now.Before(l.until) && l.writes < leaseWrites {
		l.writes++
		return l.id, nil
	}
	share := max(1, seconds/leaseShare)
	id, err := s.backend.LeaseGrant(ctx, seconds+share)
	if err != nil {
		return 0, fmt.Errorf("grant lease of %d s: %w", seconds+share, err)
	}
	ls.granted[seconds] = &lease{id: id, until: now.Add(time.Duration(share) * time.Second), writes: 1}
	return id, nil
}

// drop forgets a lease that etcd doesn't know.
func (ls *leases) drop(id int64) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for ttl, l := range ls.granted {
		if l.id == id {
			delete(ls.granted, ttl)
		}
	}
}

// expire forgets leases that are no longer shared.
func (ls *leases) expire(now time.Time) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for ttl, l := range ls.granted {
		if !now.Before(l.until) {
			delete(ls.granted, ttl)
		}
	}
}
