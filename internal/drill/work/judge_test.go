package work

import (
	"slices"
	"testing"
	"time"

	"barque.dev/internal/drill/check"
)

func TestJudge(t *testing.T) {
	pod := func(revision int64, of, name, uid string) Sight {
		return Sight{Kind: Pod, Revision: revision, Of: of, Name: name, UID: uid, Active: true}
	}
	ended := func(s Sight, revision int64) Sight { s.Revision, s.Active = revision, false; return s }
	gone := func(s Sight, revision int64) Sight { s.Revision, s.Gone = revision, true; return s }
	web := func(revision int64, uid string) Sight { return pod(revision, Deployment, "web-"+uid, uid) }
	full := []Sight{web(1, "a"), web(2, "b"), web(3, "c"), web(4, "d")} // 3 and 1
	set := func(uid string) Sight { return pod(1, StatefulSet, "set-0", uid) }
	done := func(revision int64, job, uid string) Sight {
		return Sight{Kind: Pod, Revision: revision, Of: job, Name: "p-" + uid, UID: uid, Succeeded: true}
	}
	job := func(revision int64, completions int) Sight {
		return Sight{Kind: Job, Revision: revision, Name: "job-1", UID: "j", Completions: completions}
	}
	service := func(revision int64, uid string, takes ...string) Sight {
		return Sight{Kind: Service, Revision: revision, Name: "s-" + uid, UID: uid, Takes: takes}
	}
	reset := func(k Kind, revision int64) Sight { return Sight{Kind: k, Revision: revision, Reset: true} }
	sample := func(at int, uids ...string) Sample { return Sample{At: time.Duration(at) * time.Second, Running: uids} }

	for name, c := range map[string]struct {
		sights  []Sight
		samples []Sample
		want    []check.Rule
	}{
		"nothing":                          {},
		"as many pods as may be":           {sights: full},
		"one pod too many":                 {sights: append(slices.Clone(full), web(5, "e")), want: []check.Rule{Surge}},
		"it is told once while it lasts":   {sights: append(slices.Clone(full), web(5, "e"), web(6, "f"), ended(web(1, "a"), 7)), want: []check.Rule{Surge}},
		"and again when it comes again":    {sights: append(slices.Clone(full), web(5, "e"), ended(web(1, "a"), 6), web(7, "g")), want: []check.Rule{Surge, Surge}},
		"one that ends makes room":         {sights: append(slices.Clone(full), ended(web(1, "a"), 5), web(6, "e"))},
		"one that is gone makes room":      {sights: append(slices.Clone(full), gone(web(1, "a"), 5), web(6, "e"))},
		"the order is that of revisions":   {sights: append([]Sight{web(6, "e"), ended(web(1, "a"), 5)}, full...)},
		"a list is one moment":             {sights: append(slices.Clone(full), reset(Pod, 9), web(9, "e"), web(9, "f"), web(9, "g"), web(9, "h"))},
		"a list may show too many":         {sights: []Sight{reset(Pod, 9), web(9, "a"), web(9, "b"), web(9, "c"), web(9, "d"), web(9, "e")}, want: []check.Rule{Surge}},
		"other pods do not count":          {sights: append(slices.Clone(full), set("x"))},
		"an ordinal after the other":       {sights: []Sight{set("a"), set("b")}, samples: []Sample{sample(1, "a"), sample(2, "a"), sample(3, "b"), sample(4, "b")}},
		"a sample that took its time":      {sights: []Sight{set("a"), set("b")}, samples: []Sample{sample(1, "a"), sample(2, "a", "b"), sample(3, "b")}},
		"an ordinal runs twice":            {sights: []Sight{set("a"), set("b")}, samples: []Sample{sample(1, "a", "b"), sample(2, "a", "b"), sample(3, "a", "b")}, want: []check.Rule{Ordinal}},
		"pods of other kinds run together": {sights: full, samples: []Sample{sample(1, "a", "b"), sample(2, "a", "b")}},
		"completions are counted":          {sights: []Sight{done(1, "j", "a"), job(2, 1), done(3, "j", "b"), job(4, 2)}},
		"a pod shows twice":                {sights: []Sight{done(1, "j", "a"), done(2, "j", "a"), job(3, 2)}, want: []check.Rule{Counted}},
		"a completion too many":            {sights: []Sight{done(1, "j", "a"), job(2, 2), done(3, "j", "b"), job(4, 3)}, want: []check.Rule{Counted}},
		"one of another job":               {sights: []Sight{done(1, "k", "a"), job(2, 1)}, want: []check.Rule{Counted}},
		"pods were not seen for a while":   {sights: []Sight{reset(Pod, 1), job(2, 0), reset(Pod, 3), job(4, 2)}},
		"lists of one revision":            {sights: []Sight{job(2, 1), reset(Job, 3), job(3, 2), reset(Pod, 3), done(3, "j", "a"), done(3, "j", "b")}, want: []check.Rule{Counted}},
		"jobs first, and then the pods":    {sights: []Sight{reset(Pod, 1), job(2, 0), reset(Job, 3), job(3, 2), reset(Pod, 3), done(3, "j", "a")}},
		"later jobs are judged again":      {sights: []Sight{reset(Pod, 1), reset(Pod, 3), job(4, 2)}, want: []check.Rule{Counted}},
		"addresses of their own":           {sights: []Sight{service(1, "a", "10.43.0.1", "port 30001"), service(2, "b", "10.43.0.2", "port 30002")}},
		"one address for two":              {sights: []Sight{service(1, "a", "10.43.0.1", "port 30001"), service(2, "b", "10.43.0.1", "port 30002")}, want: []check.Rule{Unique}},
		"one port for two":                 {sights: []Sight{service(1, "a", "10.43.0.1", "port 30001"), service(2, "b", "10.43.0.2", "port 30001")}, want: []check.Rule{Unique}},
		"an address is taken up again":     {sights: []Sight{service(1, "a", "10.43.0.1"), gone(service(1, "a", "10.43.0.1"), 2), service(3, "b", "10.43.0.1")}},
		"a service shows twice":            {sights: []Sight{service(1, "a", "10.43.0.1"), service(2, "a", "10.43.0.1")}},
		"it may have gone unseen":          {sights: []Sight{service(1, "a", "10.43.0.1"), reset(Service, 4), service(4, "b", "10.43.0.1")}},
	} {
		var got []check.Rule
		for _, v := range Judge(&Record{Sights: c.sights, Samples: c.samples}) {
			got = append(got, v.Rule)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
