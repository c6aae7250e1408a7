package integration

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/rest"

	"barque.dev/internal/testkit"
	"barque.dev/test/plane"
)

const auditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
rules:
- {level: Metadata, resources: [{group: "", resources: [secrets, serviceaccounts/token]}], omitStages: [RequestReceived]}
- {level: RequestResponse, resources: [{group: "", resources: [configmaps]}], omitStages: [RequestReceived]}
- {level: Request, resources: [{group: "", resources: [serviceaccounts]}]}
- {level: None, nonResourceURLs: ["/healthz"]}
- {level: Metadata, omitStages: [RequestReceived, ResponseStarted]}
`

// audited are three masters without agents. Each writes its audit log in another way.
type audited struct {
	plane.Programs
	dir     string
	configs []*rest.Config
	clients []*http.Client
	hook    *auditHook
}

// auditHook is a server that audit events are sent to.
type auditHook struct {
	mu     sync.Mutex
	events []auditv1.Event
}

func (h *auditHook) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var list auditv1.EventList
	if err := json.NewDecoder(req.Body).Decode(&list); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, list.Items...)
}

// startAudited starts the masters.
func startAudited(t *testing.T) *audited {
	t.Helper()
	a := &audited{dir: t.TempDir(), hook: &auditHook{}}
	receiver := httptest.NewServer(a.hook)
	t.Cleanup(receiver.Close)
	kubeconfig, policy := filepath.Join(a.dir, "webhook.kubeconfig"), filepath.Join(a.dir, "policy.yaml")
	overwrite(t, policy, auditPolicy)
	overwrite(t, kubeconfig, "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \""+receiver.URL+
		"\"}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\nusers: [{name: u}]\n")
	t.Cleanup(func() {
		if err := a.Stop(); err != nil {
			t.Error(err)
		}
	})
	var join []string
	for i, backend := range [][]string{
		{"--audit-log-path", a.log(0)},
		{"--audit-log-path", a.log(1), "--audit-log-mode", "batch"},
		{"--audit-webhook-config-file", kubeconfig},
	} {
		host, data := fmt.Sprintf("127.0.78.%d", i+1), filepath.Join(a.dir, fmt.Sprint("data-", i))
		args := slices.Concat([]string{
			"server", "--disable=agent", "--data-dir", data, "--node-name", fmt.Sprint("audited-", i),
			"--bind-address", host, "--advertise-address", host, "--audit-policy-file", policy,
		}, backend, join)
		if err := a.Launch(plane.Program{Name: fmt.Sprint("audited-", i), Path: program, Dir: a.dir, Member: i, Args: args}); err != nil {
			t.Fatal(err)
		}
		a.adopt(t, filepath.Join(data, "kubeconfig"))
		if i == 0 {
			token, err := exec.Command(program, "token", "create", "--kubeconfig", filepath.Join(data, "kubeconfig"), "--usage", "server").Output()
			if err != nil {
				t.Fatalf("create a token: %v", err)
			}
			join = []string{"--join", "https://" + host + ":6443", "--token", strings.TrimSpace(string(token))}
		}
	}
	return a
}

func (a *audited) log(i int) string { return filepath.Join(a.dir, fmt.Sprintf("audit-%d.log", i)) }

// adopt waits until the next master is ready, and has the administrator speak to it.
func (a *audited) adopt(t *testing.T, kubeconfig string) {
	t.Helper()
	config, err := a.Adopt(t.Context(), kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	tlsConfig, err := plane.ClientTLS(config.CAData, config.CertData, config.KeyData)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.AwaitReady(t.Context(), config.Host, tlsConfig); err != nil {
		t.Fatal(err)
	}
	transport := a.Transport(tlsConfig, nil)
	transport.ForceAttemptHTTP2 = true
	t.Cleanup(transport.CloseIdleConnections)
	a.configs = append(a.configs, config)
	a.clients = append(a.clients, &http.Client{Transport: transport})
}

// events are those that each master wrote. All masters have to have ended.
func (a *audited) events(t *testing.T) [][]auditv1.Event {
	t.Helper()
	all := make([][]auditv1.Event, len(a.clients))
	for i := range 2 {
		text, err := os.ReadFile(a.log(i))
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
		all[i] = make([]auditv1.Event, len(lines))
		for n, line := range lines {
			if err := json.Unmarshal(line, &all[i][n]); err != nil {
				t.Fatalf("%s:%d: %v", a.log(i), n+1, err)
			}
		}
	}
	a.hook.mu.Lock()
	defer a.hook.mu.Unlock()
	all[2] = a.hook.events
	return all
}

// asked is one request, and what has to stand in the log of the master that took it.
type asked struct {
	id, method, path, body, impersonate string
	server, code                        int

	verb     string
	level    auditv1.Level
	stages   []auditv1.Stage
	request  string // that the request's object has
	response string // that the answer has
}

const secretText = "swordfish-7f1e"

var (
	once    = []auditv1.Stage{auditv1.StageResponseComplete}
	twice   = []auditv1.Stage{auditv1.StageRequestReceived, auditv1.StageResponseComplete}
	watched = []auditv1.Stage{auditv1.StageResponseStarted, auditv1.StageResponseComplete}
)

// story is what one client asks of one master, in order.
func story(server, client int) []asked {
	name := fmt.Sprintf("c-%d-%d", server, client)
	const ns = "/api/v1/namespaces/default/"
	config := func(value string) string {
		return fmt.Sprintf(`{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":%q},"data":{"v":%q}}`, name, value)
	}
	list := []asked{
		{method: "POST", path: ns + "configmaps", body: config("one"), code: 201, verb: "create", level: "RequestResponse", stages: once, request: `"v":"one"`, response: `"uid":`},
		{method: "GET", path: ns + "configmaps/" + name, code: 200, verb: "get", level: "RequestResponse", stages: once, response: `"v":"one"`},
		{method: "PUT", path: ns + "configmaps/" + name, body: config("two"), code: 200, verb: "update", level: "RequestResponse", stages: once, request: `"v":"two"`, response: `"v":"two"`},
		{method: "GET", path: ns + "configmaps", impersonate: "nobody", code: 403, verb: "list", level: "RequestResponse", stages: once, response: `"reason":"Forbidden"`},
		{method: "POST", path: ns + "secrets", code: 201, verb: "create", level: "Metadata", stages: once,
			body: fmt.Sprintf(`{"kind":"Secret","apiVersion":"v1","metadata":{"name":%q},"stringData":{"password":%q}}`, name, secretText)},
		{method: "GET", path: ns + "secrets/" + name, code: 200, verb: "get", level: "Metadata", stages: once},
		{method: "POST", path: ns + "serviceaccounts", body: fmt.Sprintf(`{"metadata":{"name":%q}}`, name), code: 201, verb: "create", level: "Request", stages: twice, request: name},
		{method: "POST", path: ns + "serviceaccounts/" + name + "/token", body: `{"spec":{}}`, code: 201, verb: "create", level: "Metadata", stages: once},
		{method: "GET", path: "/version", code: 200, verb: "get", level: "Metadata", stages: once},
		{method: "GET", path: "/healthz", code: 200},
		{method: "DELETE", path: ns + "configmaps/" + name, code: 200, verb: "delete", level: "RequestResponse", stages: once, response: `"status":"Success"`},
		{method: "GET", path: ns + "configmaps/" + name, code: 404, verb: "get", level: "RequestResponse", stages: once, response: `"reason":"NotFound"`},
	}
	for i := range list {
		list[i].server = server
		list[i].id = fmt.Sprintf("request-%d-%d-%d", server, client, i)
	}
	return list
}

// ask sends a request and returns the answer, whose body is to be closed.
func (a *audited) ask(ctx context.Context, r asked) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, a.configs[r.server].Host+r.path, strings.NewReader(r.body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Audit-ID", r.id)
	req.Header.Set("Accept", "application/json")
	if r.body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.impersonate != "" {
		req.Header.Set("Impersonate-User", r.impersonate)
	}
	return a.clients[r.server].Do(req)
}

func (a *audited) tell(t *testing.T, r asked) {
	resp, err := a.ask(t.Context(), r)
	if err != nil {
		t.Errorf("%s %s: %v", r.method, r.path, err)
		return
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != r.code {
		t.Errorf("%s %s: %d (%v) %s", r.method, r.path, resp.StatusCode, err, text)
	}
}

// TestAuditOnEveryMaster spreads requests over three masters. Each is recorded by the master that took it, once, as the
// policy says, also what was under way or not yet written when the master was told to stop; and what the leader's own
// parts write is recorded by the leader.
func TestAuditOnEveryMaster(t *testing.T) {
	t.Parallel()
	a := startAudited(t)
	var requests []asked
	var group sync.WaitGroup
	for server := range a.clients {
		for client := range 4 {
			list := story(server, client)
			requests = append(requests, list...)
			group.Go(func() {
				for _, r := range list {
					a.tell(t, r)
				}
			})
		}
	}
	group.Wait()
	for server := range a.clients {
		requests = append(requests, a.watch(t, server))
	}
	a.tell(t, asked{id: "namespace", method: "POST", path: "/api/v1/namespaces", body: `{"metadata":{"name":"audited"}}`, code: 201, server: 1})
	testkit.Eventually(t, bound, "the controllers see to the namespace", func() error {
		resp, err := a.ask(t.Context(), asked{id: "poll", method: "GET", path: "/api/v1/namespaces/audited/configmaps/kube-root-ca.crt"})
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	})
	if err := a.Stop(); err != nil {
		t.Fatal(err)
	}
	a.check(t, requests)
}

// watch begins a watch, which goes on until the master ends.
func (a *audited) watch(t *testing.T, server int) asked {
	t.Helper()
	r := asked{
		id: fmt.Sprint("watch-", server), method: "GET", path: "/api/v1/namespaces/default/configmaps?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true",
		code: 200, server: server, verb: "watch", level: "RequestResponse", stages: watched,
	}
	resp, err := a.ask(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || resp.StatusCode != r.code {
		t.Fatalf("watch: %s %s %v", resp.Status, line, err)
	}
	return r
}

// check compares what was asked with what the masters wrote.
func (a *audited) check(t *testing.T, requests []asked) {
	t.Helper()
	byID := map[string][]auditv1.Event{}
	took := map[string][]int{}
	var published int
	for server, events := range a.events(t) {
		for _, e := range events {
			id := string(e.AuditID)
			byID[id] = append(byID[id], e)
			if !slices.Contains(took[id], server) {
				took[id] = append(took[id], server)
			}
			if text, err := json.Marshal(e); err != nil || bytes.Contains(text, []byte(secretText)) || bytes.Contains(text, []byte("managedFields")) {
				t.Errorf("the log tells too much (%v): %s", err, text)
			}
			if e.ObjectRef != nil && e.ObjectRef.Namespace == "audited" && e.ObjectRef.Name == "kube-root-ca.crt" && e.Verb == "create" {
				published++
				if e.User.Username != "system:serviceaccount:kube-system:root-ca-cert-publisher" || e.ResponseStatus == nil || e.ResponseStatus.Code != 201 || e.ResponseObject == nil {
					t.Errorf("what a controller wrote: %+v", e)
				}
			}
		}
	}
	if published != 1 {
		t.Errorf("what a controller wrote stands %d times in the logs", published)
	}
	for _, r := range requests {
		if len(r.stages) > 0 && !slices.Equal(took[r.id], []int{r.server}) {
			t.Errorf("%s %s was asked of master %d; it stands in the logs of %v", r.method, r.path, r.server, took[r.id])
		}
		r.check(t, byID[r.id])
	}
}

// check compares one request with its events.
func (r asked) check(t *testing.T, events []auditv1.Event) {
	t.Helper()
	wrong := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s, %s %s: %s", r.id, r.method, r.path, fmt.Sprintf(format, args...))
	}
	var stages []auditv1.Stage
	for _, e := range events {
		stages = append(stages, e.Stage)
		if e.Level != r.level || e.Verb != r.verb || e.RequestURI != r.path || e.User.Username != events[0].User.Username || e.User.Username == "" ||
			!slices.Contains(e.User.Groups, "system:masters") || len(e.SourceIPs) != 1 || !strings.HasPrefix(e.SourceIPs[0], "127.") ||
			e.StageTimestamp.Time.Before(e.RequestReceivedTimestamp.Time) {
			wrong("%+v", e)
		}
		if r.impersonate != "" && (e.ImpersonatedUser == nil || e.ImpersonatedUser.Username != r.impersonate) || r.impersonate == "" && e.ImpersonatedUser != nil {
			wrong("impersonates %+v", e.ImpersonatedUser)
		}
	}
	if !slices.Equal(stages, r.stages) {
		wrong("stages %v, want %v", stages, r.stages)
		return
	}
	if len(events) == 0 {
		return
	}
	last := events[len(events)-1]
	if last.ResponseStatus == nil || int(last.ResponseStatus.Code) != r.code {
		wrong("status %+v", last.ResponseStatus)
	}
	decision := map[bool]string{true: "allow", false: "forbid"}[r.code != http.StatusForbidden]
	if got := last.Annotations["authorization.k8s.io/decision"]; got != decision {
		wrong("decision %q", got)
	}
	for what, has := range map[string]struct {
		object []byte
		want   string
	}{
		"request": {raw(last.RequestObject), r.request}, "response": {raw(last.ResponseObject), r.response},
	} {
		if (has.want == "") != (len(has.object) == 0) || !bytes.Contains(has.object, []byte(has.want)) {
			wrong("the %s's object is %s, want one with %q", what, has.object, has.want)
		}
	}
}

// raw is an object as the log has it; nil if it has none.
func raw(object *runtime.Unknown) []byte {
	if object == nil {
		return nil
	}
	return object.Raw
}

// TestAuditLogMustBeWritable starts masters whose log can't be written, or whose policy can't be read: they say so and end.
func TestAuditLogMustBeWritable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good, bad, file := filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml"), filepath.Join(dir, "file")
	overwrite(t, good, auditPolicy)
	overwrite(t, bad, "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Everything}]\n")
	overwrite(t, file, "")
	for name, tc := range map[string]struct {
		args []string
		want []string
	}{
		"no file":         {[]string{"--audit-policy-file", filepath.Join(dir, "none.yaml"), "--audit-log-path", file}, []string{"--audit-policy-file", "none.yaml", "no such file"}},
		"no policy":       {[]string{"--audit-policy-file", bad, "--audit-log-path", file}, []string{"--audit-policy-file", "Everything"}},
		"no directory":    {[]string{"--audit-policy-file", good, "--audit-log-path", filepath.Join(file, "audit.log")}, []string{"--audit-log-path", "not a directory"}},
		"no kubeconfig":   {[]string{"--audit-policy-file", good, "--audit-webhook-config-file", bad}, []string{"--audit-webhook-config-file"}},
		"nowhere to":      {[]string{"--audit-policy-file", good}, []string{"--audit-log-path"}},
		"log, not policy": {[]string{"--audit-log-path", file}, []string{"--audit-policy-file"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			data := filepath.Join(t.TempDir(), "data")
			args := append([]string{"server", "--disable=agent", "--data-dir", data, "--bind-address", "127.0.78.9", "--advertise-address", "127.0.78.9"}, tc.args...)
			out, err := exec.CommandContext(ctx, program, args...).CombinedOutput()
			if err == nil || ctx.Err() != nil {
				t.Fatalf("it goes on: %v\n%s", err, out)
			}
			for _, want := range tc.want {
				if !bytes.Contains(out, []byte(want)) {
					t.Errorf("it does not tell of %q:\n%s", want, out)
				}
			}
			if _, err := os.Stat(filepath.Join(data, "etcd")); err == nil {
				t.Error("it had become a master")
			}
		})
	}
}
