package apiserver_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"barque.dev/internal/apiserver"
)

const (
	schemaUID = "X-Kubernetes-PF-FlowSchema-UID"
	levelUID  = "X-Kubernetes-PF-PriorityLevel-UID"
)

// narrow is a control plane of 20 seats, 4 of which are for jane, where one request may wait for them. She may read
// configmaps and /slow.
func narrow(t *testing.T, slow http.HandlerFunc) (c *cluster, schema, level string) {
	t.Helper()
	c = start(t, func(cfg *apiserver.Config) {
		cfg.Limits.Reads, cfg.Limits.Writes = 10, 10
		cfg.Paths = map[string]http.Handler{"/slow": slow}
	})
	c.wait(t)
	const flow, rbac = "flowcontrol.apiserver.k8s.io", "rbac.authorization.k8s.io"
	create := func(group, resource, object string) string {
		t.Helper()
		a := do(t, c.admin(t), "POST", c.url+"/apis/"+group+"/v1/"+resource, strings.NewReader(object), "Content-Type", "application/json")
		var made struct{ Metadata struct{ UID string } }
		if err := json.Unmarshal([]byte(a.body), &made); err != nil || a.code != 201 {
			t.Fatal(a)
		}
		return made.Metadata.UID
	}
	create(rbac, "clusterroles", `{"metadata":{"name":"narrow"},"rules":[{"nonResourceURLs":["/slow"],"verbs":["*"]},
		{"apiGroups":[""],"resources":["configmaps"],"verbs":["*"]}]}`)
	create(rbac, "clusterrolebindings", `{"metadata":{"name":"narrow"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"narrow"},
		"subjects":[{"kind":"User","name":"jane"},{"kind":"User","name":"bob"}]}`)
	level = create(flow, "prioritylevelconfigurations", `{"metadata":{"name":"narrow"},"spec":{"type":"Limited","limited":{"nominalConcurrencyShares":1,
		"borrowingLimitPercent":0,"limitResponse":{"type":"Queue","queuing":{"queues":1,"handSize":1,"queueLengthLimit":1}}}}}`)
	schema = create(flow, "flowschemas", `{"metadata":{"name":"narrow"},"spec":{"priorityLevelConfiguration":{"name":"narrow"},"matchingPrecedence":500,
		"rules":[{"subjects":[{"kind":"User","user":{"name":"jane"}}],"nonResourceRules":[{"verbs":["*"],"nonResourceURLs":["*"]}],
		"resourceRules":[{"verbs":["*"],"apiGroups":["*"],"resources":["*"],"namespaces":["*"],"clusterScope":true}]}]}}`)
	jane := c.http(t, "jane")
	eventually(t, "the server follows the configuration", func() error {
		if got := do(t, jane, "GET", c.url+"/version", nil).header.Get(schemaUID); got != schema {
			return fmt.Errorf("the schema is %q, not %q", got, schema)
		}
		return nil
	})
	return c, schema, level
}

func (c *cluster) dump(t *testing.T, what string) string {
	t.Helper()
	a := do(t, c.admin(t), "GET", c.url+"/debug/api_priority_and_fairness/dump_"+what, nil)
	if a.code != 200 {
		t.Fatal(a)
	}
	return a.body
}

func TestRequestsWaitForTheirLevel(t *testing.T) {
	entered, leave := make(chan struct{}, 10), make(chan struct{})
	c, schema, level := narrow(t, func(http.ResponseWriter, *http.Request) {
		entered <- struct{}{}
		<-leave
	})
	jane := c.http(t, "jane")
	answers := make(chan answer, 10)
	ask := func() { answers <- do(t, jane, "GET", c.url+"/slow", nil) }
	for range 4 {
		go ask()
		<-entered
	}
	go ask()
	eventually(t, "the fifth waits", func() error {
		if text := c.dump(t, "requests"); strings.Count(text, "narrow,") != 10 {
			return errors.New(text)
		}
		return nil
	})
	a := do(t, jane, "GET", c.url+"/slow", nil)
	if a.code != http.StatusTooManyRequests || a.header.Get("Retry-After") == "" || a.header.Get(schemaUID) != schema || a.header.Get(levelUID) != level {
		t.Errorf("the sixth: %v", a)
	}
	if a := do(t, c.http(t, "bob"), "GET", c.url+"/api/v1/namespaces/default/configmaps", nil); a.code != 200 || a.header.Get(schemaUID) == schema {
		t.Errorf("bob: %v", a)
	}
	if a := do(t, c.admin(t), "GET", c.url+"/api/v1/namespaces", nil); a.code != 200 {
		t.Errorf("the admin: %v", a)
	}
	if a := do(t, c.http(t, "bob"), "GET", c.url+"/debug/api_priority_and_fairness/dump_requests", nil); a.code != 403 {
		t.Errorf("bob looks who asks for what: %v", a)
	}
	close(leave)
	for range 5 {
		if a := <-answers; a.code != 200 {
			t.Errorf("one that was let in: %v", a)
		}
	}
	for _, want := range []string{
		`apiserver_flowcontrol_rejected_requests_total{flow_schema="narrow",priority_level="narrow",reason="queue-full"} 1`,
		`apiserver_flowcontrol_nominal_limit_seats{priority_level="narrow"} 4`,
		`apiserver_flowcontrol_request_wait_duration_seconds_count{execute="true",flow_schema="narrow",priority_level="narrow"}`,
	} {
		if text := do(t, c.admin(t), "GET", c.url+"/metrics", nil).body; !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
}

// TestAWatchTakesASeatUntilItHasBegun opens more watches than there are seats.
func TestAWatchTakesASeatUntilItHasBegun(t *testing.T) {
	c, _, level := narrow(t, func(http.ResponseWriter, *http.Request) {})
	path := c.url + "/api/v1/namespaces/default/configmaps"
	if a := do(t, c.admin(t), "POST", path, strings.NewReader(`{"metadata":{"name":"a"}}`), "Content-Type", "application/json"); a.code != 201 {
		t.Fatal(a)
	}
	jane := c.http(t, "jane")
	for i := range 10 {
		query := "?watch=true"
		if i%2 == 1 {
			query += "&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
		}
		resp, err := jane.Get(path + query)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		if resp.StatusCode != 200 || resp.Header.Get(levelUID) != level {
			t.Fatalf("watch %d: %d %v", i, resp.StatusCode, resp.Header)
		}
		line, err := bufio.NewReader(resp.Body).ReadString('\n')
		if err != nil || !strings.Contains(line, `"ADDED"`) {
			t.Fatalf("watch %d: %q, %v", i, line, err)
		}
	}
	eventually(t, "no watch holds a seat", func() error {
		if text := c.dump(t, "requests"); strings.Contains(text, "narrow,") {
			return errors.New(text)
		}
		return nil
	})
}

// TestLimitsWithoutFairness is --enable-priority-and-fairness=false.
func TestLimitsWithoutFairness(t *testing.T) {
	c := start(t, func(cfg *apiserver.Config) { cfg.Limits.Plain = true })
	a := do(t, c.admin(t), "GET", c.url+"/api/v1/namespaces", nil)
	if a.code != 200 || a.header.Get(levelUID) != "" || len(a.header.Values(schemaUID)) > 0 {
		t.Errorf("%v", a)
	}
	if a := do(t, c.admin(t), "GET", c.url+"/debug/api_priority_and_fairness/dump_requests", nil); a.code != 404 {
		t.Errorf("%v", a)
	}
}
