package issuers_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"pgregory.net/rapid"

	"barque.dev/internal/auth/issuers"
	"barque.dev/internal/auth/issuers/issuertest"
	"barque.dev/internal/testkit"
)

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// FuzzToken feeds what strangers may send: whatever it is, nobody is recognised who has no
// token that was signed, and nothing panics.
func FuzzToken(f *testing.F) {
	i := issuertest.Start(f)
	conf, err := issuers.Load([]byte(configuration("v1", jwt(i, "", plain))), nil)
	if err != nil {
		f.Fatal(err)
	}
	all, err := issuers.New(f.Context(), conf, issuers.Config{Audiences: authenticator.Audiences{own}})
	if err != nil {
		f.Fatal(err)
	}
	good := i.Token(f, map[string]any{"aud": "barque", "sub": "ann"})
	testkit.Eventually(f, 10*time.Second, "the issuer is ready", func() error {
		_, _, err := all.AuthenticateToken(f.Context(), good)
		return err
	})
	head, _, _ := strings.Cut(good, ".")
	for _, seed := range []string{good, "", ".", "..", "...", head, head + "..", head + ".e30.", good + ".", "." + good, good[:len(good)-2],
		"eyJhbGciOiJub25lIn0.eyJpc3MiOiJ4In0.", strings.Repeat("a.", 1<<12), "\x00", "ÿ.ÿ.ÿ"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, token string) {
		response, ok, err := all.AuthenticateToken(t.Context(), token)
		if ok && err == nil && token != good && response.User.GetName() != "oidc:ann" {
			t.Errorf("%q made %v", token, response.User)
		}
		if ok && strings.Count(token, ".") != 2 {
			t.Errorf("%q is no token and made %v", token, response.User)
		}
	})
}

// A token of which one character was changed is nobody's.
func TestChangedTokens(t *testing.T) {
	i := issuertest.Start(t)
	all := open(t, configuration("v1", jwt(i, "", plain)))
	good := i.Token(t, map[string]any{"aud": "barque", "sub": "ann"})
	if _, err := who(t, all, good); err != nil {
		t.Fatal(err)
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
	rapid.Check(t, func(rt *rapid.T) {
		// The last character of a part may hold bits that mean nothing.
		at := rapid.IntRange(0, len(good)-2).Draw(rt, "at")
		if good[at+1] == '.' {
			at--
		}
		with := rapid.SampledFrom([]byte(alphabet)).Draw(rt, "with")
		if with == good[at] {
			return
		}
		changed := good[:at] + string(with) + good[at+1:]
		if response, ok, err := all.AuthenticateToken(t.Context(), changed); ok && err == nil {
			rt.Fatalf("changed at %d to %c: %v", at, with, response.User)
		}
	})
}
