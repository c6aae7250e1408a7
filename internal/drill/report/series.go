package report

import (
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"
)

// A Series counts requests by the second and by who answered. It grows by some bytes a second. It is
// safe for concurrent use.
type Series struct {
	began time.Time

	mu     sync.Mutex
	counts map[string][]int // answered, by server
	failed []int            // not answered, or with 5xx
}

// NewSeries begins to count.
func NewSeries() *Series { return &Series{began: time.Now(), counts: map[string][]int{}} }

// Add counts a request that has ended just now.
func (s *Series) Add(by string, failed bool) {
	second := int(time.Since(s.began) / time.Second)
	s.mu.Lock()
	defer s.mu.Unlock()
	if failed {
		s.failed = count(s.failed, second)
		return
	}
	s.counts[by] = count(s.counts[by], second)
}

func count(counts []int, second int) []int {
	for len(counts) <= second {
		counts = append(counts, 0)
	}
	counts[second]++
	return counts
}

// take is what was counted: who answered, by name, and per second how often, and how many failed.
func (s *Series) take() (names []string, counts map[string][]int, failed []int) {
	if s == nil {
		return nil, nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	counts = map[string][]int{}
	for name, c := range s.counts {
		counts[name] = slices.Clone(c)
	}
	return slices.Sorted(maps.Keys(counts)), counts, slices.Clone(s.failed)
}

// MarshalJSON writes the counts per second.
func (s *Series) MarshalJSON() ([]byte, error) {
	_, counts, failed := s.take()
	return json.Marshal(map[string]any{"answered": counts, "failed": failed})
}
