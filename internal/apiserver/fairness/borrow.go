package fairness

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// rebalancePeriod is how often seats are lent and borrowed anew.
const rebalancePeriod = 10 * time.Second

// smoothing is how much of a past demand is remembered from one period to the next: half of it for five minutes.
const smoothing = 0.977

// balance is what a level's seats were reckoned from, for metrics.
type balance struct {
	average, deviation, most, smoothed, target float64
}

// rebalance lends seats that levels don't need to those that do (KEP-1040). It returns what each level's seats were
// reckoned from, and the fraction of their demand that all could be given.
func (p *plan) rebalance(now time.Duration) (map[string]balance, float64) {
	balances := map[string]balance{}
	var limited []*level
	var claims []claim
	left, least, current := p.sum, 0, 0
	for name, l := range p.levels {
		b, s := l.readDemand(now)
		balances[name] = b
		if l.exempt {
			limit := max(s.least, int(math.Round(b.most)))
			l.resize(limit, now)
			left -= limit
			continue
		}
		low := max(s.least, min(s.nominal, int(math.Round(b.most))))
		b.target = max(float64(low), b.smoothed)
		balances[name] = b
		limited = append(limited, l)
		claims = append(claims, claim{low: float64(low), high: float64(s.most), target: b.target})
		least += s.least
		current += low
	}
	fraction := 0.0
	var grants []float64
	switch {
	case left <= least:
		for _, l := range limited {
			l.resize(l.read().least, now)
		}
		return balances, 0
	case left <= current:
		part := float64(left-least) / float64(current-least)
		for i, l := range limited {
			low := float64(l.read().least)
			grants = append(grants, low+(claims[i].low-low)*part)
		}
	default:
		grants, fraction = divide(float64(left), claims)
	}
	for i, l := range limited {
		l.resize(int(math.Round(grants[i])), now)
	}
	return balances, fraction
}

// read returns the level's part of the seats by configuration.
func (l *level) read() share {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.share
}

// readDemand sums up the demand since it was last read.
func (l *level) readDemand(now time.Duration) (balance, share) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.advance(now)
	var b balance
	b.average, b.deviation, b.most = l.demand.read(float64(l.used + l.waitingSeats))
	envelope := b.average + b.deviation
	l.smoothed = max(envelope, smoothing*l.smoothed+(1-smoothing)*envelope)
	b.smoothed = l.smoothed
	return b, l.share
}

// claim is what a level may be given: between low and high, and by its target.
type claim struct{ low, high, target float64 }

// leastTarget keeps those that need nothing in the division.
const leastTarget = 0.001

// divide gives every claim the same fraction of its target, but not less than its low and not more than its high, so that
// all together get sum. When even the highs are less than that, they are given; when the lows are more, those are.
func divide(sum float64, claims []claim) (grants []float64, fraction float64) {
	target := func(c claim) float64 { return max(c.target, leastTarget) }
	at := func(f float64) (total float64) {
		for _, c := range claims {
			total += min(c.high, max(c.low, f*target(c)))
		}
		return total
	}
	// The total grows with the fraction, and straight between those at which some claim meets a bound.
	var bends []float64
	for _, c := range claims {
		bends = append(bends, c.low/target(c), c.high/target(c))
	}
	slices.SortFunc(bends, cmp.Compare)
	for _, bend := range bends {
		total := at(bend)
		if total < sum {
			fraction = bend
			continue
		}
		if before := at(fraction); total > before {
			fraction += (bend - fraction) * max(0, sum-before) / (total - before)
		}
		break
	}
	for _, c := range claims {
		grants = append(grants, min(c.high, max(c.low, fraction*target(c))))
	}
	return grants, fraction
}
