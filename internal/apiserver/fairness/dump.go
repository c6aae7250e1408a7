package fairness

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Handlers are the dumps that upstream has, by path. Who may see them is to be checked before.
func (c *Control) Handlers() map[string]http.Handler {
	const prefix = "/debug/api_priority_and_fairness/dump_"
	return map[string]http.Handler{
		prefix + "priority_levels": dump(func(*http.Request) [][]string { return c.dumpLevels() }),
		prefix + "queues":          dump(func(*http.Request) [][]string { return c.dumpQueues() }),
		prefix + "requests": dump(func(req *http.Request) [][]string {
			return c.dumpRequests(req.URL.Query().Get("includeRequestDetails") != "")
		}),
	}
}

// dump serves rows of columns that are separated by commas and stand below each other.
func dump(rows func(*http.Request) [][]string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		var text bytes.Buffer
		table := tabwriter.NewWriter(&text, 8, 0, 1, ' ', 0)
		for _, row := range rows(req) {
			_, _ = io.WriteString(table, strings.Join(row, ",\t")+"\n") // into memory
		}
		_ = table.Flush()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write(text.Bytes())
	})
}

// each calls f for every level by name, with its lock held.
func (c *Control) each(f func(l *level, wanted bool)) {
	current := c.plan.Load()
	for _, name := range slices.Sorted(maps.Keys(current.levels)) {
		l := current.levels[name]
		l.mu.Lock()
		f(l, current.wanted[name])
		l.mu.Unlock()
	}
}

func (c *Control) dumpLevels() [][]string {
	rows := [][]string{{"PriorityLevelName", "ActiveQueues", "IsIdle", "IsQuiescing", "WaitingRequests", "ExecutingRequests",
		"DispatchedRequests", "RejectedRequests", "TimedoutRequests", "CancelledRequests"}}
	c.each(func(l *level, wanted bool) {
		rows = append(rows, []string{
			l.name, strconv.Itoa(len(l.waiting)), strconv.FormatBool(l.running == 0 && l.waitingCount == 0), strconv.FormatBool(!wanted),
			strconv.Itoa(l.waitingCount), strconv.Itoa(l.running), fmt.Sprint(l.given),
			fmt.Sprint(l.refused.total), fmt.Sprint(l.refused.timedOut), fmt.Sprint(l.refused.cancelled),
		})
	})
	return rows
}

func (c *Control) dumpQueues() [][]string {
	rows := [][]string{{"PriorityLevelName", "Index", "PendingRequests", "ExecutingRequests", "SeatsInUse", "NextDispatchR",
		"InitialSeatsSum", "MaxSeatsSum", "TotalWorkSum"}}
	c.each(func(l *level, _ bool) {
		for i, q := range l.queues {
			if q == nil {
				q = &queue{}
			}
			initial := 0
			for t := q.tickets.first; t != nil; t = t.next {
				initial += t.initial
			}
			rows = append(rows, []string{
				l.name, strconv.Itoa(i), strconv.Itoa(q.count), strconv.Itoa(q.executing), strconv.Itoa(q.used), seatSeconds(q.start),
				strconv.Itoa(initial), strconv.Itoa(q.seats), seatSeconds(q.work),
			})
		}
	})
	return rows
}

func seatSeconds(v float64) string { return fmt.Sprintf("%.8fss", v) }

func (c *Control) dumpRequests(details bool) [][]string {
	head := []string{"PriorityLevelName", "FlowSchemaName", "QueueIndex", "RequestIndexInQueue", "FlowDistingsher", "ArriveTime",
		"InitialSeats", "FinalSeats", "AdditionalLatency", "StartTime"}
	if details {
		head = append(head, "UserName", "Verb", "APIPath", "Namespace", "Name", "APIVersion", "Resource", "SubResource")
	}
	rows := [][]string{head}
	c.each(func(l *level, _ bool) {
		queues := slices.Clone(l.waiting)
		slices.SortFunc(queues, func(a, b *queue) int { return cmp.Compare(a.index, b.index) })
		for _, q := range queues {
			place := 0
			for t := q.tickets.first; t != nil; t = t.next {
				rows = append(rows, c.dumpRequest(t, place, details))
				place++
			}
		}
		for t := l.executing.first; t != nil; t = t.next {
			rows = append(rows, c.dumpRequest(t, -1, details))
		}
	})
	return rows
}

func (c *Control) dumpRequest(t *Ticket, place int, details bool) []string {
	index := -1
	if t.queue != nil {
		index = t.queue.index
	}
	moment := func(d time.Duration) string { return c.began.Add(d).UTC().Format(time.RFC3339Nano) }
	started := time.Time{}.Format(time.RFC3339Nano)
	if t.seated {
		started = moment(t.started)
	}
	row := []string{
		t.flow.level.name, t.flow.schema, strconv.Itoa(index), strconv.Itoa(place), t.flow.distinguish(t), moment(t.arrived),
		strconv.Itoa(t.initial), strconv.Itoa(t.final), t.linger.String(), started,
	}
	if details {
		i := t.info
		row = append(row, t.user.GetName(), i.Verb, i.Path, i.Namespace, i.Name,
			schema.GroupVersion{Group: i.APIGroup, Version: i.APIVersion}.String(), i.Resource, i.Subresource)
	}
	return row
}
