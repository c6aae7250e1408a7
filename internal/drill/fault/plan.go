package fault

import (
	"math/rand/v2"
	"time"
)

// A Step is one fault to come. All of it follows from the seed.
type Step struct {
	Kind Kind
	// Follower says which follower is hit, where one is: modulo their number, in the order of their
	// names.
	Follower int
	// Hold is how long the fault lasts, from 2 to 5 s: longer than raft's election timeout, so that
	// also what nobody but raft's own timers sees has taken its course.
	Hold time.Duration
}

const minHold, maxHold = 2 * time.Second, 5 * time.Second

// A Plan is a sequence of steps. Each kind comes once before any comes again.
type Plan struct {
	random *rand.Rand
	kinds  []Kind
	left   []Kind
}

// NewPlan makes the plan of a seed.
func NewPlan(seed uint64, kinds []Kind) *Plan {
	return &Plan{random: rand.New(rand.NewPCG(seed, seed)), kinds: kinds}
}

// Next is the next step.
func (p *Plan) Next() Step {
	if len(p.left) == 0 {
		p.left = append(p.left, p.kinds...)
		p.random.Shuffle(len(p.left), func(i, j int) { p.left[i], p.left[j] = p.left[j], p.left[i] })
	}
	s := Step{Kind: p.left[0], Follower: p.random.IntN(1 << 16), Hold: minHold + time.Duration(p.random.Int64N(int64(maxHold-minHold)))}
	p.left = p.left[1:]
	return s
}
