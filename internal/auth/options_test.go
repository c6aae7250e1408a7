package auth_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"barque.dev/internal/auth"
	"barque.dev/internal/auth/authorizers"
	"barque.dev/internal/auth/issuers"
	"barque.dev/internal/pki"
	"barque.dev/internal/testkit"
)

// file writes content to a new file and returns its path.
func file(t testing.TB, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// replace puts another file in the place of one, as editors and ConfigMap volumes do.
func replace(t testing.TB, path, content string) {
	t.Helper()
	if err := os.Rename(file(t, content), path); err != nil {
		t.Fatal(err)
	}
}

// at asks who a request for a path is from, with these headers and certificates.
func (f *fixture) at(path string, headers http.Header, chain ...*x509.Certificate) (user.Info, *http.Request, error) {
	req := f.request(path, headers, chain...)
	got, ok, err := f.Authenticator.AuthenticateRequest(req)
	if err != nil || !ok {
		return nil, req, err
	}
	return got.User, req, nil
}

func TestAnonymous(t *testing.T) {
	yes, no := true, false
	conf := func(rest string) string {
		return file(t, "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous:\n"+rest)
	}
	health, rest := []string{"/healthz", "/livez", "/readyz"}, []string{"/", "/version", "/healthz/etcd", "/api/v1/pods", "/metrics"}
	for name, it := range map[string]struct {
		options auth.Options
		yes, no []string
	}{
		"default":   {auth.Options{}, health, rest},
		"on":        {auth.Options{Anonymous: &yes}, append(health, rest...), nil},
		"off":       {auth.Options{Anonymous: &no}, nil, append(health, rest...)},
		"file, off": {auth.Options{AuthenticationConfig: conf("  enabled: false\n")}, nil, health},
		"file, some": {auth.Options{AuthenticationConfig: conf("  enabled: true\n  conditions:\n  - path: /version\n")},
			[]string{"/version"}, health},
		"on, and everything allowed": {auth.Options{Anonymous: &yes, Authorization: authorizers.Flags{Modes: []string{"AlwaysAllow"}}},
			nil, append(health, rest...)},
	} {
		f := newFixture(t, it.options)
		for _, path := range it.yes {
			if u, _, err := f.at(path, http.Header{}); err != nil || u == nil || u.GetName() != user.Anonymous {
				t.Errorf("%s: %s: %v, %v", name, path, u, err)
			}
		}
		for _, path := range it.no {
			if u, _, err := f.at(path, http.Header{}); err != nil || u != nil {
				t.Errorf("%s: %s: %v, %v", name, path, u, err)
			}
		}
	}
	// Whoever is nobody may ask for health and see the version, and no more.
	f := newFixture(t)
	for path, want := range map[string]bool{"/healthz": true, "/livez": true, "/readyz": true, "/version": true, "/metrics": false, "/api": false} {
		decision, _, err := f.Authorizer.Authorize(t.Context(), authorizer.AttributesRecord{
			User: &user.DefaultInfo{Name: user.Anonymous, Groups: []string{user.AllUnauthenticated}}, Verb: "get", Path: path,
		})
		if err != nil || (decision == authorizer.DecisionAllow) != want {
			t.Errorf("%s: %v, %v", path, decision, err)
		}
	}
}

func TestFrontProxy(t *testing.T) {
	other, err := pki.NewAuthority("other", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	path := file(t, string(other.PEM()))
	f := newFixture(t, auth.Options{FrontProxy: auth.FrontProxy{
		CAFile: path, AllowedNames: []string{"proxy"}, UsernameHeaders: []string{"x-user", "X-Remote-User"}, UIDHeaders: []string{"X-Remote-Uid"},
		GroupHeaders: []string{"X-Groups"}, ExtraPrefixes: []string{"X-More-"},
	}})
	proxy, unknown := certificate(t, other, pki.Client("proxy")), certificate(t, other, pki.Client("proxy-2"))
	cert := certificate(t, f.keys.Cluster, pki.Client("ann"))
	own := certificate(t, f.keys.FrontProxy, pki.Client(pki.UserFrontProxy))
	headers := http.Header{"X-User": {"bob"}, "X-Remote-Uid": {"7"}, "X-Groups": {"a", "b"}, "X-More-Floor%2fa": {"3"}, "X-Remote-User": {"eve"}}
	u, req, err := f.at("/api", headers.Clone(), proxy)
	if err != nil || u == nil || u.GetName() != "bob" || u.GetUID() != "7" ||
		fmt.Sprint(u.GetGroups(), u.GetExtra()) != "[a b system:authenticated] map[floor/a:[3]]" {
		t.Errorf("%v, %v", u, err)
	}
	if len(req.Header) != 0 {
		t.Errorf("headers that name users are passed on: %v", req.Header)
	}
	for name, chain := range map[string][]*x509.Certificate{"another name": {unknown}, "the cluster's own proxy": {own}, "nobody": nil} {
		if u, _, _ := f.at("/api", headers.Clone(), chain...); u != nil {
			t.Errorf("%s made %v", name, u)
		}
	}
	if u, req, err := f.at("/api", headers.Clone(), cert); err != nil || u.GetName() != "ann" || len(req.Header) != 0 {
		t.Errorf("a user's headers: %v, %v, %v", u, req.Header, err)
	}
	// Other authorities, without a restart.
	third, err := pki.NewAuthority("third", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f.run(t)
	before, replaced := f.Proxies()
	if !bytes.Equal(before.CA, other.PEM()) || fmt.Sprint(before.AllowedNames, before.UIDHeaders) != "[proxy] [X-Remote-Uid]" {
		t.Errorf("told of proxies: %+v", before)
	}
	replace(t, path, string(third.PEM()))
	select {
	case <-replaced:
	case <-time.After(10 * time.Second):
		t.Fatal("nobody is told of another authority")
	}
	if after, _ := f.Proxies(); !bytes.Equal(after.CA, third.PEM()) {
		t.Errorf("told of other proxies: %+v", after)
	}
	next := certificate(t, third, pki.Client("proxy"))
	testkit.Eventually(t, 10*time.Second, "the new authority is trusted", func() error {
		if u, _, err := f.at("/api", headers.Clone(), next); u == nil {
			return fmt.Errorf("nobody: %w", err)
		}
		return nil
	})
	if u, _, _ := f.at("/api", headers.Clone(), proxy); u != nil {
		t.Errorf("the old authority's proxy made %v", u)
	}
}

// A certificate may hold the user's UID; one that names nobody is as good as none.
func TestCertificateUsers(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	make := func(template, parent *x509.Certificate) *x509.Certificate {
		t.Helper()
		template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(time.Now().UnixNano()), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	root := &x509.Certificate{Subject: pkix.Name{CommonName: "root"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca := make(root, root)
	user := func(name pkix.Name) *x509.Certificate {
		return make(&x509.Certificate{Subject: name, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, ca)
	}
	uid := pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57683, 2}, Value: "7"}
	f := newFixture(t)
	config := f.config()
	config.ClientCA = x509.NewCertPool()
	config.ClientCA.AddCert(ca)
	if f.Auth, err = auth.New(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	if u, _, err := f.at("/api", http.Header{}, user(pkix.Name{CommonName: "ann", Organization: []string{"dev"}, ExtraNames: []pkix.AttributeTypeAndValue{uid}})); err != nil || u.GetName() != "ann" || u.GetUID() != "7" {
		t.Errorf("%v, %v", u, err)
	}
	if u, _, err := f.at("/api", http.Header{}, user(pkix.Name{CommonName: "ann", ExtraNames: []pkix.AttributeTypeAndValue{uid, uid}})); err == nil {
		t.Errorf("with two UIDs: %v", u)
	}
	nameless := user(pkix.Name{Organization: []string{"system:masters"}})
	if u, _, err := f.at("/api", http.Header{}, nameless); err != nil || u != nil {
		t.Errorf("without a name: %v, %v", u, err)
	}
	if u, _, err := f.at("/healthz", http.Header{}, nameless); err != nil || u.GetName() != "system:anonymous" {
		t.Errorf("without a name, asking for health: %v, %v", u, err)
	}
}

func TestOptionsThatMakeNoSense(t *testing.T) {
	f := newFixture(t)
	yes, negative := true, -time.Second
	anonymous := file(t, "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\nanonymous: {enabled: true}\n")
	for why, options := range map[string]auth.Options{
		"--oidc-client-id":                              {OIDC: issuers.Flags{IssuerURL: "https://a.example"}},
		"exclude each other":                            {AuthenticationConfig: anonymous, OIDC: issuers.Flags{IssuerURL: "https://a.example", ClientID: "a"}},
		"--anonymous-auth can't":                        {AuthenticationConfig: anonymous, Anonymous: &yes},
		"no such file":                                  {AuthenticationConfig: "/nonexistent/a.yaml"},
		"AuthenticationConfiguration":                   {AuthenticationConfig: file(t, "a: b\n")},
		"--authorization-config: open":                  {AuthorizationConfig: "/nonexistent/b.yaml"},
		"AuthorizationConfiguration":                    {AuthorizationConfig: anonymous},
		"--authorization-config excludes":               {AuthorizationConfig: anonymous, Authorization: authorizers.Flags{Modes: []string{"RBAC"}}},
		"ABAC":                                          {Authorization: authorizers.Flags{Modes: []string{"ABAC"}}},
		"choose of AlwaysAllow":                         {Authorization: authorizers.Flags{Modes: []string{"Rbac"}}},
		"given twice":                                   {Authorization: authorizers.Flags{Modes: []string{"RBAC", "RBAC"}}},
		"needs --authorization-webhook":                 {Authorization: authorizers.Flags{Modes: []string{"Webhook"}}},
		"needs Webhook in":                              {Authorization: authorizers.Flags{WebhookFile: "/a"}},
		"--authorization-webhook-version":               {Authorization: authorizers.Flags{WebhookVersion: "v2"}},
		"--authentication-token-webhook-version \"v3\"": {TokenWebhook: auth.TokenWebhook{ConfigFile: "/a", Version: "v3"}},
		"need --authentication-token-webhook":           {TokenWebhook: auth.TokenWebhook{Version: "v1"}},
		"cache-ttl -1s":                                 {TokenWebhook: auth.TokenWebhook{ConfigFile: "/a", CacheTTL: &negative}},
		"token-webhook-config-file /nonexistent":        {TokenWebhook: auth.TokenWebhook{ConfigFile: "/nonexistent/c"}},
		"--requestheader-client-ca-file: open":          {FrontProxy: auth.FrontProxy{CAFile: "/nonexistent/d"}},
		"no certificate":                                {FrontProxy: auth.FrontProxy{CAFile: file(t, "x")}},
		"--requestheader-allowed-names, or":             {FrontProxy: auth.FrontProxy{CAFile: file(t, string(f.keys.Cluster.PEM()))}},
		"--requestheader-group-headers holds":           {FrontProxy: auth.FrontProxy{GroupHeaders: []string{" "}}},
		"must not be empty":                             {ServiceAccounts: auth.ServiceAccounts{Issuers: []string{""}}},
		"https://a.example is given twice":              {ServiceAccounts: auth.ServiceAccounts{Issuers: []string{"https://a.example", "https://a.example"}}},
		"--service-account-jwks-uri":                    {ServiceAccounts: auth.ServiceAccounts{KeySetURL: "http://a.example"}},
		"--service-account-max-token":                   {ServiceAccounts: auth.ServiceAccounts{MaxLifetime: time.Minute}},
	} {
		config := f.config()
		config.Options = options
		if _, err := auth.New(t.Context(), config); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("got %v, want %q", err, why)
		}
	}
}

func TestServiceAccountOptions(t *testing.T) {
	f := newFixture(t, auth.Options{ServiceAccounts: auth.ServiceAccounts{
		Issuers: []string{"https://new.example", "https://old.example"}, KeySetURL: "https://keys.example/set", Audiences: []string{"api"}, MaxLifetime: time.Hour,
	}})
	old := newFixture(t, auth.Options{ServiceAccounts: auth.ServiceAccounts{Issuers: []string{"https://old.example"}, Audiences: []string{"api"}}})
	if err := f.ReplaceKeys(old.keys.ServiceAccounts.Key, old.keys.ServiceAccounts.Public); err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"its own": f.token(t, nil), "of the issuer before": old.token(t, nil)} {
		if u, _, err := f.at("/api", bearer(token)); err != nil || u.GetName() != "system:serviceaccount:a:sa" {
			t.Errorf("a token %s: %v, %v", name, u, err)
		}
	}
	if u, _, err := old.at("/api", bearer(f.token(t, nil))); u != nil {
		t.Errorf("a token of an issuer that is not accepted: %v, %v", u, err)
	}
	w := httptest.NewRecorder()
	f.Handlers()["/.well-known/openid-configuration"].ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if body := w.Body.String(); !strings.Contains(body, `"issuer":"https://new.example","jwks_uri":"https://keys.example/set"`) {
		t.Error(body)
	}
	// An issuer that is no URL works, but nobody can look up its keys.
	plain := newFixture(t, auth.Options{ServiceAccounts: auth.ServiceAccounts{Issuers: []string{"barque"}}})
	if u, _, err := plain.at("/api", bearer(plain.token(t, nil))); err != nil || u == nil || len(plain.Handlers()) != 0 {
		t.Errorf("%v, %v, %v", u, err, plain.Handlers())
	}
}

func TestSigningKeysAreReplaced(t *testing.T) {
	f := newFixture(t)
	first, other := f.keys.ServiceAccounts, newFixture(t).keys.ServiceAccounts
	old := f.token(t, nil)
	check := func(token string, want bool) {
		t.Helper()
		u, _, err := f.at("/api", bearer(token))
		if (u != nil) != want {
			t.Errorf("got %v, %v, want %v", u, err, want)
		}
	}
	check(old, true)
	if err := f.ReplaceKeys(other.Key, append(other.Public, first.Public...)); err != nil {
		t.Fatal(err)
	}
	fresh := f.token(t, nil)
	check(old, true)
	check(fresh, true)
	if err := f.ReplaceKeys(other.Key, other.Public); err != nil {
		t.Fatal(err)
	}
	check(old, false)
	check(fresh, true)
	if err := f.ReplaceKeys(first.Key, other.Public); err == nil {
		t.Error("a key signs that is not accepted")
	}
	check(fresh, true)
}

func TestAuthorizationFile(t *testing.T) {
	conf := func(types ...string) string {
		var b strings.Builder
		b.WriteString("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n")
		for _, name := range types {
			fmt.Fprintf(&b, "- {type: %s, name: %s}\n", name, strings.ToLower(name))
		}
		return b.String()
	}
	path := file(t, conf("Node", "RBAC"))
	f := newFixture(t, auth.Options{AuthorizationConfig: path})
	f.image.Put(schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterrolebindings"}, &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "ann"}, RoleRef: rbacv1.RoleRef{Kind: "ClusterRole", Name: "cluster-admin"},
		Subjects: []rbacv1.Subject{{Kind: "User", Name: "ann"}},
	})
	may := func(name string) bool {
		decision, _, _ := f.Authorizer.Authorize(context.Background(), authorizer.AttributesRecord{
			User: &user.DefaultInfo{Name: name}, Verb: "list", APIVersion: "v1", Resource: "pods", ResourceRequest: true,
		})
		return decision == authorizer.DecisionAllow
	}
	if !may("ann") || may("bob") {
		t.Fatalf("ann %v, bob %v", may("ann"), may("bob"))
	}
	f.run(t)
	replace(t, path, conf("Node", "RBAC", "AlwaysAllow"))
	testkit.Eventually(t, 10*time.Second, "the new configuration is in force", testkit.Holds(func() bool { return may("bob") }))
	// Each of these is refused, and the last good one stays; the one after them shows that they were seen.
	for _, bad := range []string{"", "{", conf("Node"), conf("Node", "RBAC", "Rubbish"), strings.Replace(conf("Node", "RBAC"), "name: rbac", "name: other", 1)} {
		f.log.Reset()
		replace(t, path, bad)
		testkit.Eventually(t, 10*time.Second, "the bad configuration is reported", testkit.Holds(func() bool {
			return strings.Contains(f.log.String(), "stays in force")
		}))
		if !may("bob") {
			t.Errorf("%q was used", bad)
		}
	}
	replace(t, path, conf("AlwaysDeny", "Node", "RBAC"))
	testkit.Eventually(t, 10*time.Second, "the newest configuration is in force", testkit.Holds(func() bool { return !may("bob") }))
	if !may("ann") {
		t.Error("what RBAC allows is refused by an authorizer that allows nothing")
	}
	out, err := f.create(t, "subjectaccessreviews.authorization.k8s.io", "", "", &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{User: "root", Groups: []string{"system:masters"}, ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods"}},
	}, nil)
	if err != nil || !out.(*authorizationv1.SubjectAccessReview).Status.Allowed {
		t.Errorf("system:masters: %v, %v", out, err)
	}
}

// FuzzHeaders sends what strangers may send: without a certificate or a token of ours nobody is
// anybody, and nothing panics.
func FuzzHeaders(f *testing.F) {
	fix := newFixture(f)
	for _, seed := range [][3]string{
		{"Bearer x", "bob", "base64url.bearer.authorization.k8s.io.eA"}, {"bearer ", "", ""}, {"Bearer a.b.c", "system:masters", ","},
		{"Basic YTpi", "\xff", "base64url.bearer.authorization.k8s.io."}, {"Bearer abcdef.0123456789abcdef", "a", "b, base64url.bearer.authorization.k8s.io.!!"},
	} {
		f.Add(seed[0], seed[1], seed[2])
	}
	f.Fuzz(func(t *testing.T, authorization, remote, protocol string) {
		headers := http.Header{
			"Authorization": {authorization}, "X-Remote-User": {remote}, "X-Remote-Group": {"system:masters"},
			"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Protocol": {protocol},
		}
		req := fix.request("/api", headers)
		response, ok, _ := fix.Authenticator.AuthenticateRequest(req)
		if ok {
			t.Errorf("%q, %q, %q made %v", authorization, remote, protocol, response.User)
		}
	})
}
