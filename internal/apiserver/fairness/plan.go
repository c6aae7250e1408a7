package fairness

import (
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"math"
	"slices"
	"sort"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"
	"k8s.io/apiserver/pkg/util/apihelpers"
	"k8s.io/apiserver/pkg/util/shufflesharding"
)

// widest is the part of a level's seats that one request may be estimated to need.
const widest = 0.15

// plan is what the configuration of a moment comes to. It is not changed once it is in use.
type plan struct {
	classifier *classifier
	levels     map[string]*level
	configs    map[string]*flowcontrolv1.PriorityLevelConfiguration // of the levels, by name
	// wanted are the levels that the configuration names. The others are there for those who are left in them.
	wanted map[string]bool
	sum    int // of the nominal seats of all levels
}

// share is a level's part of the server's seats, in seats.
type share struct {
	nominal int
	least   int // what is left when all that may be lent is
	most    int // with all that may be borrowed
	// width bounds what one request may be estimated to need.
	width int
}

// shareOf divides the seats of a server by the shares that a level has of all.
func shareOf(spec *flowcontrolv1.PriorityLevelConfigurationSpec, seats int, all float64) share {
	shares, lendable, borrowing := parts(spec)
	nominal := 0
	if all > 0 {
		nominal = int(math.Ceil(float64(seats) * float64(shares) / all))
	}
	percent := func(p int32) int { return int(math.Round(float64(nominal) * float64(p) / 100)) }
	s := share{nominal: nominal, least: nominal - percent(lendable), most: nominal + seats, width: maxWidth}
	if borrowing != nil {
		s.most = nominal + percent(*borrowing)
	}
	if q := queuingOf(spec); q.queues > 0 {
		s.width = max(1, min(int(math.Ceil(float64(nominal)*widest)), nominal/q.hand, maxWidth))
	}
	return s
}

// parts are a level's shares, what percentage of its seats it lends, and what it borrows at most; nil for all there is.
func parts(spec *flowcontrolv1.PriorityLevelConfigurationSpec) (shares, lendable int32, borrowing *int32) {
	value := func(p *int32) int32 {
		if p == nil {
			return 0
		}
		return *p
	}
	if e := spec.Exempt; e != nil {
		return value(e.NominalConcurrencyShares), value(e.LendablePercent), nil
	}
	l := spec.Limited
	return value(l.NominalConcurrencyShares), value(l.LendablePercent), l.BorrowingLimitPercent
}

func queuingOf(spec *flowcontrolv1.PriorityLevelConfigurationSpec) queuing {
	if spec.Limited == nil || spec.Limited.LimitResponse.Queuing == nil {
		return queuing{}
	}
	q := spec.Limited.LimitResponse.Queuing
	return queuing{queues: int(q.Queues), hand: int(q.HandSize), length: int(q.QueueLengthLimit)}
}

// usable tells what keeps a level from being used. Validation lets no such level in, but what was stored before it did
// counts as absent.
func usable(pl *flowcontrolv1.PriorityLevelConfiguration) (*shufflesharding.Dealer, error) {
	spec := &pl.Spec
	exempt := spec.Type == flowcontrolv1.PriorityLevelEnablementExempt
	if exempt != (spec.Exempt != nil) || exempt == (spec.Limited != nil) {
		return nil, fmt.Errorf("its type is %q, which its spec is not", spec.Type)
	}
	if exempt != (pl.Name == flowcontrolv1.PriorityLevelConfigurationNameExempt) {
		return nil, fmt.Errorf("%q alone is exempt", flowcontrolv1.PriorityLevelConfigurationNameExempt)
	}
	q := queuingOf(spec)
	if !exempt && (spec.Limited.LimitResponse.Type == flowcontrolv1.LimitResponseTypeQueue) != (q.queues > 0) {
		return nil, fmt.Errorf("its limit response is %q, and %d are its queues", spec.Limited.LimitResponse.Type, q.queues)
	}
	if q.queues == 0 {
		return nil, nil //nolint:nilnil // without queues nobody deals
	}
	if q.hand > maxHand {
		return nil, errors.New("its hand is too large")
	}
	return shufflesharding.NewDealer(q.queues, q.hand)
}

// planner makes plans.
type planner struct {
	seats int // of the server
	seed  maphash.Seed
	log   *slog.Logger
}

// plan makes a plan of all levels and flow schemas there are. Levels go on from the plan before, which may be nil; those
// that are not wanted any more go on until nobody is left in them.
func (p *planner) plan(configs []*flowcontrolv1.PriorityLevelConfiguration, schemas []*flowcontrolv1.FlowSchema, before *plan, now time.Duration) *plan {
	configs, schemas = withMandatory(configs, schemas)
	next := &plan{levels: map[string]*level{}, configs: map[string]*flowcontrolv1.PriorityLevelConfiguration{}, wanted: map[string]bool{}}
	dealers := map[string]*shufflesharding.Dealer{}
	for _, pl := range configs {
		dealer, err := usable(pl)
		if err != nil {
			p.log.Warn("a priority level can't be used", "name", pl.Name, "error", err)
			continue
		}
		next.configs[pl.Name], dealers[pl.Name] = pl, dealer
	}
	p.classify(next, schemas, next.level(before, now))
	if before != nil {
		for name, l := range before.levels {
			if next.levels[name] == nil && !l.idle() {
				next.levels[name], next.configs[name], dealers[name] = l, before.configs[name], l.dealer
			}
		}
	}
	all := 0.0
	for _, pl := range next.configs {
		shares, _, _ := parts(&pl.Spec)
		all += float64(shares)
	}
	for name, pl := range next.configs {
		s := shareOf(&pl.Spec, p.seats, all)
		next.levels[name].configure(queuingOf(&pl.Spec), dealers[name], s, now)
		next.sum += s.nominal
	}
	return next
}

// level returns a function that finds a level of the plan by name: that of the plan before, or a new one; nil when there
// is no such level.
func (next *plan) level(before *plan, now time.Duration) func(name string) *level {
	for name, pl := range next.configs {
		next.wanted[name] = true
		if before != nil && before.levels[name] != nil {
			next.levels[name] = before.levels[name]
			continue
		}
		next.levels[name] = &level{
			name: name, exempt: pl.Spec.Exempt != nil, limit: -1, last: now, stats: map[string]*stats{}, timings: newTimings(),
		}
	}
	return func(name string) *level { return next.levels[name] }
}

// classify gives a plan its classifier. Schemas whose level there is not are left out.
func (p *planner) classify(next *plan, schemas []*flowcontrolv1.FlowSchema, find func(string) *level) {
	var flows []*flow
	var fallback *flow
	for _, fs := range schemas {
		l := find(fs.Spec.PriorityLevelConfiguration.Name)
		if l == nil {
			continue
		}
		f := &flow{
			schema: fs.Name, level: l, stats: l.statsOf(fs.Name), rules: fs.Spec.Rules,
			schemaUID: []string{string(fs.UID)}, levelUID: []string{string(next.configs[l.name].UID)},
		}
		if fs.Spec.DistinguisherMethod != nil {
			f.by = fs.Spec.DistinguisherMethod.Type
		}
		if fs.Name == flowcontrolv1.FlowSchemaNameCatchAll {
			fallback = f
		}
		flows = append(flows, f)
	}
	next.classifier = newClassifier(flows, fallback, p.seed)
}

// withMandatory adds what is missing of the objects that must be there, and puts schemas in the order in which they are
// asked.
func withMandatory(configs []*flowcontrolv1.PriorityLevelConfiguration, schemas []*flowcontrolv1.FlowSchema) ([]*flowcontrolv1.PriorityLevelConfiguration, []*flowcontrolv1.FlowSchema) {
	configs, schemas = slices.Clone(configs), slices.Clone(schemas)
	for _, must := range bootstrap.MandatoryPriorityLevelConfigurations {
		ok := func(pl *flowcontrolv1.PriorityLevelConfiguration) bool {
			_, err := usable(pl)
			return pl.Name == must.Name && err == nil
		}
		if !slices.ContainsFunc(configs, ok) {
			configs = append(configs, must)
		}
	}
	for _, must := range bootstrap.MandatoryFlowSchemas {
		// One that leads to another level than its own would leave somebody without any.
		ok := func(fs *flowcontrolv1.FlowSchema) bool {
			return fs.Name == must.Name && fs.Spec.PriorityLevelConfiguration.Name == must.Spec.PriorityLevelConfiguration.Name
		}
		if !slices.ContainsFunc(schemas, ok) {
			schemas = append(schemas, must)
		}
	}
	sort.Stable(apihelpers.FlowSchemaSequence(schemas))
	return configs, schemas
}
