package join_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"barque.dev/internal/cluster/join"
)

// client issues the certificate of a client.
func (a *authority) client(t *testing.T, name string) func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	t.Helper()
	der, key := sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(3), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a)
	return func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
	}
}

// A server that has the cluster's keys comes back without a token, under its own name, unless it is to stay away.
func TestReturn(t *testing.T) {
	c, other := newCluster(t, "kube-apiserver"), newCluster(t, "kube-apiserver")
	c.returning = func(r *http.Request) string {
		if len(r.TLS.PeerCertificates) == 0 {
			return ""
		}
		roots := x509.NewCertPool()
		roots.AddCert(c.ca.cert)
		cert := r.TLS.PeerCertificates[0]
		if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			return ""
		}
		name, _ := strings.CutPrefix(cert.Subject.CommonName, "server:")
		return name
	}
	c.mayReturn = func(_ context.Context, req join.ServerRequest) error {
		switch req.Name {
		case "banned":
			return fmt.Errorf("%w: it was removed", join.ErrConflict)
		case "early":
			return errors.New("the list can't be read")
		}
		return nil
	}
	for name, tt := range map[string]struct {
		by   *cluster
		name string // in the certificate
		as   string
		want join.Code // "" is welcome
	}{
		"itself":             {by: c, name: "server:two", as: "two"},
		"another":            {by: c, name: "server:two", as: "three", want: join.CodeConflict},
		"banned":             {by: c, name: "server:banned", as: "banned", want: join.CodeConflict},
		"when nobody knows":  {by: c, name: "server:early", as: "early", want: join.CodeInternal},
		"another cluster's":  {by: other, name: "server:two", as: "two", want: join.CodeUnknownToken},
		"without any papers": {as: "two", want: join.CodeUnknownToken},
	} {
		t.Run(name, func(t *testing.T) {
			c.added = nil
			options := join.Options{URL: c.server.URL, CA: c.ca.pem}
			if tt.by != nil {
				options.Certificate = tt.by.ca.client(t, tt.name)
			}
			_, err := join.Server(t.Context(), options, join.ServerRequest{Name: tt.as, PeerURL: "https://10.0.0.2:2380"})
			if tt.want == "" && (err != nil || len(c.added) != 1) {
				t.Errorf("%v, added %v", err, c.added)
			}
			if tt.want != "" && (!join.Refused(err, tt.want) || len(c.added) != 0) {
				t.Errorf("%v, added %v", err, c.added)
			}
		})
	}
	// An agent's path takes no server's certificate for a token.
	if _, err := join.Agent(t.Context(), join.Options{URL: c.server.URL, CA: c.ca.pem, Certificate: c.ca.client(t, "server:two")}); !join.Refused(err, join.CodeUnknownToken) {
		t.Errorf("as an agent: %v", err)
	}
}
