// Package issuertest is an OpenID Connect issuer for tests: a real HTTPS server with a discovery
// document and a key set (OpenID Connect Discovery 1.0), whose keys can be rotated.
package issuertest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Issuer serves until its test ends. It is safe for concurrent use.
type Issuer struct {
	// URL is the issuer's, on the loopback address.
	URL string
	// CA is the authority of its certificate, in PEM.
	CA string

	algorithm jose.SignatureAlgorithm

	mu       sync.Mutex
	keys     []jose.JSONWebKey // the last signs
	down     bool
	fetches  int
	discover string
}

// Start starts an issuer that signs with ES256.
func Start(tb testing.TB) *Issuer { return start(tb, jose.ES256) }

// StartRSA starts an issuer that signs with RS256, which the classic flags accept by default.
func StartRSA(tb testing.TB) *Issuer { return start(tb, jose.RS256) }

const discoveryPath = "/.well-known/openid-configuration"

func start(tb testing.TB, algorithm jose.SignatureAlgorithm) *Issuer {
	tb.Helper()
	i := &Issuer{algorithm: algorithm, discover: discoveryPath}
	i.Rotate(tb, 0)
	server := httptest.NewTLSServer(i)
	tb.Cleanup(server.Close)
	i.URL = server.URL
	i.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	return i
}

// Configuration is an AuthenticationConfiguration that believes the issuer's tokens for the audience barque; rest is
// what follows in the issuer's entry, indented by two: mappings of claims, and rules.
func (i *Issuer) Configuration(rest string) string {
	return "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\njwt:\n" + i.Entry("    audiences: [barque]\n"+rest)
}

// Entry is an element of an AuthenticationConfiguration's list jwt; rest follows the issuer's address and authority.
func (i *Issuer) Entry(rest string) string {
	return fmt.Sprintf("- issuer:\n    url: %s\n    certificateAuthority: |\n      %s\n%s",
		i.URL, strings.ReplaceAll(strings.TrimSpace(i.CA), "\n", "\n      "), rest)
}

// ServeHTTP serves the two documents.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.down:
		http.Error(w, "down", http.StatusServiceUnavailable)
	case r.URL.Path == i.discover:
		send(w, map[string]any{
			"issuer": i.URL, "jwks_uri": i.URL + "/keys", "response_types_supported": []string{"id_token"},
			"subject_types_supported": []string{"public"}, "id_token_signing_alg_values_supported": []string{string(i.algorithm)},
		})
	case r.URL.Path == "/keys":
		i.fetches++
		var set jose.JSONWebKeySet
		for _, key := range i.keys {
			set.Keys = append(set.Keys, key.Public())
		}
		send(w, set)
	default:
		http.NotFound(w, r)
	}
}

func send(w http.ResponseWriter, doc any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(doc) // a client that is gone notices
}

// Rotate makes a new key, which signs from now on, and keeps the last few before it.
func (i *Issuer) Rotate(tb testing.TB, keep int) {
	tb.Helper()
	var key crypto.Signer
	var err error
	if i.algorithm == jose.RS256 {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		tb.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = append(i.keys[max(0, len(i.keys)-keep):], jose.JSONWebKey{
		Key: key, KeyID: fmt.Sprintf("key-%d", time.Now().UnixNano()), Algorithm: string(i.algorithm), Use: "sig",
	})
}

// SetDown makes the issuer answer nothing but errors, or serve again.
func (i *Issuer) SetDown(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

// MoveDiscovery serves the discovery document at another path, and no longer where it belongs.
func (i *Issuer) MoveDiscovery(path string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.discover = path
}

// Fetches is how often the key set was asked for.
func (i *Issuer) Fetches() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

// Token signs claims. Those that every token has are added unless they are there: the issuer,
// the time of issue, and an end an hour later; nil leaves one out.
func (i *Issuer) Token(tb testing.TB, claims map[string]any) string {
	tb.Helper()
	all := map[string]any{"iss": i.URL, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix()}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	i.mu.Lock()
	key := i.keys[len(i.keys)-1]
	i.mu.Unlock()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: i.algorithm, Key: key}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		tb.Fatal(err)
	}
	token, err := jwt.Signed(signer).Claims(all).Serialize()
	if err != nil {
		tb.Fatal(err)
	}
	return token
}
