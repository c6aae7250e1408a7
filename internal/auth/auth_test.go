package auth_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"

	apirbac "barque.dev/internal/api/rbac"
	"barque.dev/internal/auth"
	"barque.dev/internal/auth/image"
	"barque.dev/internal/auth/serviceaccount"
	"barque.dev/internal/pki"
)

type fixture struct {
	*auth.Auth
	image *image.Memory
	keys  *pki.Authorities
	now   time.Time
	log   *logs
}

// logs collects what is logged.
type logs struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Reset forgets what was logged.
func (l *logs) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Reset()
}

func core(name string) schema.GroupResource { return schema.GroupResource{Resource: name} }

// config is that of a cluster whose operator said nothing.
func (f *fixture) config() auth.Config {
	return auth.Config{
		Image: f.image, ClientCA: f.keys.Cluster.Pool(), FrontProxyCA: f.keys.FrontProxy.PEM(),
		SigningKey: f.keys.ServiceAccounts.Key, PublicKeys: f.keys.ServiceAccounts.Public,
		ServerID: "test", Now: func() time.Time { return f.now }, Log: slog.New(slog.NewTextHandler(f.log, nil)),
	}
}

// run follows the fixture's files until the test ends.
func (f *fixture) run(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("follow files: %v", err)
		}
	})
}

func newFixture(t testing.TB, options ...auth.Options) *fixture {
	t.Helper()
	f := &fixture{image: image.NewMemory(auth.Indexes()...), now: time.Now(), log: &logs{}}
	var err error
	if f.keys, err = pki.New(f.now); err != nil {
		t.Fatal(err)
	}
	config := f.config()
	for _, o := range options {
		config.Options = o
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	if f.Auth, err = auth.New(ctx, config); err != nil {
		t.Fatal(err)
	}
	policy := apirbac.Bootstrap()
	for i := range policy.ClusterRoles {
		f.image.Put(schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterroles"}, &policy.ClusterRoles[i])
	}
	for i := range policy.ClusterRoleBindings {
		f.image.Put(schema.GroupResource{Group: rbacv1.GroupName, Resource: "clusterrolebindings"}, &policy.ClusterRoleBindings[i])
	}
	f.image.Put(core("serviceaccounts"), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "sa", UID: "sa-uid"}})
	f.image.Put(core("pods"), f.pod())
	f.image.Put(core("nodes"), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node-uid"}})
	f.image.Put(core("secrets"), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "s", UID: "secret-uid"}})
	return f
}

func (f *fixture) pod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p", UID: "pod-uid"},
		Spec:       corev1.PodSpec{ServiceAccountName: "sa", NodeName: "n1"},
	}
}

// request is one for path with these headers and certificates.
func (f *fixture) request(path string, headers http.Header, chain ...*x509.Certificate) *http.Request {
	req := httptest.NewRequest(http.MethodGet, path, nil)
	req.Header = headers
	req.TLS = &tls.ConnectionState{PeerCertificates: chain}
	return req.WithContext(authenticator.WithAudiences(req.Context(), f.Audiences))
}

// authenticate asks who a request with these headers is from.
func (f *fixture) authenticate(headers http.Header, chain ...*x509.Certificate) (user.Info, error) {
	u, _, err := f.at("/api/v1/pods", headers, chain...)
	return u, err
}

// certificate is one that an authority issues.
func certificate(t testing.TB, a *pki.Authority, req pki.Request) *x509.Certificate {
	t.Helper()
	pair, err := a.Issue(req, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf
}

func bearer(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

func (f *fixture) create(t testing.TB, key, namespace, name string, obj runtime.Object, u user.Info) (runtime.Object, error) {
	t.Helper()
	ctx := context.Background()
	if u != nil {
		ctx = request.WithUser(ctx, u)
	}
	return f.Virtual()[key](ctx, namespace, name, obj)
}

func (f *fixture) token(t testing.TB, ref *authenticationv1.BoundObjectReference, audiences ...string) string {
	t.Helper()
	seconds := int64(3600)
	out, err := f.create(t, "serviceaccounts/token", "a", "sa", &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: ref, Audiences: audiences, ExpirationSeconds: &seconds},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	status := out.(*authenticationv1.TokenRequest).Status
	if got := status.ExpirationTimestamp.Sub(f.now); got != time.Hour {
		t.Errorf("expires in %v", got)
	}
	return status.Token
}

func TestCertificates(t *testing.T) {
	f := newFixture(t)
	short := pki.Client("ann", "dev")
	short.Validity = time.Hour
	cert := certificate(t, f.keys.Cluster, short)
	for range 2 { // the second time from memory
		u, err := f.authenticate(http.Header{}, cert)
		if err != nil {
			t.Fatal(err)
		}
		if u.GetName() != "ann" || strings.Join(u.GetGroups(), ",") != "dev,system:authenticated" {
			t.Errorf("user %v", u)
		}
	}
	for name, bad := range map[string]*x509.Certificate{
		"of etcd's authority": certificate(t, f.keys.Etcd, pki.Client("ann", "system:masters")),
		"of a front proxy":    certificate(t, f.keys.FrontProxy, pki.Client("ann", "system:masters")),
		"of a server":         certificate(t, f.keys.Cluster, pki.APIServer(pki.ServerNames{})),
		"without a name":      certificate(t, f.keys.Cluster, pki.Client("")),
	} {
		if u, err := f.authenticate(http.Header{}, bad); err == nil && u != nil {
			t.Errorf("a certificate %s made %v", name, u)
		}
	}
	front := certificate(t, f.keys.FrontProxy, pki.Client(pki.UserFrontProxy))
	remote := http.Header{"X-Remote-User": {"bob"}, "X-Remote-Group": {"ops"}}
	if u, err := f.authenticate(remote.Clone(), front); err != nil || u.GetName() != "bob" {
		t.Errorf("front proxy: %v, %v", u, err)
	}
	if u, err := f.authenticate(remote.Clone(), cert); err != nil || u.GetName() != "ann" {
		t.Errorf("headers of a user count: %v, %v", u, err)
	}
	f.now = f.now.Add(2 * time.Hour)
	if u, err := f.authenticate(http.Header{}, cert); err == nil {
		t.Errorf("an expired certificate made %v", u)
	}
}

func TestServiceAccountTokens(t *testing.T) {
	pod := &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "p", UID: "pod-uid"}
	node := &authenticationv1.BoundObjectReference{Kind: "Node", APIVersion: "v1", Name: "n1"}
	secret := &authenticationv1.BoundObjectReference{Kind: "Secret", APIVersion: "v1", Name: "s"}
	tests := map[string]struct {
		ref    *authenticationv1.BoundObjectReference
		change func(*fixture)
		want   string // of the error; empty: good
	}{
		"unbound":            {nil, func(*fixture) {}, ""},
		"of a pod":           {pod, func(*fixture) {}, ""},
		"of a node":          {node, func(*fixture) {}, ""},
		"of a secret":        {secret, func(*fixture) {}, ""},
		"expired":            {pod, func(f *fixture) { f.now = f.now.Add(2 * time.Hour) }, "expired"},
		"from the future":    {pod, func(f *fixture) { f.now = f.now.Add(-time.Hour) }, "not valid yet"},
		"pod is gone":        {pod, func(f *fixture) { f.image.Delete(core("pods"), "a", "p") }, "invalidated"},
		"node is gone":       {node, func(f *fixture) { f.image.Delete(core("nodes"), "", "n1") }, "invalidated"},
		"pod's node is gone": {pod, func(f *fixture) { f.image.Delete(core("nodes"), "", "n1") }, ""},
		"secret is gone":     {secret, func(f *fixture) { f.image.Delete(core("secrets"), "a", "s") }, "invalidated"},
		"account is gone":    {nil, func(f *fixture) { f.image.Delete(core("serviceaccounts"), "a", "sa") }, "not found"},
		"another account": {nil, func(f *fixture) {
			f.image.Put(core("serviceaccounts"), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "sa", UID: "new"}})
		}, "does not match claim"},
		"another pod": {pod, func(f *fixture) {
			p := f.pod()
			p.UID = "new"
			f.image.Put(core("pods"), p)
		}, "invalidated"},
		"pod is ending": {pod, func(f *fixture) {
			p := f.pod()
			p.DeletionTimestamp = &metav1.Time{Time: f.now.Add(30 * time.Second)}
			f.image.Put(core("pods"), p)
		}, ""},
		"pod should be gone": {pod, func(f *fixture) {
			p := f.pod()
			p.DeletionTimestamp = &metav1.Time{Time: f.now.Add(-5 * time.Minute)}
			f.image.Put(core("pods"), p)
		}, "invalidated"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			token := f.token(t, tt.ref)
			if u, err := f.authenticate(bearer(token)); err != nil || u.GetName() != "system:serviceaccount:a:sa" {
				t.Fatalf("fresh: %v, %v", u, err)
			}
			tt.change(f)
			u, err := f.authenticate(bearer(token))
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, %v, want %q", u, err, tt.want)
			}
		})
	}
}

func TestServiceAccountUser(t *testing.T) {
	f := newFixture(t)
	u, err := f.authenticate(bearer(f.token(t, &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "p"})))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(u.GetGroups(), ","); got != "system:serviceaccounts,system:serviceaccounts:a,system:authenticated" {
		t.Errorf("groups %s", got)
	}
	extra := u.GetExtra()
	if extra["authentication.kubernetes.io/pod-name"][0] != "p" || extra["authentication.kubernetes.io/node-uid"][0] != "node-uid" ||
		!strings.HasPrefix(extra["authentication.kubernetes.io/credential-id"][0], "JTI=") {
		t.Errorf("extra %v", extra)
	}
}

func TestForeignTokens(t *testing.T) {
	f, other := newFixture(t), newFixture(t)
	good := f.token(t, nil)
	parts := strings.Split(good, ".")
	for name, token := range map[string]string{
		"of another cluster": other.token(t, nil),
		"for others":         f.token(t, nil, "vault"),
		"unsigned":           "eyJhbGciOiJub25lIn0." + parts[1] + ".",
		"tampered":           parts[0] + "." + parts[1][:len(parts[1])-4] + "AAAA." + parts[2],
		"garbage":            "garbage",
		"no bootstrap token": "abcdef.0123456789abcdef",
	} {
		if u, err := f.authenticate(bearer(token)); err == nil {
			t.Errorf("a token %s made %v", name, u)
		}
	}
	review := func(token string, audiences ...string) authenticationv1.TokenReviewStatus {
		t.Helper()
		out, err := f.create(t, "tokenreviews.authentication.k8s.io", "", "", &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token, Audiences: audiences}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return out.(*authenticationv1.TokenReview).Status
	}
	if s := review(f.token(t, nil, "vault"), "vault", "x"); !s.Authenticated || s.User.Username != "system:serviceaccount:a:sa" || len(s.Audiences) != 1 {
		t.Errorf("review: %+v", s)
	}
	if s := review(f.token(t, nil, "vault")); s.Authenticated || s.Error == "" {
		t.Errorf("review for another audience: %+v", s)
	}
}

func TestLegacyToken(t *testing.T) {
	f := newFixture(t)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "sa", UID: "sa-uid"}}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "old"}, Type: corev1.SecretTypeServiceAccountToken}
	token, err := f.Issuer.IssueLegacy(account, secret)
	if err != nil {
		t.Fatal(err)
	}
	if u, err := f.authenticate(bearer(token)); err == nil {
		t.Errorf("a token that no secret holds made %v", u)
	}
	secret.Data = map[string][]byte{corev1.ServiceAccountTokenKey: []byte(token)}
	f.image.Put(core("secrets"), secret)
	if u, err := f.authenticate(bearer(token)); err != nil || u.GetName() != "system:serviceaccount:a:sa" {
		t.Errorf("got %v, %v", u, err)
	}
	f.image.Delete(core("secrets"), "a", "old")
	if u, err := f.authenticate(bearer(token)); err == nil {
		t.Errorf("a token whose secret is gone made %v", u)
	}
}

func TestTokenRequestErrors(t *testing.T) {
	f := newFixture(t)
	short := int64(60)
	for name, tt := range map[string]struct {
		account string
		req     authenticationv1.TokenRequest
		want    string
	}{
		"no account":    {"missing", authenticationv1.TokenRequest{}, "not found"},
		"too short":     {"sa", authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &short}}, "less than 10 minutes"},
		"other uid":     {"sa", authenticationv1.TokenRequest{ObjectMeta: metav1.ObjectMeta{UID: "x"}}, "does not match"},
		"other name":    {"sa", authenticationv1.TokenRequest{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, "must match"},
		"no pod":        {"sa", authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "x"}}}, "not found"},
		"other pod uid": {"sa", authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "p", UID: "x"}}}, "UID"},
		"odd kind":      {"sa", authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Lamp", Name: "x"}}}, "cannot bind token"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := f.create(t, "serviceaccounts/token", "a", tt.account, &tt.req, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestProjectedTokenLivesLonger(t *testing.T) {
	f := newFixture(t)
	seconds := int64(3607)
	out, err := f.create(t, "serviceaccounts/token", "a", "sa", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds, BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "p"},
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.now = f.now.Add(48 * time.Hour)
	if _, err := f.authenticate(bearer(out.(*authenticationv1.TokenRequest).Status.Token)); err != nil {
		t.Error(err)
	}
}

func TestBootstrapTokens(t *testing.T) {
	f := newFixture(t)
	secret := func(change func(*corev1.Secret)) {
		s := &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "bootstrap-token-abcdef"}, Type: corev1.SecretTypeBootstrapToken,
			Data: map[string][]byte{
				"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-authentication": []byte("true"),
				"auth-extra-groups": []byte("system:bootstrappers:barque"), "expiration": []byte(f.now.Add(time.Hour).Format(time.RFC3339)),
			},
		}
		change(s)
		f.image.Put(core("secrets"), s)
	}
	token := bearer("abcdef.0123456789abcdef")
	secret(func(*corev1.Secret) {})
	u, err := f.authenticate(token.Clone())
	if err != nil || u.GetName() != "system:bootstrap:abcdef" || strings.Join(u.GetGroups(), ",") != "system:bootstrappers,system:bootstrappers:barque,system:authenticated" {
		t.Fatalf("got %v, %v", u, err)
	}
	for name, change := range map[string]func(*corev1.Secret){
		"expired":       func(s *corev1.Secret) { s.Data["expiration"] = []byte(f.now.Add(-time.Second).Format(time.RFC3339)) },
		"odd expiry":    func(s *corev1.Secret) { s.Data["expiration"] = []byte("soon") },
		"another value": func(s *corev1.Secret) { s.Data["token-secret"] = []byte("0123456789abcdee") },
		"not for this":  func(s *corev1.Secret) { delete(s.Data, "usage-bootstrap-authentication") },
		"another type":  func(s *corev1.Secret) { s.Type = corev1.SecretTypeOpaque },
		"a great group": func(s *corev1.Secret) { s.Data["auth-extra-groups"] = []byte("system:masters") },
	} {
		secret(change)
		if u, err := f.authenticate(token.Clone()); err == nil {
			t.Errorf("%s: made %v", name, u)
		}
	}
}

// What is asked of every request must stay cheap.
func BenchmarkAuthenticate(b *testing.B) {
	f := newFixture(b)
	cert := certificate(b, f.keys.Cluster, pki.Client("ann", "dev"))
	for name, req := range map[string]*http.Request{
		"certificate": f.request("/api/v1/pods", http.Header{}, cert),
		"account":     f.request("/api/v1/pods", bearer(f.token(b, &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "p"}))),
	} {
		authorization := req.Header.Get("Authorization")
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if authorization != "" {
					req.Header.Set("Authorization", authorization)
				}
				if _, ok, err := f.Authenticator.AuthenticateRequest(req); !ok || err != nil {
					b.Fatal(ok, err)
				}
			}
		})
	}
}

// What another server has just acknowledged counts here too, though the image is behind.
func TestTokensCountBeforeTheImageHasTheirAccount(t *testing.T) {
	f := newFixture(t)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "sa", UID: "sa-uid"}}
	token := f.token(t, nil)
	for name, before := range map[string]func(){
		"none yet": func() { f.image.Delete(core("serviceaccounts"), "a", "sa") },
		"an old one": func() {
			f.image.Put(core("serviceaccounts"), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "sa", UID: "old"}})
		},
	} {
		config := f.config()
		caught := 0
		config.CatchUp = func(context.Context) error {
			caught++
			f.image.Put(core("serviceaccounts"), account)
			return nil
		}
		var err error
		if f.Auth, err = auth.New(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		before()
		for range 2 {
			if u, err := f.authenticate(bearer(token)); err != nil || u.GetName() != "system:serviceaccount:a:sa" {
				t.Errorf("%s: %v, %v", name, u, err)
			}
		}
		if caught != 1 {
			t.Errorf("%s: caught up %d times", name, caught)
		}
		before()
		fresh, err := f.create(t, "serviceaccounts/token", "a", "sa", &authenticationv1.TokenRequest{}, nil)
		if err != nil {
			t.Errorf("%s: a token was refused: %v", name, err)
		} else if u, err := f.authenticate(bearer(fresh.(*authenticationv1.TokenRequest).Status.Token)); err != nil || u.GetUID() != "sa-uid" {
			t.Errorf("%s: %v, %v", name, u, err)
		}
	}
	// Who cannot be asked cannot make a token good.
	config := f.config()
	config.CatchUp = func(context.Context) error { return context.DeadlineExceeded }
	var err error
	if f.Auth, err = auth.New(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	f.image.Delete(core("serviceaccounts"), "a", "sa")
	if u, err := f.authenticate(bearer(token)); err == nil {
		t.Errorf("without an account: %v", u)
	}
	if _, err := f.create(t, "serviceaccounts/token", "a", "sa", &authenticationv1.TokenRequest{}, nil); err == nil {
		t.Error("a token was issued from an image that may be behind")
	}
}

// What is no service account's token is the API server's to judge, and for its audiences alone.
func TestBootstrapTokenIsReviewed(t *testing.T) {
	f := newFixture(t)
	f.image.Put(core("secrets"), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "bootstrap-token-abcdef"}, Type: corev1.SecretTypeBootstrapToken,
		Data: map[string][]byte{"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-authentication": []byte("true")},
	})
	review := func(audiences ...string) authenticationv1.TokenReviewStatus {
		t.Helper()
		out, err := f.create(t, "tokenreviews.authentication.k8s.io", "", "", &authenticationv1.TokenReview{
			Spec: authenticationv1.TokenReviewSpec{Token: "abcdef.0123456789abcdef", Audiences: audiences},
		}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return out.(*authenticationv1.TokenReview).Status
	}
	for _, audiences := range [][]string{nil, {auth.DefaultIssuer, "other"}} {
		if got := review(audiences...); !got.Authenticated || got.User.Username != "system:bootstrap:abcdef" || len(got.Audiences) != 1 {
			t.Errorf("for %v: %+v", audiences, got)
		}
	}
	if got := review("other"); got.Authenticated {
		t.Errorf("for others: %+v", got)
	}
	// What is no token at all is nobody's.
	out, err := f.create(t, "tokenreviews.authentication.k8s.io", "", "", &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: " "}}, nil)
	if err != nil || out.(*authenticationv1.TokenReview).Status.Authenticated {
		t.Errorf("a blank: %v, %v", out, err)
	}
}

func TestReviews(t *testing.T) {
	f := newFixture(t)
	master := &user.DefaultInfo{Name: "root", Groups: []string{"system:masters", "system:authenticated"}}
	nobody := &user.DefaultInfo{Name: "nobody", Groups: []string{"system:authenticated"}}
	pods := &authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods", Namespace: "a"}
	can := func(u user.Info) bool {
		t.Helper()
		out, err := f.create(t, "selfsubjectaccessreviews.authorization.k8s.io", "", "", &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: pods}}, u)
		if err != nil {
			t.Fatal(err)
		}
		return out.(*authorizationv1.SelfSubjectAccessReview).Status.Allowed
	}
	if !can(master) || can(nobody) {
		t.Error("self access reviews are wrong")
	}
	local := func(namespace string) error {
		_, err := f.create(t, "localsubjectaccessreviews.authorization.k8s.io", namespace, "", &authorizationv1.LocalSubjectAccessReview{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace}, Spec: authorizationv1.SubjectAccessReviewSpec{User: "x", ResourceAttributes: pods}}, master)
		return err
	}
	if err := local("a"); err != nil {
		t.Error(err)
	}
	if err := local("b"); err == nil {
		t.Error("a local review of another namespace was answered")
	}
	for name, spec := range map[string]authorizationv1.SubjectAccessReviewSpec{
		"nobody":  {ResourceAttributes: pods},
		"nothing": {User: "x"},
		"both":    {User: "x", ResourceAttributes: pods, NonResourceAttributes: &authorizationv1.NonResourceAttributes{}},
	} {
		if _, err := f.create(t, "subjectaccessreviews.authorization.k8s.io", "", "", &authorizationv1.SubjectAccessReview{Spec: spec}, master); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	out, err := f.create(t, "selfsubjectrulesreviews.authorization.k8s.io", "", "", &authorizationv1.SelfSubjectRulesReview{Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "a"}}, nobody)
	if err != nil || len(out.(*authorizationv1.SelfSubjectRulesReview).Status.NonResourceRules) == 0 {
		t.Errorf("rules: %v, %v", out, err)
	}
	out, err = f.create(t, "selfsubjectreviews.authentication.k8s.io", "", "", &authenticationv1.SelfSubjectReview{}, nobody)
	if err != nil || out.(*authenticationv1.SelfSubjectReview).Status.UserInfo.Username != "nobody" {
		t.Errorf("self: %v, %v", out, err)
	}
}

func TestDiscovery(t *testing.T) {
	f := newFixture(t)
	get := func(path string, into any) {
		t.Helper()
		w := httptest.NewRecorder()
		f.Handlers()[path].ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
			t.Fatal(err)
		}
	}
	var document map[string]any
	get(serviceaccount.DiscoveryPath, &document)
	if document["issuer"] != auth.DefaultIssuer || document["jwks_uri"] != auth.DefaultIssuer+serviceaccount.KeySetPath {
		t.Errorf("document %v", document)
	}
	var set jose.JSONWebKeySet
	get(serviceaccount.KeySetPath, &set)
	signed, err := jose.ParseSigned(f.token(t, nil), []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := signed.Verify(set); err != nil {
		t.Errorf("the published keys do not verify a token: %v", err)
	}
	if strings.Contains(string(mustJSON(t, set)), `"d"`) {
		t.Error("a private key was published")
	}
}

func mustJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
