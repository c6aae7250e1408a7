package apiserver_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit/policy"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/apiserver/auditlog"
	"barque.dev/internal/pki"
)

// book is an audit backend that keeps what it gets.
type book struct {
	mu     sync.Mutex
	events []*auditinternal.Event
	broken bool
}

func (b *book) ProcessEvents(events ...*auditinternal.Event) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range events {
		b.events = append(b.events, e.DeepCopy())
	}
	return !b.broken
}

func (b *book) Run(<-chan struct{}) error { return nil }
func (b *book) Shutdown()                 {}
func (b *book) String() string            { return "book" }

// of returns the events of a request, by its Audit-ID.
func (b *book) of(id string) []*auditinternal.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*auditinternal.Event
	for _, e := range b.events {
		if string(e.AuditID) == id {
			out = append(out, e)
		}
	}
	return out
}

const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- level: None
  resources: [{group: "", resources: [services]}]
- level: Metadata
  resources: [{group: "", resources: [secrets]}]
- level: Request
  omitManagedFields: true
  resources: [{group: "", resources: [serviceaccounts]}]
- level: RequestResponse
  omitManagedFields: true
  resources: [{group: "", resources: [configmaps]}]
- level: RequestResponse
  resources: [{group: "", resources: [limitranges]}]
- level: Metadata
`

// audited is a control plane that writes down what is asked of it.
func audited(t *testing.T, tune func(*apiserver.Config)) (*cluster, *book) {
	t.Helper()
	rules, err := policy.LoadPolicyFromBytes([]byte(auditPolicy))
	if err != nil {
		t.Fatal(err)
	}
	b := &book{}
	c := start(t, func(cfg *apiserver.Config) {
		cfg.Audit = &auditlog.Log{Policy: policy.NewPolicyRuleEvaluator(rules), Backend: b}
		if tune != nil {
			tune(cfg)
		}
	})
	c.wait(t)
	return c, b
}

// last waits for the last event of a request, which must be of that stage, and returns it.
func (b *book) last(t *testing.T, a answer, stage auditinternal.Stage) *auditinternal.Event {
	t.Helper()
	id := a.header.Get("Audit-Id")
	var e *auditinternal.Event
	eventually(t, "the event "+string(stage), func() error {
		events := b.of(id)
		if len(events) == 0 || events[len(events)-1].Stage != stage {
			return &missing{stage, events}
		}
		e = events[len(events)-1]
		return nil
	})
	return e
}

type missing struct {
	stage  auditinternal.Stage
	events []*auditinternal.Event
}

func (m *missing) Error() string {
	var stages []string
	for _, e := range m.events {
		stages = append(stages, string(e.Stage))
	}
	return "only " + strings.Join(stages, ", ")
}

func (c *cluster) post(t *testing.T, resource, object string) answer {
	t.Helper()
	a := do(t, c.admin(t), "POST", c.url+"/api/v1/namespaces/default/"+resource, strings.NewReader(object), "Content-Type", "application/json")
	if a.code != 201 {
		t.Fatal(a)
	}
	return a
}

func TestAuditLevels(t *testing.T) {
	c, b := audited(t, nil)

	e := b.last(t, c.post(t, "secrets", `{"metadata":{"name":"s"},"stringData":{"password":"swordfish"}}`), auditinternal.StageResponseComplete)
	if e.Level != auditinternal.LevelMetadata || e.RequestObject != nil || e.ResponseObject != nil {
		t.Errorf("metadata only: %+v", e)
	}
	if e.Verb != "create" || e.ObjectRef == nil || e.ObjectRef.Resource != "secrets" || e.ObjectRef.Name != "s" || e.ObjectRef.Namespace != "default" ||
		e.User.Username != pki.UserAdmin || e.ResponseStatus.Code != 201 || e.RequestURI != "/api/v1/namespaces/default/secrets" || len(e.SourceIPs) != 1 {
		t.Errorf("%+v %+v", e, e.ObjectRef)
	}
	if e.Annotations["authorization.k8s.io/decision"] != "allow" || e.RequestReceivedTimestamp.IsZero() || e.StageTimestamp.Before(&e.RequestReceivedTimestamp) {
		t.Errorf("%+v", e)
	}

	e = b.last(t, c.post(t, "serviceaccounts", `{"metadata":{"name":"sa"}}`), auditinternal.StageResponseComplete)
	if e.RequestObject == nil || !strings.Contains(string(e.RequestObject.Raw), `"name":"sa"`) || e.ResponseObject != nil {
		t.Errorf("requests only: %+v", e)
	}

	e = b.last(t, c.post(t, "configmaps", `{"metadata":{"name":"c"},"data":{"a":"1"}}`), auditinternal.StageResponseComplete)
	var made corev1.ConfigMap
	if err := json.Unmarshal(e.ResponseObject.Raw, &made); err != nil {
		t.Fatal(err)
	}
	if made.Data["a"] != "1" || made.UID == "" || made.Kind != "ConfigMap" || len(made.ManagedFields) > 0 {
		t.Errorf("%s", e.ResponseObject.Raw)
	}
	if events := b.of(string(e.AuditID)); len(events) != 2 || events[0].Stage != auditinternal.StageRequestReceived || events[0].ResponseStatus != nil {
		t.Errorf("%+v", events)
	}

	e = b.last(t, c.post(t, "limitranges", `{"metadata":{"name":"l"},"spec":{"limits":[]}}`), auditinternal.StageResponseComplete)
	if !strings.Contains(string(e.ResponseObject.Raw), "managedFields") {
		t.Errorf("managed fields are left out: %s", e.ResponseObject.Raw)
	}

	a := do(t, c.admin(t), "GET", c.url+"/api/v1/services", nil)
	do(t, c.admin(t), "GET", c.url+"/version", nil)
	if events := b.of(a.header.Get("Audit-Id")); len(events) > 0 {
		t.Errorf("nobody asked for %+v", events[0])
	}
}

func TestAuditForms(t *testing.T) {
	c, b := audited(t, nil)
	path := c.url + "/api/v1/namespaces/default/configmaps"
	c.post(t, "configmaps", `{"metadata":{"name":"c"},"data":{"a":"1"}}`)
	response := func(a answer) string {
		t.Helper()
		e := b.last(t, a, auditinternal.StageResponseComplete)
		if e.ResponseObject == nil || e.ResponseObject.ContentType != "application/json" || !json.Valid(e.ResponseObject.Raw) {
			t.Fatalf("%+v", e.ResponseObject)
		}
		return string(e.ResponseObject.Raw)
	}
	for name, headers := range map[string][]string{
		"JSON": {"Accept", "application/json"}, "protobuf": {"Accept", "application/vnd.kubernetes.protobuf"}, "YAML": {"Accept", "application/yaml"},
		"table": {"Accept", "application/json;as=Table;v=v1;g=meta.k8s.io"},
	} {
		for what, url := range map[string]string{"object": path + "/c", "list": path} {
			text := response(do(t, c.admin(t), "GET", url, nil, headers...))
			if !strings.Contains(text, `"name":"c"`) || strings.Contains(text, "managedFields") {
				t.Errorf("%s of %s: %s", what, name, text)
			}
		}
	}

	admin := c.admin(t)
	a := do(t, admin, "PATCH", path+"/c", strings.NewReader(`{"data":{"b":"2"}}`), "Content-Type", string(types.MergePatchType))
	if e := b.last(t, a, auditinternal.StageResponseComplete); e.Verb != "patch" || string(e.RequestObject.Raw) != `{"data":{"b":"2"}}` {
		t.Errorf("%+v", e)
	}
	apply := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {c: \"3\"}\n"
	a = do(t, admin, "PATCH", path+"/c?fieldManager=me", strings.NewReader(apply), "Content-Type", string(types.ApplyYAMLPatchType))
	if e := b.last(t, a, auditinternal.StageResponseComplete); e.RequestObject == nil || !json.Valid(e.RequestObject.Raw) || !strings.Contains(string(e.RequestObject.Raw), `"c":"3"`) {
		t.Errorf("%v %+v", a, e.RequestObject)
	}
	a = do(t, admin, "DELETE", path+"/c", strings.NewReader(`{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Background"}`), "Content-Type", "application/json")
	if e := b.last(t, a, auditinternal.StageResponseComplete); e.Verb != "delete" || e.RequestObject == nil || !strings.Contains(string(e.RequestObject.Raw), "Background") {
		t.Errorf("%v %+v", a, e)
	}
	a = do(t, admin, "GET", path+"/c", nil)
	if e := b.last(t, a, auditinternal.StageResponseComplete); e.ResponseStatus.Reason != metav1.StatusReasonNotFound || e.ResponseStatus.Code != 404 ||
		!strings.Contains(string(e.ResponseObject.Raw), "NotFound") {
		t.Errorf("%+v", e.ResponseStatus)
	}
}

func TestAuditOfThoseWhoMayNot(t *testing.T) {
	c, b := audited(t, nil)
	path := c.url + "/api/v1/namespaces/default/secrets"
	a := do(t, c.http(t, "jane"), "GET", path, nil, "User-Agent", strings.Repeat("x", 2000))
	e := b.last(t, a, auditinternal.StageResponseComplete)
	if e.Annotations["authorization.k8s.io/decision"] != "forbid" || e.ResponseStatus.Code != 403 || e.ResponseStatus.Reason != metav1.StatusReasonForbidden ||
		e.User.Username != "jane" || len(e.UserAgent) > 1100 {
		t.Errorf("%+v", e)
	}

	a = do(t, c.http(t, ""), "GET", path, nil, "Authorization", "Bearer nonsense", "Audit-ID", "mine")
	e = b.last(t, a, auditinternal.StageResponseStarted)
	if a.header.Get("Audit-Id") != "mine" || a.code != 401 || len(b.of("mine")) != 1 || e.ResponseStatus.Code != 401 ||
		e.ResponseStatus.Message != "Authentication failed, attempted: bearer" {
		t.Errorf("%d, %d events: %+v", a.code, len(b.of("mine")), e.ResponseStatus)
	}

	a = do(t, c.admin(t), "GET", path, nil, "Impersonate-User", "jane", "Impersonate-Group", "dev")
	e = b.last(t, a, auditinternal.StageResponseComplete)
	if e.User.Username != pki.UserAdmin || e.ImpersonatedUser == nil || e.ImpersonatedUser.Username != "jane" || !slices.Contains(e.ImpersonatedUser.Groups, "dev") ||
		e.ResponseStatus.Code != 403 {
		t.Errorf("%+v %+v", e, e.ImpersonatedUser)
	}
}

func TestAuditStages(t *testing.T) {
	c, b := audited(t, func(cfg *apiserver.Config) {
		cfg.Paths = map[string]http.Handler{"/panic": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("oh") })}
	})
	a := do(t, c.admin(t), "GET", c.url+"/panic", nil)
	if e := b.last(t, a, auditinternal.StagePanic); a.code != 500 || e.ResponseStatus.Code != 500 || !strings.Contains(e.ResponseStatus.Message, "oh") || len(b.of(string(e.AuditID))) != 2 {
		t.Errorf("%+v", e)
	}

	c.post(t, "configmaps", `{"metadata":{"name":"c"}}`)
	resp, err := c.admin(t).Get(c.url + "/api/v1/namespaces/default/configmaps?watch=true")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	watch := answer{header: resp.Header}
	if e := b.last(t, watch, auditinternal.StageResponseStarted); e.Verb != "watch" || e.ResponseStatus.Code != 200 || e.ResponseObject != nil {
		t.Errorf("%+v", e)
	}
	resp.Body.Close()
	if e := b.last(t, watch, auditinternal.StageResponseComplete); len(b.of(string(e.AuditID))) != 3 {
		t.Errorf("%+v", b.of(string(e.AuditID)))
	}
}

// TestAuditStrict refuses what can't be written down.
func TestAuditStrict(t *testing.T) {
	c, b := audited(t, nil)
	b.mu.Lock()
	b.broken = true
	b.mu.Unlock()
	a := do(t, c.admin(t), "POST", c.url+"/api/v1/namespaces/default/configmaps", bytes.NewReader([]byte(`{"metadata":{"name":"c"}}`)), "Content-Type", "application/json")
	if a.code != 500 || !strings.Contains(a.body, "failed to store audit event") {
		t.Errorf("%v", a)
	}
	b.mu.Lock()
	b.broken = false
	b.mu.Unlock()
	if a := do(t, c.admin(t), "GET", c.url+"/api/v1/namespaces/default/configmaps/c", nil); a.code != 404 {
		t.Errorf("it was created: %v", a)
	}
	if text := do(t, c.admin(t), "GET", c.url+"/metrics", nil).body; !strings.Contains(text, "apiserver_audit_requests_rejected_total") || !strings.Contains(text, "apiserver_audit_event_total") {
		t.Error("the metrics don't tell")
	}
}

// TestAuditOfARefusedTimeout: a request that is refused before anybody asks whose it is leaves its event.
func TestAuditOfARefusedTimeout(t *testing.T) {
	c, b := audited(t, nil)
	a := do(t, c.admin(t), "DELETE", c.url+"/api/v1/namespaces/default/configmaps/c?timeout=soon", nil)
	e := b.last(t, a, auditinternal.StageResponseStarted)
	if a.code != 400 || e.ResponseStatus.Code != 400 || e.Verb != "delete" || e.ObjectRef.Name != "c" || len(b.of(string(e.AuditID))) != 1 {
		t.Errorf("%d, %+v, %+v", a.code, e, e.ResponseStatus)
	}
}
