package apiserver_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"barque.dev/internal/auth"
	"barque.dev/internal/auth/authorizers"
	"barque.dev/internal/auth/issuers/issuertest"
	"barque.dev/internal/store/etcd/etcdtest"
)

// startWith starts a control plane of whose access an operator says something.
func startWith(tb testing.TB, options auth.Options) *cluster {
	tb.Helper()
	c := startAs(tb, etcdtest.New(tb, 1, nil).Member(0), options, nil)
	c.wait(tb)
	c.bootstrap(tb)
	return c
}

// bearing is a client that shows a token and nothing else.
func (c *cluster) bearing(tb testing.TB, token string) kubernetes.Interface {
	tb.Helper()
	client, err := kubernetes.NewForConfig(&rest.Config{
		Host: c.url, QPS: -1, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: c.pki.Cluster.PEM()},
	})
	if err != nil {
		tb.Fatal(err)
	}
	return client
}

// grant makes a cluster role and binds it to a subject; without rules it lets it read pods and services.
func (c *cluster) grant(tb testing.TB, subject rbacv1.Subject, rules ...rbacv1.PolicyRule) {
	tb.Helper()
	if len(rules) == 0 {
		rules = []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods", "services"}, Verbs: []string{"get", "list", "watch"}}}
	}
	client := c.client(tb).RbacV1()
	role, err := client.ClusterRoles().Create(tb.Context(), &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}, Rules: rules}, metav1.CreateOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	subject.APIGroup = rbacv1.GroupName
	_, err = client.ClusterRoleBindings().Create(tb.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: role.Name}, Subjects: []rbacv1.Subject{subject},
		RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role.Name},
	}, metav1.CreateOptions{})
	if err != nil {
		tb.Fatal(err)
	}
}

// put replaces a file as editors and ConfigMap volumes do.
func put(tb testing.TB, path, content string) {
	tb.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		tb.Fatal(err)
	}
}

func (c *cluster) metric(tb testing.TB, parts ...string) error {
	tb.Helper()
	body := do(tb, c.admin(tb), "GET", c.url+"/metrics", nil).body
	for _, line := range strings.Split(body, "\n") {
		found := !strings.HasPrefix(line, "#")
		for _, part := range parts {
			found = found && strings.Contains(line, part)
		}
		if found {
			return nil
		}
	}
	return fmt.Errorf("there is no metric with %q", parts)
}

func authentication(i *issuertest.Issuer, rules string) string {
	return i.Configuration(`  claimMappings:
    username: {claim: sub, prefix: "oidc:"}
    groups: {claim: groups, prefix: "oidc:"}
` + rules)
}

func TestUsersOfAnIssuer(t *testing.T) {
	issuer := issuertest.Start(t)
	path := filepath.Join(t.TempDir(), "authentication.yaml")
	put(t, path, authentication(issuer, ""))
	c := startWith(t, auth.Options{AuthenticationConfig: path})
	c.grant(t, rbacv1.Subject{Kind: "Group", Name: "oidc:ops"})
	token := func(sub string, groups ...string) string {
		return issuer.Token(t, map[string]any{"aud": "barque", "sub": sub, "groups": groups})
	}
	ann, bob := c.bearing(t, token("ann", "ops")), c.bearing(t, token("bob"))
	list := func(client kubernetes.Interface) error {
		_, err := client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
		return err
	}
	eventually(t, "ann lists pods", func() error { return list(ann) })
	if err := list(bob); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `User "oidc:bob" cannot list`) {
		t.Errorf("bob: %v", err)
	}
	self, err := ann.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || fmt.Sprint(self.Status.UserInfo.Username, self.Status.UserInfo.Groups) != "oidc:ann[oidc:ops system:authenticated]" {
		t.Errorf("ann is %v, %v", self, err)
	}
	review, err := c.client(t).AuthenticationV1().TokenReviews().Create(t.Context(),
		&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token("ann", "ops")}}, metav1.CreateOptions{})
	if err != nil || !review.Status.Authenticated || review.Status.User.Username != "oidc:ann" || len(review.Status.Audiences) == 0 {
		t.Errorf("reviewed as %v, %v", review, err)
	}
	// The issuer's new key is taken up by itself.
	issuer.Rotate(t, 1)
	if err := list(c.bearing(t, token("cyd", "ops"))); err != nil {
		t.Errorf("a token of a new key: %v", err)
	}

	// A configuration with a rule more, without a restart.
	put(t, path, authentication(issuer, "  userValidationRules:\n  - {expression: \"user.username != 'oidc:eve'\", message: \"eve left\"}\n"))
	eventually(t, "the rule refuses eve", func() error {
		if err := list(c.bearing(t, issuer.Token(t, map[string]any{"aud": "barque", "sub": "eve", "groups": "ops", "jti": time.Now().String()}))); !apierrors.IsUnauthorized(err) {
			return fmt.Errorf("eve got %w", err)
		}
		return nil
	})
	const reloads = "apiserver_authentication_config_controller_automatic_reloads_total"
	eventually(t, "the reload is counted", func() error { return c.metric(t, reloads, `status="success"`) })
	if err := c.metric(t, "apiserver_authentication_jwt_authenticator_latency_seconds_count", `result="success"`); err != nil {
		t.Error(err)
	}
	// One that is wrong is reported, and the one before stays.
	put(t, path, authentication(issuer, "  userValidationRules: [{expression: \"(\"}]\n"))
	eventually(t, "the failure is counted", func() error { return c.metric(t, reloads, `status="failure"`) })
	if err := list(c.bearing(t, token("dan", "ops"))); err != nil {
		t.Errorf("after a bad configuration: %v", err)
	}
}

// hook is a webhook's server and what it was asked.
type hook struct {
	kubeconfig string

	mu    sync.Mutex
	asked []json.RawMessage
}

// newHook answers with what answer makes of a request, or an HTTP error when that is nil.
func newHook(tb testing.TB, answer func(body []byte) any) *hook {
	tb.Helper()
	h := &hook{}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body json.RawMessage
		_ = json.NewDecoder(r.Body).Decode(&body)
		h.mu.Lock()
		h.asked = append(h.asked, body)
		h.mu.Unlock()
		reply := answer(body)
		if reply == nil {
			http.Error(w, "out of order", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(reply)
	}))
	tb.Cleanup(server.Close)
	h.kubeconfig = filepath.Join(tb.TempDir(), "kubeconfig")
	put(tb, h.kubeconfig, fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: hook, cluster: {server: %s, insecure-skip-tls-verify: true}}]
users: [{name: barque}]
contexts: [{name: hook, context: {cluster: hook, user: barque}}]
current-context: hook
`, server.URL))
	return h
}

// requests are what was asked, each holding all parts.
func (h *hook) requests(parts ...string) (found []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, body := range h.asked {
		all := true
		for _, part := range parts {
			all = all && strings.Contains(string(body), part)
		}
		if all {
			found = append(found, string(body))
		}
	}
	return found
}

func TestTokenWebhook(t *testing.T) {
	h := newHook(t, func(body []byte) any {
		var review authenticationv1.TokenReview
		if json.Unmarshal(body, &review) != nil {
			return nil
		}
		review.Status.Authenticated = review.Spec.Token == "secret-of-ann"
		if review.Status.Authenticated {
			review.Status.User = authenticationv1.UserInfo{Username: "ann", UID: "7", Groups: []string{"ops"}, Extra: map[string]authenticationv1.ExtraValue{"floor": {"3"}}}
		}
		return review
	})
	c := startWith(t, auth.Options{TokenWebhook: auth.TokenWebhook{ConfigFile: h.kubeconfig, Version: "v1"}})
	ann := c.bearing(t, "secret-of-ann")
	for range 3 {
		self, err := ann.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
		if err != nil || fmt.Sprint(self.Status.UserInfo) != "{ann 7 [ops system:authenticated] map[floor:[3]]}" {
			t.Fatalf("ann is %v, %v", self, err)
		}
	}
	if asked := h.requests("secret-of-ann"); len(asked) != 1 || !strings.Contains(asked[0], `"authentication.k8s.io/v1"`) || !strings.Contains(asked[0], auth.DefaultIssuer) {
		t.Errorf("asked %d times: %v", len(asked), asked)
	}
	if _, err := c.bearing(t, "rubbish").CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("rubbish: %v", err)
	}
	// The cluster's own tokens are nobody else's business.
	account := c.account(t)
	if _, err := account.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{}); err != nil {
		t.Error(err)
	}
	if asked := h.requests("eyJ"); len(asked) != 0 {
		t.Errorf("the webhook was asked about a service account's token: %v", asked)
	}
}

// account is a client that bears the token of a service account.
func (c *cluster) account(tb testing.TB) kubernetes.Interface {
	tb.Helper()
	accounts := c.client(tb).CoreV1().ServiceAccounts("default")
	made, err := accounts.Create(tb.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "tester"}}, metav1.CreateOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	wrong := &authenticationv1.TokenRequest{ObjectMeta: metav1.ObjectMeta{UID: "another"}}
	if _, err := accounts.CreateToken(tb.Context(), made.Name, wrong, metav1.CreateOptions{}); !apierrors.IsConflict(err) {
		tb.Errorf("a token for an account of another UID: %v", err)
	}
	request, err := accounts.CreateToken(tb.Context(), made.Name, &authenticationv1.TokenRequest{ObjectMeta: metav1.ObjectMeta{UID: made.UID}}, metav1.CreateOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	return c.bearing(tb, request.Status.Token)
}

func TestAuthorizationWebhook(t *testing.T) {
	h := newHook(t, func(body []byte) any {
		var review authorizationv1.SubjectAccessReview
		if json.Unmarshal(body, &review) != nil || review.Spec.User == "broken" {
			return nil
		}
		review.Status = authorizationv1.SubjectAccessReviewStatus{
			Allowed: review.Spec.User == "ann", Denied: review.Spec.User == "eve", Reason: "the webhook said so",
		}
		return review
	})
	path := filepath.Join(t.TempDir(), "authorization.yaml")
	put(t, path, fmt.Sprintf(`apiVersion: apiserver.config.k8s.io/v1
kind: AuthorizationConfiguration
authorizers:
- type: Webhook
  name: hook.example
  webhook:
    authorizedTTL: 5m
    unauthorizedTTL: 30s
    timeout: 3s
    subjectAccessReviewVersion: v1
    matchConditionSubjectAccessReviewVersion: v1
    failurePolicy: Deny
    connectionInfo: {type: KubeConfigFile, kubeConfigFile: %s}
    matchConditions:
    - expression: has(request.resourceAttributes) && request.resourceAttributes.resource == 'pods'
    - expression: "!('system:masters' in request.groups)"
- {type: Node, name: node}
- {type: RBAC, name: rbac}
`, h.kubeconfig))
	c := startWith(t, auth.Options{AuthorizationConfig: path})
	c.grant(t, rbacv1.Subject{Kind: "User", Name: "eve"})
	c.grant(t, rbacv1.Subject{Kind: "User", Name: "bob"})
	// One certificate a user: what a webhook is asked names it.
	users := map[string]*http.Client{}
	for _, name := range []string{"ann", "bob", "eve", "broken"} {
		users[name] = c.http(t, name)
	}
	list := func(user, what, query string) answer {
		return do(t, users[user], "GET", c.url+"/api/v1/"+what+query, nil)
	}
	for _, it := range []struct {
		user, what string
		code       int
		part       string
	}{
		{"ann", "pods", 200, ""},                    // the webhook allows
		{"ann", "services", 403, ""},                // is not asked about others, and RBAC allows nothing
		{"bob", "pods", 200, ""},                    // has no opinion, and RBAC allows
		{"eve", "pods", 403, "the webhook said so"}, // denies, whatever RBAC says
		{"eve", "services", 200, ""},                //
		{"broken", "pods", 500, "Internal error"},   // fails, and failing is refusing
	} {
		if got := list(it.user, it.what, ""); got.code != it.code || !strings.Contains(got.body, it.part) {
			t.Errorf("%s lists %s: %d %s", it.user, it.what, got.code, got.body)
		}
	}
	if got := do(t, c.admin(t), "GET", c.url+"/api/v1/pods", nil); got.code != 200 || len(h.requests("system:masters")) != 0 {
		t.Errorf("system:masters: %d, asked %v", got.code, h.requests("system:masters"))
	}
	if list("ann", "pods", ""); len(h.requests(`"user":"ann"`)) != 1 {
		t.Errorf("the answer was not kept: %v", h.requests(`"user":"ann"`))
	}
	// What is selected is told, and an answer counts for it alone.
	if got := list("ann", "pods", "?labelSelector=a%3Db&fieldSelector=spec.nodeName%3Dn1"); got.code != 200 {
		t.Errorf("%d %s", got.code, got.body)
	}
	asked := h.requests(`"user":"ann"`, `"key":"a"`, `"key":"spec.nodeName"`, `"n1"`, `"operator":"In"`)
	if len(asked) != 1 || len(h.requests("services")) != 0 {
		t.Errorf("asked %v", h.requests())
	}
	for _, parts := range decisionMetrics() {
		if err := c.metric(t, parts...); err != nil {
			t.Error(err)
		}
	}
}

// decisionMetrics are parts of what the server shows after [TestAuthorizationWebhook]'s requests.
func decisionMetrics() [][]string {
	return [][]string{
		{"authentication_attempts", `result="success"`}, {"authenticated_user_requests", `username="other"`},
		{"authorization_attempts_total", `result="allowed"`}, {"authorization_attempts_total", `result="no-opinion"`},
		{"authorization_attempts_total", `result="error"`}, {"authorization_attempts_total", `result="denied"`},
		{"apiserver_authorization_decisions_total", `decision="allowed"`, `name="hook.example"`, `type="Webhook"`},
		{"apiserver_authorization_decisions_total", `decision="denied"`, `name="hook.example"`},
		{"apiserver_authorization_decisions_total", `decision="allowed"`, `name="rbac"`, `type="RBAC"`},
		{"apiserver_authorization_webhook_evaluations_total", `name="hook.example"`, `result="success"`},
		{"apiserver_authorization_match_condition_exclusions_total", `name="hook.example"`},
		{"apiserver_authorization_config_controller_last_config_info"},
		{"authentication_duration_seconds_count", `result="success"`}, {"authorization_duration_seconds_bucket", `le="0.001"`, `result="allowed"`},
	}
}

func TestClassicAuthorizationWebhook(t *testing.T) {
	var none time.Duration
	h := newHook(t, func(body []byte) any {
		return map[string]any{"apiVersion": "authorization.k8s.io/v1beta1", "kind": "SubjectAccessReview",
			"status": map[string]any{"allowed": strings.Contains(string(body), `"user":"ann"`)}}
	})
	c := startWith(t, auth.Options{Authorization: authorizers.Flags{
		Modes: []string{"Node", "RBAC", "Webhook"}, WebhookFile: h.kubeconfig, AuthorizedTTL: &none, UnauthorizedTTL: &none,
	}})
	for range 2 {
		if got := do(t, c.http(t, "ann"), "GET", c.url+"/api/v1/pods", nil); got.code != 200 {
			t.Errorf("ann: %d %s", got.code, got.body)
		}
	}
	if got := do(t, c.http(t, "bob"), "GET", c.url+"/api/v1/pods", nil); got.code != 403 {
		t.Errorf("bob: %d %s", got.code, got.body)
	}
	if asked := h.requests(`"user":"ann"`, "authorization.k8s.io/v1beta1"); len(asked) != 2 {
		t.Errorf("asked %d times, though nothing was to be kept: %v", len(asked), asked)
	}
}

func TestConstrainedImpersonation(t *testing.T) {
	c := startWith(t, auth.Options{})
	role := func(name string, rules ...rbacv1.PolicyRule) {
		t.Helper()
		c.grant(t, rbacv1.Subject{Kind: "User", Name: name}, rules...)
	}
	as := func(group, resource, verb string, names ...string) rbacv1.PolicyRule {
		return rbacv1.PolicyRule{APIGroups: []string{group}, Resources: []string{resource}, Verbs: []string{verb}, ResourceNames: names}
	}
	role("boss", as("", "users", "impersonate"), as("", "groups", "impersonate", "dev"),
		as("authentication.k8s.io", "uids", "impersonate"), as("authentication.k8s.io", "userextras/floor", "impersonate", "3"))
	role("clerk", as("", "users", "impersonate", "bob"))
	// KEP-5284: as bob, and only to list pods.
	role("auditor", as("authentication.k8s.io", "users", "impersonate:user-info", "bob"), as("", "pods", "impersonate-on:user-info:list"))
	c.grant(t, rbacv1.Subject{Kind: "User", Name: "bob"})
	for name, it := range map[string]struct {
		user, path string
		headers    []string
		code       int
	}{
		"user, group, UID, extra":   {"boss", "/api/v1/pods", []string{"Impersonate-User", "bob", "Impersonate-Group", "dev", "Impersonate-Uid", "7", "Impersonate-Extra-Floor", "3"}, 200},
		"a group that may not be":   {"boss", "/api/v1/pods", []string{"Impersonate-User", "bob", "Impersonate-Group", "system:masters"}, 403},
		"an extra that may not be":  {"boss", "/api/v1/pods", []string{"Impersonate-User", "bob", "Impersonate-Extra-Floor", "4"}, 403},
		"the other's rights":        {"boss", "/api/v1/secrets", []string{"Impersonate-User", "bob"}, 403},
		"no user":                   {"boss", "/api/v1/pods", []string{"Impersonate-Group", "dev"}, 400},
		"one user":                  {"clerk", "/api/v1/pods", []string{"Impersonate-User", "bob"}, 200},
		"another user":              {"clerk", "/api/v1/pods", []string{"Impersonate-User", "ann"}, 403},
		"UID that may not be":       {"clerk", "/api/v1/pods", []string{"Impersonate-User", "bob", "Impersonate-Uid", "7"}, 403},
		"constrained":               {"auditor", "/api/v1/pods", []string{"Impersonate-User", "bob"}, 200},
		"constrained, another verb": {"auditor", "/api/v1/services", []string{"Impersonate-User", "bob"}, 403},
		"nobody may":                {"bob", "/api/v1/pods", []string{"Impersonate-User", "ann"}, 403},
	} {
		if got := do(t, c.http(t, it.user), "GET", c.url+it.path, nil, it.headers...); got.code != it.code {
			t.Errorf("%s: %d %s", name, got.code, got.body)
		}
	}
	got := do(t, c.http(t, "boss"), "POST", c.url+"/apis/authentication.k8s.io/v1/selfsubjectreviews", strings.NewReader(`{}`),
		"Impersonate-User", "bob", "Impersonate-Group", "dev", "Impersonate-Uid", "7", "Impersonate-Extra-Floor", "3", "Content-Type", "application/json")
	if got.code != 201 || !strings.Contains(got.body, `"userInfo":{"username":"bob","uid":"7","groups":["dev","system:authenticated"],"extra":{"floor":["3"]}}`) {
		t.Errorf("%d %s", got.code, got.body)
	}
}

func TestReviewsAreCheckedAsStock(t *testing.T) {
	c := startWith(t, auth.Options{})
	client := c.client(t).AuthorizationV1().SubjectAccessReviews()
	for part, spec := range map[string]authorizationv1.SubjectAccessReviewSpec{
		"exactly one of nonResourceAttributes or resourceAttributes": {User: "ann"},
		"at least one of user or group must be specified":            {ResourceAttributes: &authorizationv1.ResourceAttributes{}},
		"spec.resourceAttributes.fieldSelector.requirements[0].key": {User: "ann", ResourceAttributes: &authorizationv1.ResourceAttributes{
			FieldSelector: &authorizationv1.FieldSelectorAttributes{Requirements: []metav1.FieldSelectorRequirement{{Operator: "In", Values: []string{"a"}}}}}},
		"requirements or rawSelector is required": {User: "ann", ResourceAttributes: &authorizationv1.ResourceAttributes{
			LabelSelector: &authorizationv1.LabelSelectorAttributes{}}},
	} {
		_, err := client.Create(t.Context(), &authorizationv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), part) {
			t.Errorf("got %v, want %q", err, part)
		}
	}
	rules, err := c.client(t).AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(),
		&authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "default"}}, metav1.CreateOptions{})
	if err != nil || rules.Spec.Namespace != "" || len(rules.Status.ResourceRules) == 0 {
		t.Errorf("%v, %v", rules, err)
	}
}
