package join_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientset "k8s.io/client-go/kubernetes/fake"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"barque.dev/internal/cluster/join"
)

// authority is a CA that issues serving certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
	hash string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	der, key := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}, nil)
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.key = key
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if a.hash, err = join.HashOfPEM(a.pem); err != nil {
		t.Fatal(err)
	}
	return a
}

func sign(t *testing.T, template *x509.Certificate, by *authority) ([]byte, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return der, key
}

// serving issues a certificate whose names do not include the test server's address.
func (a *authority) serving(t *testing.T, name string) tls.Certificate {
	t.Helper()
	der, key := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"elsewhere"},
	}, a)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

type cluster struct {
	ca      *authority
	server  *httptest.Server
	added   []join.ServerRequest
	addErrs []error // taken one by one
	// returning and mayReturn are the handler's, if set.
	returning func(*http.Request) string
	mayReturn func(context.Context, join.ServerRequest) error
	now       time.Time
	both      join.Token // usable as server and agent
	agent     join.Token
	expired   join.Token
}

const keys = `{"clusterKey":"secret"}`

func newCluster(t *testing.T, common string) *cluster {
	t.Helper()
	c := &cluster{ca: newAuthority(t), now: time.Now()}
	builder := fake.NewClientBuilder().WithScheme(clientgoscheme.Scheme)
	add := func(ttl time.Duration, usages ...join.Usage) join.Token {
		t.Helper()
		token, err := join.NewToken(c.ca.hash)
		if err != nil {
			t.Fatal(err)
		}
		secret, err := join.NewSecret(token, join.CreateOptions{Usages: usages, TTL: ttl}, c.now)
		if err != nil {
			t.Fatal(err)
		}
		builder.WithObjects(secret)
		return token
	}
	c.both = add(0, join.UsageServer, join.UsageAgent)
	c.agent = add(time.Hour, join.UsageAgent)
	c.expired = add(time.Nanosecond, join.UsageServer)
	handler, err := join.NewHandler(join.HandlerConfig{
		Reader: builder.Build(), CA: c.ca.pem,
		Keys: func() (json.RawMessage, error) { return json.RawMessage(keys), nil },
		Facts: func(context.Context) (join.Facts, error) {
			return join.Facts{CAHash: c.ca.hash, ClusterDomain: "cluster.local"}, nil
		},
		AddMember: func(_ context.Context, req join.ServerRequest) ([]join.Member, error) {
			if len(c.addErrs) > 0 {
				err := c.addErrs[0]
				c.addErrs = c.addErrs[1:]
				return nil, err
			}
			c.added = append(c.added, req)
			return []join.Member{{Name: "one"}, {Name: req.Name, PeerURL: req.PeerURL}}, nil
		},
		MayJoin: func(req join.ServerRequest) error {
			if !slices.Contains(req.Reads, join.ReadsEncryption) && req.Name == "ancient" {
				return fmt.Errorf("%w: it can't read what is here", join.ErrConflict)
			}
			return nil
		},
		Returning: func(r *http.Request) string {
			if c.returning == nil {
				return ""
			}
			return c.returning(r)
		},
		MayReturn: func(ctx context.Context, req join.ServerRequest) error { return c.mayReturn(ctx, req) },
		Now:       func() time.Time { return c.now.Add(time.Minute) },
	})
	if err != nil {
		t.Fatal(err)
	}
	c.server = httptest.NewUnstartedServer(handler)
	c.server.TLS = &tls.Config{Certificates: []tls.Certificate{c.ca.serving(t, common)}, ClientAuth: tls.RequestClientCert}
	c.server.StartTLS()
	t.Cleanup(c.server.Close)
	return c
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServer(t *testing.T) {
	c := newCluster(t, "kube-apiserver")
	c.addErrs = []error{fmt.Errorf("another member is being added: %w", join.ErrTryAgain)}
	got, err := join.Server(t.Context(), join.Options{URL: c.server.URL, Token: c.both}, join.ServerRequest{Name: "two", PeerURL: "https://10.0.0.2:2380"})
	if err != nil {
		t.Fatal(err)
	}
	if string(got.Keys) != keys || string(got.CA) != string(c.ca.pem) || len(got.Members) != 2 || got.Facts.ClusterDomain != "cluster.local" {
		t.Errorf("got %+v", got)
	}
	if len(c.added) != 1 || c.added[0].Name != "two" {
		t.Errorf("added %v", c.added)
	}
	// Without etcd of its own a server gets the keys only.
	if got, err = join.Server(t.Context(), join.Options{URL: c.server.URL, Token: c.both}, join.ServerRequest{}); err != nil || len(got.Members) != 0 || len(c.added) != 1 {
		t.Errorf("keys only: %+v, %v", got, err)
	}
}

// A server that would not understand what is in etcd gets no keys and does not become a member.
func TestServerThatMayNotJoin(t *testing.T) {
	c := newCluster(t, "kube-apiserver")
	options := join.Options{URL: c.server.URL, Token: c.both}
	request := join.ServerRequest{Name: "ancient", PeerURL: "https://10.0.0.2:2380"}
	if got, err := join.Server(t.Context(), options, request); !join.Refused(err, join.CodeConflict) || !strings.Contains(err.Error(), "can't read") || len(c.added) != 0 {
		t.Errorf("joined: %+v, %v, added %v", got, err, c.added)
	}
	request.Reads = []string{join.ReadsEncryption}
	if _, err := join.Server(t.Context(), options, request); err != nil || len(c.added) != 1 {
		t.Errorf("upgraded: %v, added %v", err, c.added)
	}
}

func TestAgent(t *testing.T) {
	c := newCluster(t, "kube-apiserver")
	if got, err := join.Agent(t.Context(), join.Options{URL: strings.TrimPrefix(c.server.URL, "https://"), Token: c.agent}); err != nil || got.CAHash != c.ca.hash {
		t.Errorf("got %+v, %v", got, err)
	}
	stock := c.agent
	stock.CAHash = ""
	if _, err := join.Agent(t.Context(), join.Options{URL: c.server.URL, Token: stock, CA: c.ca.pem}); err != nil {
		t.Error(err)
	}
}

func TestRefusals(t *testing.T) {
	c, other := newCluster(t, "kube-apiserver"), newCluster(t, "kube-apiserver")
	unknown, err := join.NewToken(c.ca.hash)
	if err != nil {
		t.Fatal(err)
	}
	guessed := c.both
	guessed.Secret = strings.Repeat("a", 16)
	stock := c.both
	stock.CAHash = ""
	dead := httptest.NewServer(http.NotFoundHandler())
	dead.Close()
	plain := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	tests := map[string]struct {
		options join.Options
		want    string
	}{
		"another cluster's token":  {join.Options{URL: c.server.URL, Token: other.both}, "nothing secret was sent"},
		"unknown token":            {join.Options{URL: c.server.URL, Token: unknown}, "does not know the token"},
		"guessed secret":           {join.Options{URL: c.server.URL, Token: guessed}, "does not know the token"},
		"expired token":            {join.Options{URL: c.server.URL, Token: c.expired}, "expired at"},
		"agent's token":            {join.Options{URL: c.server.URL, Token: c.agent}, "may not be used to join as server"},
		"dead server":              {join.Options{URL: strings.Replace(dead.URL, "http:", "https:", 1), Token: c.both}, "cannot be reached at"},
		"no server of ours":        {join.Options{URL: plain.URL, Token: c.both}, "no Barque server"},
		"data of another cluster":  {join.Options{URL: c.server.URL, Token: c.both, KnownHash: other.ca.hash}, "use another data directory"},
		"stock token without a CA": {join.Options{URL: c.server.URL, Token: stock}, "does not say which cluster"},
		"stock token, wrong CA":    {join.Options{URL: c.server.URL, Token: stock, CA: other.ca.pem}, "certificate"},
		"no URL":                   {join.Options{URL: "http://x", Token: c.both}, "is not the address of a server"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := join.Server(t.Context(), tt.options, join.ServerRequest{Name: "two", PeerURL: "https://10.0.0.2:2380"})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Error("not one line")
			}
		})
	}
	if len(c.added)+len(other.added) > 0 {
		t.Error("a member was added")
	}
}

func TestImpostors(t *testing.T) {
	// A node of the cluster has a certificate of the same CA but must not pass for a server.
	c := newCluster(t, "system:node:evil")
	if _, err := join.Agent(t.Context(), join.Options{URL: c.server.URL, Token: c.agent}); err == nil || !strings.Contains(err.Error(), "not of an API server") {
		t.Errorf("a node passed for a server: %v", err)
	}
}

func TestCallbackErrors(t *testing.T) {
	c := newCluster(t, "kube-apiserver")
	request := join.ServerRequest{Name: "two", PeerURL: "https://10.0.0.2:2380"}
	c.addErrs = []error{fmt.Errorf("the name is taken: %w", join.ErrConflict)}
	if _, err := join.Server(t.Context(), join.Options{URL: c.server.URL, Token: c.both}, request); !join.Refused(err, join.CodeConflict) {
		t.Errorf("got %v", err)
	}
	c.addErrs = []error{errors.New("disk full")}
	if _, err := join.Server(t.Context(), join.Options{URL: c.server.URL, Token: c.both}, request); !join.Refused(err, join.CodeInternal) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	for range 100 {
		c.addErrs = append(c.addErrs, join.ErrTryAgain)
	}
	if _, err := join.Server(ctx, join.Options{URL: c.server.URL, Token: c.both}, request); err == nil || !strings.Contains(err.Error(), "within the time") {
		t.Errorf("got %v", err)
	}
}

func TestRateLimit(t *testing.T) {
	c := newCluster(t, "kube-apiserver")
	limited := 0
	for range 60 {
		transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		r, err := (&http.Client{Transport: transport}).Get(c.server.URL + join.PathCA)
		if err != nil {
			t.Fatal(err)
		}
		_ = r.Body.Close()
		transport.CloseIdleConnections()
		if r.StatusCode == http.StatusTooManyRequests {
			limited++
		}
	}
	if limited == 0 {
		t.Error("60 requests at once were all served")
	}
}

func TestParseToken(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	for text, ok := range map[string]bool{
		"bq1." + hash + ".abcdef.0123456789abcdef":                  true,
		" abcdef.0123456789abcdef\n":                                true,
		"bq1." + hash + ".abcdef":                                   false,
		"bq2." + hash + ".abcdef.0123456789abcdef":                  false,
		"bq1.zz" + hash[2:] + ".abcdef.0123456789abcdef":            false,
		"bq1." + strings.ToUpper(hash) + ".abcdef.0123456789abcdef": false,
		"abcdef.0123456789abcde":                                    false,
		"ABCDEF.0123456789abcdef":                                   false,
		"":                                                          false,
	} {
		if _, err := join.ParseToken(text); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		hash := rapid.SampledFrom([]string{"", strings.Repeat("0a", 32)}).Draw(t, "hash")
		token, err := join.NewToken(hash)
		if err != nil {
			t.Fatal(err)
		}
		back, err := join.ParseToken(token.String())
		if err != nil || back != token {
			t.Fatalf("%v became %v, %v", token, back, err)
		}
	})
}

func TestTokens(t *testing.T) {
	c := clientset.NewClientset()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	first, err := join.Create(t.Context(), c, join.CreateOptions{CAHash: strings.Repeat("0", 64), Usages: []join.Usage{join.UsageAgent}, TTL: time.Hour, Description: "x"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := join.Create(t.Context(), c, join.CreateOptions{Usages: []join.Usage{join.UsageServer}}, now); err != nil {
		t.Fatal(err)
	}
	if _, err := join.Create(t.Context(), c, join.CreateOptions{}, now); err == nil {
		t.Error("a token for nothing was made")
	}
	list, err := join.List(t.Context(), c, now.Add(2*time.Hour))
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	for _, info := range list {
		if (info.ID == first.ID) != info.Expired {
			t.Errorf("%+v", info)
		}
	}
	if err := join.Delete(t.Context(), c, first.String()); err != nil {
		t.Error(err)
	}
	if err := join.Delete(t.Context(), c, first.ID); err == nil || !strings.Contains(err.Error(), "no such token") {
		t.Errorf("got %v", err)
	}
	if left, err := c.CoreV1().Secrets("kube-system").List(t.Context(), metav1.ListOptions{}); err != nil || len(left.Items) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
}
