package issuers_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	"barque.dev/internal/auth/issuers"
	"barque.dev/internal/auth/issuers/issuertest"
	"barque.dev/internal/auth/reload"
	"barque.dev/internal/testkit"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
	)
}

const own = "https://kubernetes.default.svc.cluster.local"

// configuration is an AuthenticationConfiguration with the issuers' parts, each the fields of one
// JWT authenticator after its issuer.
func configuration(version string, parts ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: apiserver.config.k8s.io/%s\nkind: AuthenticationConfiguration\njwt:\n", version)
	for _, part := range parts {
		b.WriteString(part)
	}
	return b.String()
}

// jwt is one issuer's part: rest is further YAML of four spaces' indent.
func jwt(i *issuertest.Issuer, issuer, rest string) string {
	return i.Entry(issuer + rest)
}

const plain = `    audiences: [barque]
  claimMappings:
    username: {claim: sub, prefix: "oidc:"}
    groups: {claim: groups, prefix: "oidc:"}
`

func open(t *testing.T, content string) *issuers.Issuers {
	t.Helper()
	conf, err := issuers.Load([]byte(content), []string{own})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	all, err := issuers.New(ctx, conf, issuers.Config{Own: []string{own}, Audiences: authenticator.Audiences{own}, ServerID: "test", Ready: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// who asks whose a token is, and waits until the issuer has been reached.
func who(t *testing.T, all *issuers.Issuers, token string) (user.Info, error) {
	t.Helper()
	var u user.Info
	var refused error
	testkit.Eventually(t, 10*time.Second, "the issuer is ready", func() error {
		response, ok, err := all.AuthenticateToken(t.Context(), token)
		switch {
		case err != nil && strings.Contains(err.Error(), "not initialized"):
			return err
		case err != nil:
			refused = err
		case !ok:
			refused = errors.New("not ours")
		default:
			u = response.User
		}
		return nil
	})
	return u, refused
}

func refused(t *testing.T, all *issuers.Issuers, token, why string) {
	t.Helper()
	u, err := who(t, all, token)
	if err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("got %v, %v; want a refusal: %s", u, err, why)
	}
}

func TestTokensOfSeveralIssuers(t *testing.T) {
	one, two, stranger := issuertest.Start(t), issuertest.StartRSA(t), issuertest.Start(t)
	all := open(t, configuration("v1", jwt(one, "", plain), jwt(two, "", `    audiences: [a, barque]
    audienceMatchPolicy: MatchAny
  claimMappings:
    username: {expression: "'two:' + claims.name.lowerAscii()"}
    groups: {expression: "claims.teams"}
    uid: {expression: "claims.sub"}
    extra:
    - {key: "example.com/floor", valueExpression: "string(claims.floor)"}
`)))
	u, err := who(t, all, one.Token(t, map[string]any{"aud": "barque", "sub": "ann", "groups": []string{"ops", "dev"}}))
	if err != nil || u.GetName() != "oidc:ann" || fmt.Sprint(u.GetGroups()) != "[oidc:ops oidc:dev]" {
		t.Errorf("%v, %v", u, err)
	}
	u, err = who(t, all, two.Token(t, map[string]any{"aud": []string{"b", "a"}, "sub": "7", "name": "BOB", "teams": []string{"x"}, "floor": 3}))
	if err != nil || u.GetName() != "two:bob" || u.GetUID() != "7" || fmt.Sprint(u.GetGroups(), u.GetExtra()["example.com/floor"]) != "[x] [3]" {
		t.Errorf("%v, %v", u, err)
	}
	claims := map[string]any{"aud": "barque", "sub": "ann"}
	refused(t, all, stranger.Token(t, claims), "not ours")
	refused(t, all, one.Token(t, map[string]any{"aud": "other", "sub": "ann"}), "audience")
	refused(t, all, one.Token(t, map[string]any{"aud": "barque", "sub": "ann", "exp": time.Now().Add(-time.Minute).Unix()}), "expired")
	refused(t, all, one.Token(t, map[string]any{"aud": "barque", "sub": nil}), "sub")
	// Another issuer's key does not speak for this one.
	refused(t, all, stranger.Token(t, map[string]any{"aud": "barque", "sub": "ann", "iss": one.URL}), "failed to verify")
}

func TestRules(t *testing.T) {
	i := issuertest.Start(t)
	all := open(t, configuration("v1beta1", jwt(i, "", plain+`  claimValidationRules:
  - {claim: hd, requiredValue: example.com}
  - {expression: "claims.exp - claims.iat <= 86400", message: "the token lives too long"}
  userValidationRules:
  - {expression: "!user.username.startsWith('oidc:system:')", message: "that name is reserved"}
  - {expression: "user.groups.all(g, g != 'oidc:banned')", message: "the group is banned"}
`)))
	token := func(change map[string]any) string {
		claims := map[string]any{"aud": "barque", "sub": "ann", "hd": "example.com"}
		for k, v := range change {
			claims[k] = v
		}
		return i.Token(t, claims)
	}
	if u, err := who(t, all, token(nil)); err != nil || u.GetName() != "oidc:ann" {
		t.Fatalf("%v, %v", u, err)
	}
	refused(t, all, token(map[string]any{"hd": "evil.example"}), "claim hd value does not match")
	refused(t, all, token(map[string]any{"hd": nil}), "claim hd not present")
	refused(t, all, token(map[string]any{"exp": time.Now().Add(72 * time.Hour).Unix()}), "the token lives too long")
	refused(t, all, token(map[string]any{"sub": "system:admin"}), "that name is reserved")
	refused(t, all, token(map[string]any{"groups": []string{"banned"}}), "the group is banned")
}

func TestKeyRotation(t *testing.T) {
	i := issuertest.Start(t)
	all := open(t, configuration("v1", jwt(i, "", plain)))
	claims := map[string]any{"aud": "barque", "sub": "ann"}
	old := i.Token(t, claims)
	if _, err := who(t, all, old); err != nil {
		t.Fatal(err)
	}
	before := i.Fetches()
	i.Rotate(t, 1)
	if _, err := who(t, all, i.Token(t, claims)); err != nil {
		t.Errorf("a token of the new key: %v", err)
	}
	if i.Fetches() == before {
		t.Error("the keys were not asked for again")
	}
	if _, err := who(t, all, old); err != nil {
		t.Errorf("a token of the old key, which is still there: %v", err)
	}
	i.Rotate(t, 0)
	if _, err := who(t, all, i.Token(t, claims)); err != nil {
		t.Errorf("a token of the newest key: %v", err)
	}
	refused(t, all, old, "failed to verify")
}

func TestDiscoveryElsewhere(t *testing.T) {
	i := issuertest.Start(t)
	i.MoveDiscovery("/inside/openid")
	all := open(t, configuration("v1", jwt(i, "    discoveryURL: "+i.URL+"/inside/openid\n", plain)))
	if u, err := who(t, all, i.Token(t, map[string]any{"aud": "barque", "sub": "ann"})); err != nil || u.GetName() != "oidc:ann" {
		t.Errorf("%v, %v", u, err)
	}
}

func TestReplace(t *testing.T) {
	one, two := issuertest.Start(t), issuertest.Start(t)
	all := open(t, configuration("v1", jwt(one, "", plain)))
	claims := map[string]any{"aud": "barque", "sub": "ann"}
	if _, err := who(t, all, one.Token(t, claims)); err != nil {
		t.Fatal(err)
	}
	load := func(content string) error {
		conf, err := issuers.Load([]byte(content), nil)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if !strings.Contains(content, "discoveryURL") {
			ctx = t.Context()
		}
		return all.Replace(ctx, conf)
	}
	// One that does not answer changes nothing, and may answer later.
	if err := load(configuration("v1", jwt(two, "    discoveryURL: "+two.URL+"/nowhere\n", plain))); !errors.Is(err, reload.ErrRetry) {
		t.Errorf("replaced by an issuer that is not there: %v", err)
	}
	if _, err := who(t, all, one.Token(t, claims)); err != nil {
		t.Errorf("after a replacement that failed: %v", err)
	}
	if err := load(configuration("v1", jwt(two, "", plain))); err != nil {
		t.Fatal(err)
	}
	if _, err := who(t, all, two.Token(t, claims)); err != nil {
		t.Errorf("the new issuer: %v", err)
	}
	refused(t, all, one.Token(t, claims), "not ours")
	// No issuer at all is a configuration too.
	if err := load("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n"); err != nil {
		t.Fatal(err)
	}
	refused(t, all, two.Token(t, claims), "not ours")
}

func TestLoadRefuses(t *testing.T) {
	i := issuertest.Start(t)
	for name, it := range map[string]struct{ content, why string }{
		"nothing":          {"", "empty"},
		"no YAML":          {"{", "decode"},
		"another kind":     {"apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n", "AuthorizationConfiguration"},
		"an unknown field": {configuration("v1", jwt(i, "", plain)) + "jwts: []\n", "jwts"},
		"an old version":   {configuration("v1alpha0", jwt(i, "", plain)), "v1alpha0"},
		"http":             {strings.ReplaceAll(configuration("v1", jwt(i, "", plain)), "https://", "http://"), "https"},
		"no audience":      {configuration("v1", jwt(i, "", strings.Replace(plain, "[barque]", "[]", 1))), "audiences"},
		"bad CEL":          {configuration("v1", jwt(i, "", plain+"  claimValidationRules:\n  - {expression: \"claims.(\"}\n")), "expression"},
		"twice":            {configuration("v1", jwt(i, "", plain), jwt(i, "", plain)), "Duplicate"},
		"our own":          {strings.Replace(configuration("v1", jwt(i, "", plain)), i.URL, own, 1), "disallowed"},
	} {
		if _, err := issuers.Load([]byte(it.content), []string{own}); err == nil || !strings.Contains(strings.ToLower(err.Error()), strings.ToLower(it.why)) {
			t.Errorf("%s: got %v, want %q", name, err, it.why)
		}
	}
}

func TestFlags(t *testing.T) {
	i := issuertest.StartRSA(t)
	ca := t.TempDir() + "/ca.crt"
	write(t, ca, i.CA)
	try := func(f issuers.Flags, claims map[string]any) (user.Info, error) {
		f.IssuerURL, f.ClientID, f.CAFile = i.URL, "barque", ca
		conf, err := f.Configuration([]string{own})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		all, err := issuers.New(ctx, conf, issuers.Config{Algorithms: f.Algorithms()})
		if err != nil {
			t.Fatal(err)
		}
		claims["aud"] = "barque"
		return who(t, all, i.Token(t, claims))
	}
	for name, it := range map[string]struct {
		flags  issuers.Flags
		claims map[string]any
		want   string
	}{
		"defaults":     {issuers.Flags{}, map[string]any{"sub": "ann"}, i.URL + "#ann []"},
		"no prefix":    {issuers.Flags{UsernamePrefix: "-", GroupsClaim: "g"}, map[string]any{"sub": "ann", "g": "ops"}, "ann [ops]"},
		"prefixes":     {issuers.Flags{UsernamePrefix: "u:", GroupsClaim: "g", GroupsPrefix: "g:"}, map[string]any{"sub": "ann", "g": []string{"a", "b"}}, "u:ann [g:a g:b]"},
		"email":        {issuers.Flags{UsernameClaim: "email"}, map[string]any{"email": "ann@example.com"}, "ann@example.com []"},
		"another":      {issuers.Flags{UsernameClaim: "name"}, map[string]any{"name": "ann"}, i.URL + "#ann []"},
		"claim needed": {issuers.Flags{RequiredClaims: map[string]string{"hd": "x"}}, map[string]any{"sub": "ann", "hd": "x"}, i.URL + "#ann []"},
	} {
		u, err := try(it.flags, it.claims)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if got := fmt.Sprint(u.GetName(), " ", u.GetGroups()); got != it.want {
			t.Errorf("%s: got %s, want %s", name, got, it.want)
		}
	}
	if u, err := try(issuers.Flags{RequiredClaims: map[string]string{"hd": "x"}}, map[string]any{"sub": "ann"}); err == nil {
		t.Errorf("without a claim that is needed: %v", u)
	}
	if u, err := try(issuers.Flags{SigningAlgs: []string{"ES256"}}, map[string]any{"sub": "ann"}); err == nil {
		t.Errorf("with an algorithm that is not accepted: %v", u)
	}
	if u, err := try(issuers.Flags{UsernameClaim: "email"}, map[string]any{"email": "ann@example.com", "email_verified": false}); err == nil {
		t.Errorf("with an address that is not verified: %v", u)
	}
	if _, err := (&issuers.Flags{IssuerURL: i.URL}).Configuration(nil); err == nil || !strings.Contains(err.Error(), "--oidc-client-id") {
		t.Errorf("half of the flags: %v", err)
	}
}
