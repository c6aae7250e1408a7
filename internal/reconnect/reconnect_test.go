package reconnect

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// certificate makes one with a serial number.
func certificate(t *testing.T, serial int64) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// server tells who calls: the serial number of his certificate. Below /stream it goes on doing so, line by line, as he asks.
func server(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := r.TLS.PeerCertificates[0].SerialNumber
		if r.URL.Path != "/stream" {
			_, _ = fmt.Fprint(w, who)
			return
		}
		control := http.NewResponseController(w)
		_ = control.Flush()
		for lines := bufio.NewScanner(r.Body); lines.Scan(); {
			_, _ = fmt.Fprintln(w, who)
			_ = control.Flush()
		}
	}))
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

// client is one of the server's, with a certificate that can be replaced.
func client(s *httptest.Server, http2 bool, holds *atomic.Pointer[tls.Certificate]) *Transport {
	t, _ := s.Client().Transport.(*http.Transport)
	t = t.Clone()
	t.ForceAttemptHTTP2 = http2
	t.IdleConnTimeout = time.Second
	if !http2 {
		t.TLSClientConfig.NextProtos = nil
		t.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	t.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if c := holds.Load(); c != nil {
			return c, nil
		}
		return nil, errors.New("there is none")
	}
	return New(t)
}

func whoAmI(t *testing.T, tr *Transport, url string) string {
	t.Helper()
	resp, err := (&http.Client{Transport: tr}).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	who, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(who)
}

// A request is made with the certificate that there is, also while one from before goes on.
func TestNewCertificate(t *testing.T) {
	for _, http2 := range []bool{true, false} {
		t.Run(fmt.Sprintf("HTTP/2 %v", http2), func(t *testing.T) {
			s := server(t)
			var holds atomic.Pointer[tls.Certificate]
			holds.Store(certificate(t, 1))
			tr := client(s, http2, &holds)
			defer tr.CloseIdleConnections()

			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			body, asks := io.Pipe()
			defer func() { _ = asks.Close() }()
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/stream", body)
			if err != nil {
				t.Fatal(err)
			}
			var answers *bufio.Scanner
			next := func() string {
				if _, err := fmt.Fprintln(asks, "who am I?"); err != nil {
					t.Fatal(err)
				}
				if !answers.Scan() {
					t.Fatal(answers.Err())
				}
				return answers.Text()
			}
			if http2 { // HTTP/1 answers when it has heard all
				resp, err := (&http.Client{Transport: tr}).Do(req)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = resp.Body.Close() }()
				answers = bufio.NewScanner(resp.Body)
				if got := next(); got != "1" {
					t.Errorf("the stream is %s's", got)
				}
			}
			if got := whoAmI(t, tr, s.URL); got != "1" {
				t.Errorf("got %s", got)
			}
			before := tr.Current()
			if got := whoAmI(t, tr, s.URL); got != "1" || tr.Current() != before {
				t.Errorf("got %s, and new connections for the same certificate", got)
			}
			holds.Store(certificate(t, 2))
			if got := whoAmI(t, tr, s.URL); got != "2" {
				t.Errorf("after the renewal: %s", got)
			}
			if tr.WrappedRoundTripper() != tr.Current() || tr.Current() == before {
				t.Error("connections of before are used")
			}
			if http2 {
				if got := next(); got != "1" {
					t.Errorf("the stream from before is %s's", got)
				}
			}
			// What can't be told changes nothing.
			holds.Store(nil)
			if got := whoAmI(t, tr, s.URL); got != "2" {
				t.Errorf("without a certificate: %s", got)
			}
		})
	}
}

// Without a certificate there is nothing to follow.
func TestNoCertificate(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "somebody") }))
	defer s.Close()
	tr := New(&http.Transport{})
	defer tr.CloseIdleConnections()
	if got := whoAmI(t, tr, s.URL); got != "somebody" {
		t.Error(got)
	}
}
