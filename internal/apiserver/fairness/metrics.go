package fairness

import (
	"github.com/prometheus/client_golang/prometheus"
)

// collector makes what levels have counted into metrics, with upstream's names, when they are asked for. Until then
// counting is an addition under a lock that is held anyway.
type collector struct {
	control *Control
	descs   map[string]*prometheus.Desc
}

var (
	byLevel  = []string{"priority_level"}
	bySchema = []string{"priority_level", "flow_schema"}
)

// described are the metrics, by the part of their names behind "apiserver_flowcontrol_".
func described() map[string]struct {
	help   string
	labels []string
} {
	type d = struct {
		help   string
		labels []string
	}
	with := func(labels []string, more string) []string { return append(labels[:len(labels):len(labels)], more) }
	return map[string]d{
		"dispatched_requests_total":               {"Requests that got a seat.", bySchema},
		"rejected_requests_total":                 {"Requests that got no seat.", with(bySchema, "reason")},
		"request_dispatch_no_accommodation_total": {"How often the request that was next had to wait on because it needs more seats than were free.", bySchema},
		"current_inqueue_requests":                {"Requests that wait.", bySchema},
		"current_inqueue_seats":                   {"Seats that those who wait need.", bySchema},
		"current_executing_requests":              {"Requests that run; watches only while they begin.", bySchema},
		"current_executing_seats":                 {"Seats that are taken.", bySchema},
		"request_wait_duration_seconds":           {"How long requests waited, in seconds.", with(bySchema, "execute")},
		"request_execution_seconds":               {"How long requests ran, in seconds; watches until they had begun.", with(bySchema, "type")},
		"work_estimated_seats":                    {"Seats that requests were expected to need.", bySchema},
		"request_queue_length_after_enqueue":      {"Length of the queue that a request came into, itself included.", bySchema},
		"watch_count_samples":                     {"Watchers of what requests changed.", bySchema},
		"current_r":                               {"Seat-seconds that each busy queue has been due.", byLevel},
		"nominal_limit_seats":                     {"Seats by configuration.", byLevel},
		"lower_limit_seats":                       {"Seats that are not lent.", byLevel},
		"upper_limit_seats":                       {"Seats with all that may be borrowed.", byLevel},
		"current_limit_seats":                     {"Seats there are now.", byLevel},
		"demand_seats_high_watermark":             {"Most seats wanted in the last period.", byLevel},
		"demand_seats_average":                    {"Seats wanted in the last period, on average.", byLevel},
		"demand_seats_stdev":                      {"Standard deviation of the seats wanted in the last period.", byLevel},
		"demand_seats_smoothed":                   {"Seats wanted over several periods.", byLevel},
		"target_seats":                            {"Seats that a level should have.", byLevel},
		"seat_fair_frac":                          {"Fraction of the seats they should have that all levels can be given.", nil},
		"priority_level_seat_utilization":         {"Seats taken, of those there are, each nanosecond.", with(byLevel, "phase")},
		"priority_level_request_utilization":      {"Requests, of the seats or the places in queues, each nanosecond.", with(byLevel, "phase")},
		"demand_seats":                            {"Seats wanted, of those there are, each nanosecond.", byLevel},
	}
}

func newCollector(c *Control) *collector {
	out := &collector{control: c, descs: map[string]*prometheus.Desc{}}
	for name, d := range described() {
		out.descs[name] = prometheus.NewDesc("apiserver_flowcontrol_"+name, d.help, d.labels, nil)
	}
	return out
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range c.descs {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	c.control.mu.Lock()
	current, balances, fraction := c.control.plan.Load(), c.control.balances, c.control.fraction
	c.control.mu.Unlock()
	s := &sink{descs: c.descs}
	s.gauge("seat_fair_frac", fraction)
	for name, l := range current.levels {
		l.tell(s, c.control)
		b := balances[name]
		s.gauge("demand_seats_high_watermark", b.most, name)
		s.gauge("demand_seats_average", b.average, name)
		s.gauge("demand_seats_stdev", b.deviation, name)
		s.gauge("demand_seats_smoothed", b.smoothed, name)
		s.gauge("target_seats", b.target, name)
	}
	for _, m := range s.made {
		out <- m
	}
}

// tell makes the metrics of a level.
func (l *level) tell(s *sink, c *Control) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.advance(c.now())
	s.gauge("current_r", l.progress, l.name)
	s.gauge("nominal_limit_seats", float64(l.share.nominal), l.name)
	s.gauge("lower_limit_seats", float64(l.share.least), l.name)
	s.gauge("upper_limit_seats", float64(l.share.most), l.name)
	s.gauge("current_limit_seats", float64(l.limit), l.name)
	s.histogram("priority_level_seat_utilization", &l.timings.seats, l.name, "executing")
	s.histogram("priority_level_request_utilization", &l.timings.executing, l.name, "executing")
	s.histogram("priority_level_request_utilization", &l.timings.waiting, l.name, "waiting")
	s.histogram("demand_seats", &l.timings.demand, l.name)
	for schema, st := range l.stats {
		s.counter("dispatched_requests_total", st.dispatched, l.name, schema)
		for i, why := range []refusal{full, queueFull, timedOut} {
			if st.refused[i] > 0 {
				s.counter("rejected_requests_total", st.refused[i], l.name, schema, string(why))
			}
		}
		if st.noRoom > 0 {
			s.counter("request_dispatch_no_accommodation_total", st.noRoom, l.name, schema)
		}
		s.gauge("current_inqueue_requests", float64(st.waiting), l.name, schema)
		s.gauge("current_inqueue_seats", float64(st.waitingSeats), l.name, schema)
		s.gauge("current_executing_requests", float64(st.executing), l.name, schema)
		s.gauge("current_executing_seats", float64(st.executingSeats), l.name, schema)
		s.histogram("request_wait_duration_seconds", &st.waits[0], l.name, schema, "false")
		s.histogram("request_wait_duration_seconds", &st.waits[1], l.name, schema, "true")
		s.histogram("request_execution_seconds", &st.executions[0], l.name, schema, "regular")
		s.histogram("request_execution_seconds", &st.executions[1], l.name, schema, "watch")
		s.histogram("work_estimated_seats", &st.seats, l.name, schema)
		s.histogram("request_queue_length_after_enqueue", &st.lengths, l.name, schema)
		s.histogram("watch_count_samples", &st.watches, l.name, schema)
	}
}

// sink gathers metrics, so that no lock is held while they are handed over.
type sink struct {
	descs map[string]*prometheus.Desc
	made  []prometheus.Metric
}

func (s *sink) gauge(name string, v float64, labels ...string) {
	s.made = append(s.made, prometheus.MustNewConstMetric(s.descs[name], prometheus.GaugeValue, v, labels...))
}

func (s *sink) counter(name string, v uint64, labels ...string) {
	s.made = append(s.made, prometheus.MustNewConstMetric(s.descs[name], prometheus.CounterValue, float64(v), labels...))
}

// histogram tells of one that has observed something.
func (s *sink) histogram(name string, h *histogram, labels ...string) {
	if count, below := h.total(); count > 0 {
		s.made = append(s.made, prometheus.MustNewConstHistogram(s.descs[name], count, h.sum, below, labels...))
	}
}
