package compare

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"barque.dev/test/differential/stream"
)

// Exception is a difference that is meant.
type Exception struct {
	// Request is what "METHOD path" matches, Answers the statuses and kinds of both answers, stock's first ("500 Status, 200
	// Table"), At the place and Stock and Ours the values; empty ones match all.
	Request, Answers, At, Stock, Ours string
	Reason                            string
	// Rare ones are met only in long streams, or by chance: that nothing needed one is no error.
	Rare bool
}

// exception is an Exception made ready.
type exception struct {
	Exception
	request, answers, at, stock, ours *regexp.Regexp
	used                              int
	// example is what it was needed for first.
	example string
}

// Report collects what two servers answered differently.
type Report struct {
	exceptions []*exception
	// Compared and Excepted count requests.
	Compared, Excepted int
	groups             map[string]*group
}

// group is requests whose answers differ in the same way.
type group struct {
	cause    string
	count    int
	request  stream.Request
	differ   []Difference
	requests []string
}

// NewReport makes an empty one.
func NewReport(meant []Exception) (*Report, error) {
	r := &Report{groups: map[string]*group{}}
	for _, m := range meant {
		e := &exception{Exception: m}
		for _, p := range []struct {
			into **regexp.Regexp
			from string
		}{{&e.request, m.Request}, {&e.answers, m.Answers}, {&e.at, m.At}, {&e.stock, m.Stock}, {&e.ours, m.Ours}} {
			compiled, err := regexp.Compile("(?s)" + p.from)
			if err != nil {
				return nil, fmt.Errorf("exception %q: %w", m.Reason, err)
			}
			*p.into = compiled
		}
		r.exceptions = append(r.exceptions, e)
	}
	return r, nil
}

// Add compares the answers to one request.
func (r *Report) Add(req stream.Request, stock, ours Normal) {
	r.Compared++
	all := Diff(stock, ours)
	answers := outline(stock) + ", " + outline(ours)
	left := slices.DeleteFunc(slices.Clone(all), func(d Difference) bool { return r.meant(req, answers, d) })
	if len(left) == 0 {
		if len(all) > 0 {
			r.Excepted++
		}
		return
	}
	cause := fmt.Sprintf("%v %v", stock["status"], ours["status"])
	var places []string
	for _, d := range left {
		places = append(places, indices.ReplaceAllString(d.At, "[*]"))
	}
	slices.Sort(places)
	cause += " " + strings.Join(slices.Compact(places), " ")
	cause += " " + skeleton(left)
	g := r.groups[cause]
	if g == nil {
		g = &group{cause: cause, request: req, differ: left}
		r.groups[cause] = g
	}
	g.count++
	if len(req.Body) < len(g.request.Body) && req.Body != nil {
		g.request, g.differ = req, left
	}
	g.requests = append(g.requests, fmt.Sprintf("%d %s", req.ID, req.Scene))
}

// outline is an answer's status, and what kind of object it is.
func outline(n Normal) string {
	kind := absent
	if body, ok := n["body"].(map[string]any); ok {
		if text, ok := body["kind"].(string); ok {
			kind = text
		}
	}
	return fmt.Sprintf("%v %s", n["status"], kind)
}

var (
	indices = regexp.MustCompile(`\[\d+\]`)
	special = regexp.MustCompile(`"[^"]*"|\d+`)
)

// skeleton is the first words of messages that differ, so that different causes have groups of their own.
func skeleton(all []Difference) string {
	for _, d := range all {
		if strings.HasSuffix(d.At, "message") || d.At == "body" {
			s, o := special.ReplaceAllString(Text(d.Stock), "_"), special.ReplaceAllString(Text(d.Ours), "_")
			return s[:min(len(s), 50)] + " | " + o[:min(len(o), 50)]
		}
	}
	return ""
}

// meant tells whether a difference is excepted.
func (r *Report) meant(req stream.Request, answers string, d Difference) bool {
	line := req.Method + " " + req.Path
	s, o := Text(d.Stock), Text(d.Ours)
	for _, e := range r.exceptions {
		if e.request.MatchString(line) && e.answers.MatchString(answers) && e.at.MatchString(d.At) && e.stock.MatchString(s) && e.ours.MatchString(o) {
			if e.used++; e.example == "" {
				e.example = fmt.Sprintf("%d %s, %s\n    at %s\n      stock: %s\n      ours:  %s", req.ID, short(line, 200), answers, d.At, around(s, o), around(o, s))
			}
			return true
		}
	}
	return false
}

// Needed tells what each exception was needed for, and how often.
func (r *Report) Needed() string {
	var out strings.Builder
	for _, e := range r.exceptions {
		fmt.Fprintf(&out, "\n%s: %d times\n", e.Reason, e.used)
		if e.used > 0 {
			fmt.Fprintf(&out, "  first %s\n", e.example)
		}
	}
	return out.String()
}

// Unused are the reasons of exceptions that nothing needed, but for rare ones.
func (r *Report) Unused() []string {
	var all []string
	for _, e := range r.exceptions {
		if e.used == 0 && !e.Rare {
			all = append(all, e.Reason)
		}
	}
	return all
}

// Differing counts requests whose answers differ and should not.
func (r *Report) Differing() int {
	n := 0
	for _, g := range r.groups {
		n += g.count
	}
	return n
}

// String prints the differences, the most frequent first.
func (r *Report) String() string {
	var all []*group
	for _, g := range r.groups {
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b *group) int { return cmp.Or(cmp.Compare(b.count, a.count), strings.Compare(a.cause, b.cause)) })
	var out strings.Builder
	for i, g := range all {
		fmt.Fprintf(&out, "\n#%d: %d requests\n  %s %s\n", i+1, g.count, g.request.Method, short(g.request.Path, 300))
		for name, value := range g.request.Header {
			fmt.Fprintf(&out, "  %s: %s\n", name, short(value, 100))
		}
		if g.request.Body != nil {
			fmt.Fprintf(&out, "  %s\n", short(fmt.Sprintf("%q", g.request.Body), 600))
		}
		for _, d := range g.differ[:min(len(g.differ), 8)] {
			fmt.Fprintf(&out, "    at %s\n      stock: %s\n      ours:  %s\n", d.At, around(Text(d.Stock), Text(d.Ours)), around(Text(d.Ours), Text(d.Stock)))
		}
		if more := len(g.differ) - 8; more > 0 {
			fmt.Fprintf(&out, "    and %d places more\n", more)
		}
		fmt.Fprintf(&out, "  requests %s\n", short(strings.Join(g.requests, ", "), 250))
	}
	return out.String()
}

func short(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}

// around is the part of a text from a little before where another one differs from it.
func around(s, other string) string {
	const shown, before = 400, 60
	i := 0
	for i < len(s) && i < len(other) && s[i] == other[i] {
		i++
	}
	if len(s) <= shown || i <= before {
		return short(s, shown)
	}
	return "…" + short(s[i-before:], shown)
}
