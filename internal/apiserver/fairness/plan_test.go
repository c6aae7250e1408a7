package fairness

import (
	"fmt"
	"hash/maphash"
	"log/slog"
	"math"
	"slices"
	"testing"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"pgregory.net/rapid"
)

func stockLevels() []*flowcontrolv1.PriorityLevelConfiguration {
	return slices.Concat(bootstrap.MandatoryPriorityLevelConfigurations, bootstrap.SuggestedPriorityLevelConfigurations)
}

func stockSchemas() []*flowcontrolv1.FlowSchema {
	return slices.Concat(bootstrap.SuggestedFlowSchemas, bootstrap.MandatoryFlowSchemas)
}

func testPlanner(seats int) *planner {
	return &planner{seats: seats, seed: maphash.MakeSeed(), log: slog.New(slog.DiscardHandler)}
}

func resourceInfo(verb, group, resource, namespace, name string) *request.RequestInfo {
	return &request.RequestInfo{IsResourceRequest: true, Verb: verb, APIGroup: group, APIVersion: "v1", Resource: resource, Namespace: namespace, Name: name}
}

func TestStockObjectsClassify(t *testing.T) {
	c := testPlanner(600).plan(stockLevels(), stockSchemas(), nil, 0).classifier
	as := func(name string, groups ...string) user.Info {
		return &user.DefaultInfo{Name: name, Groups: append(groups, user.AllAuthenticated)}
	}
	node := as("system:node:n1", user.NodesGroup)
	account := as("system:serviceaccount:ns:sa", "system:serviceaccounts", "system:serviceaccounts:ns")
	system := as("system:serviceaccount:kube-system:sa", "system:serviceaccounts", "system:serviceaccounts:kube-system")
	path := func(p string) *request.RequestInfo { return &request.RequestInfo{Verb: "get", Path: p} }
	pods := resourceInfo("list", "", "pods", "ns", "")
	lease := resourceInfo("update", "coordination.k8s.io", "leases", "kube-node-lease", "n1")
	status := resourceInfo("patch", "", "nodes", "", "n1")
	status.Subresource = "status"
	for _, tc := range []struct {
		who          user.Info
		info         *request.RequestInfo
		schema, goes string
	}{
		{as("admin", user.SystemPrivilegedGroup), pods, "exempt", "exempt"},
		{as("admin", user.SystemPrivilegedGroup), path("/metrics"), "exempt", "exempt"},
		{as("alice"), path("/healthz"), "probes", "exempt"},
		{&user.DefaultInfo{Name: user.Anonymous, Groups: []string{user.AllUnauthenticated}}, path("/readyz/etcd"), "probes", "exempt"},
		{as("alice"), path("/healthzzz"), "global-default", "global-default"},
		{node, lease, "system-node-high", "node-high"},
		{node, status, "system-node-high", "node-high"},
		{node, pods, "system-nodes", "system"},
		{as(user.KubeScheduler), resourceInfo("update", "coordination.k8s.io", "leases", "kube-system", "kube-scheduler"), "system-leader-election", "leader-election"},
		{as(user.KubeScheduler), pods, "kube-scheduler", "workload-high"},
		{as(user.KubeControllerManager), pods, "kube-controller-manager", "workload-high"},
		{system, pods, "kube-system-service-accounts", "workload-high"},
		{account, pods, "service-accounts", "workload-low"},
		{as("alice"), pods, "global-default", "global-default"},
		{&user.DefaultInfo{Name: "odd"}, pods, "catch-all", "catch-all"},
	} {
		for range 2 { // found out, and remembered
			f, _ := c.find(tc.info, tc.who)
			if f.schema != tc.schema || f.level.name != tc.goes {
				t.Errorf("%s %+v: %s in %s, want %s in %s", tc.who.GetName(), tc.info, f.schema, f.level.name, tc.schema, tc.goes)
			}
		}
	}
	// A user of the same name in other groups is another.
	if f, _ := c.find(pods, as("system:node:n1")); f.schema != "global-default" {
		t.Errorf("without the nodes' group: %s", f.schema)
	}
	_, one := c.find(pods, account)
	_, two := c.find(pods, as("system:serviceaccount:ns:other", "system:serviceaccounts"))
	if one == two {
		t.Error("two users of a schema that tells users apart are one flow")
	}
	_, one = c.find(pods, system)
	_, two = c.find(resourceInfo("list", "", "pods", "other", ""), system)
	if one == two {
		t.Error("two namespaces of a schema that tells namespaces apart are one flow")
	}
}

func TestManyUsersAreForgotten(t *testing.T) {
	c := testPlanner(600).plan(nil, nil, nil, 0).classifier
	for i := range maxUsers + 10 {
		c.find(resourceInfo("get", "", "pods", "ns", "p"), &user.DefaultInfo{Name: fmt.Sprint("u", i), Groups: []string{user.AllAuthenticated}})
	}
	n := 0
	c.users.Load().Range(func(any, any) bool { n++; return true })
	if n > 10 {
		t.Errorf("%d users are remembered", n)
	}
}

func TestSharesOfStockLevels(t *testing.T) {
	p := testPlanner(600).plan(stockLevels(), stockSchemas(), nil, 0)
	for name, want := range map[string]share{
		"exempt":          {nominal: 0, least: 0, most: 600, width: 10},
		"catch-all":       {nominal: 13, least: 13, most: 613, width: 10},
		"workload-low":    {nominal: 245, least: 24, most: 845, width: 10},
		"leader-election": {nominal: 25, least: 25, most: 625, width: 4},
		"system":          {nominal: 74, least: 50, most: 674, width: 10},
	} {
		if got := p.levels[name].share; got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
	p.rebalance(time.Second)
	total := 0
	for _, l := range p.levels {
		total += l.limit
		if !l.exempt && (l.limit < l.share.least || l.limit > l.share.most) {
			t.Errorf("%s has %d seats: %+v", l.name, l.limit, l.share)
		}
	}
	if total < p.sum-len(p.levels) || total > p.sum+len(p.levels) {
		t.Errorf("%d seats of %d are given", total, p.sum)
	}
}

// TestLevelsComeAndGo follows changes of the configuration: requests that wait at a level that goes are served.
func TestLevelsComeAndGo(t *testing.T) {
	planner := testPlanner(10)
	own := bootstrap.SuggestedPriorityLevelConfigurationSystem.DeepCopy()
	own.Name, own.UID = "own", "own-uid"
	one := int32(1)
	own.Spec.Limited.NominalConcurrencyShares = &one
	fs := bootstrap.SuggestedFlowSchemaGlobalDefault.DeepCopy()
	fs.UID, fs.Spec.PriorityLevelConfiguration.Name = "fs-uid", "own"
	first := planner.plan([]*flowcontrolv1.PriorityLevelConfiguration{own}, []*flowcontrolv1.FlowSchema{fs}, nil, 0)
	who := &user.DefaultInfo{Name: "u", Groups: []string{user.AllAuthenticated}}
	f, _ := first.classifier.find(resourceInfo("get", "", "pods", "ns", "p"), who)
	if f.level.name != "own" || f.levelUID[0] != "own-uid" || f.schemaUID[0] != "fs-uid" {
		t.Fatalf("%+v", f)
	}
	var in []*Ticket
	for range 20 {
		k := &Ticket{flow: f, info: resourceInfo("get", "", "pods", "ns", "p"), estimate: estimate{initial: 1}}
		if f.level.enter(k, 7, 0) == "" {
			in = append(in, k)
		}
	}
	second := planner.plan(nil, []*flowcontrolv1.FlowSchema{fs}, first, 1)
	if g, _ := second.classifier.find(resourceInfo("get", "", "pods", "ns", "p"), who); g.schema != "catch-all" {
		t.Errorf("a schema whose level went leads to %s", g.level.name)
	}
	if second.levels["own"] != f.level || second.wanted["own"] {
		t.Error("the level must go on for those in it")
	}
	for len(in) > 0 {
		i := slices.IndexFunc(in, has)
		if i < 0 {
			t.Fatalf("%d wait for ever", len(in))
		}
		f.level.leave(in[i], 2)
		in = slices.Delete(in, i, i+1)
	}
	if third := planner.plan(nil, nil, second, 3); third.levels["own"] != nil {
		t.Error("nobody is left, and the level is")
	}
}

func TestBrokenConfigurationIsAbsent(t *testing.T) {
	broken := bootstrap.MandatoryPriorityLevelConfigurationCatchAll.DeepCopy()
	broken.Spec.Limited = nil
	wrong := bootstrap.MandatoryFlowSchemaCatchAll.DeepCopy()
	wrong.Spec.PriorityLevelConfiguration.Name = "nowhere"
	twice := &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "second-exempt"}, Spec: bootstrap.MandatoryPriorityLevelConfigurationExempt.Spec}
	p := testPlanner(10).plan([]*flowcontrolv1.PriorityLevelConfiguration{broken, twice}, []*flowcontrolv1.FlowSchema{wrong}, nil, 0)
	if p.levels["catch-all"] == nil || p.levels["exempt"] == nil || p.levels["second-exempt"] != nil {
		t.Errorf("levels: %v", p.levels)
	}
	f, _ := p.classifier.find(resourceInfo("get", "", "pods", "ns", "p"), &user.DefaultInfo{Name: "u", Groups: []string{user.AllAuthenticated}})
	if f.level.name != "catch-all" {
		t.Errorf("leads to %s", f.level.name)
	}
}

func TestDivide(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var claims []claim
		low, high := 0.0, 0.0
		for range rapid.IntRange(1, 6).Draw(t, "claims") {
			c := claim{low: float64(rapid.IntRange(0, 50).Draw(t, "low"))}
			c.high = c.low + float64(rapid.IntRange(0, 100).Draw(t, "room"))
			c.target = c.low + float64(rapid.IntRange(0, 200).Draw(t, "more"))
			low, high = low+c.low, high+c.high
			claims = append(claims, c)
		}
		sum := low + rapid.Float64Range(0, 1).Draw(t, "part")*(high-low)
		grants, fraction := divide(sum, claims)
		total := 0.0
		for i, g := range grants {
			c := claims[i]
			total += g
			if g < c.low-1e-6 || g > c.high+1e-6 {
				t.Fatalf("%v is not between %v and %v", g, c.low, c.high)
			}
			fair := fraction * max(c.target, leastTarget)
			if math.Abs(g-fair) > 1e-6 && g > c.low+1e-6 && g < c.high-1e-6 {
				t.Fatalf("%v is not its fair share %v", g, fair)
			}
		}
		if math.Abs(total-sum) > 1e-3 {
			t.Fatalf("%v is given of %v to %v", total, sum, claims)
		}
	})
}

func TestSeatsAreLentToThoseInNeed(t *testing.T) {
	p := testPlanner(600).plan(stockLevels(), stockSchemas(), nil, 0)
	p.rebalance(0)
	l := p.levels["global-default"]
	before := l.limit
	for i := range 2 * before {
		l.enter(&Ticket{flow: &flow{schema: "global-default", level: l, stats: l.statsOf("global-default")}, info: resourceInfo("get", "", "pods", "", "x"), estimate: estimate{initial: 1}}, uint64(i)*7919, time.Second)
	}
	var now time.Duration
	for range 30 {
		now += rebalancePeriod
		p.rebalance(now)
	}
	if l.limit < 2*before {
		t.Errorf("it needs %d seats, has %d after a while, and had %d", 2*before, l.limit, before)
	}
	if system := p.levels["system"]; system.limit < system.share.least {
		t.Errorf("system was left %d seats, of which %d are its own", system.limit, system.share.least)
	}
}

func TestEstimates(t *testing.T) {
	e := &estimator{objects: func(gr schema.GroupResource) int { return map[string]int{"pods": 5000, "nodes": 30}[gr.Resource] }}
	watch := resourceInfo("watch", "", "pods", "", "")
	for _, tc := range []struct {
		info  *request.RequestInfo
		query string
		want  int
	}{
		{resourceInfo("get", "", "pods", "ns", "p"), "", 1},
		{resourceInfo("list", "", "pods", "", ""), "", 10},
		{resourceInfo("list", "", "pods", "", ""), "limit=250", 3},
		{resourceInfo("list", "", "pods", "", ""), "limit=250&labelSelector=a%3Db", 10},
		{resourceInfo("list", "", "pods", "ns", "p"), "", 1},
		{resourceInfo("list", "", "nodes", "", ""), "", 1},
		{resourceInfo("list", "", "nothing", "", ""), "", 1},
		{resourceInfo("list", "", "pods", "", ""), "limit=%zz", 1},
		{watch, "", 10},
		{watch, "resourceVersion=0&watch=1", 10},
		{watch, "resourceVersion=77", 1},
		{watch, "resourceVersion=77&sendInitialEvents=true", 10},
	} {
		if got := e.estimate(tc.info, tc.query, 10); got.initial != tc.want || got.mutating {
			t.Errorf("%s %s?%s: %+v, want %d seats", tc.info.Verb, tc.info.Resource, tc.query, got, tc.want)
		}
	}
	if got := e.estimate(watch, "", 4); got.initial != 4 {
		t.Errorf("a level that gives 4 seats at most: %+v", got)
	}

	write := resourceInfo("update", "", "pods", "ns", "p")
	var forget []func()
	for range 200 {
		forget = append(forget, e.watches.add(watch, ""))
	}
	forget = append(forget,
		e.watches.add(watch, "fieldSelector=spec.nodeName%3Dn1"),
		e.watches.add(resourceInfo("watch", "", "pods", "ns", ""), ""), e.watches.add(resourceInfo("watch", "", "pods", "other", ""), ""),
		e.watches.add(resourceInfo("watch", "", "pods", "ns", "p"), ""), e.watches.add(resourceInfo("watch", "", "pods", "", "p"), ""))
	got := e.estimate(write, "", 10)
	if got.watchers != 203 || got.final != 5 || got.linger != 812*time.Microsecond || got.initial != 1 {
		t.Errorf("for 203 watchers: %+v", got)
	}
	if got := e.estimate(write, "", 2); got.final != 2 || got.linger != 2030*time.Microsecond {
		t.Errorf("on two seats: %+v", got)
	}
	token := resourceInfo("create", "", "serviceaccounts", "ns", "sa")
	token.Subresource = "token"
	if got := e.estimate(token, "", 10); got.mutating {
		t.Errorf("a token is no event: %+v", got)
	}
	for _, f := range forget {
		f()
	}
	if got := e.estimate(write, "", 10); got.watchers != 0 || got.final != 0 {
		t.Errorf("all watches have ended: %+v", got)
	}
	e.watches.resources.Range(func(what, _ any) bool {
		t.Errorf("%v is remembered, which nobody watches", what)
		return true
	})
}
