package join

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// maxResponse bounds an answer in bytes.
	maxResponse = 1 << 20
	// requestTimeout bounds one request; it is longer than the server's own bound.
	requestTimeout = 30 * time.Second
	// caTimeout bounds fetching the CA.
	caTimeout = 10 * time.Second
	// retryInterval is the pause before trying again.
	retryInterval = 500 * time.Millisecond
	// serverName is the common name of every API server's certificate. Nobody else gets it:
	// certificates that nodes serve with name the node.
	serverName = "kube-apiserver"
)

// Options of the joining side.
type Options struct {
	// URL is any server's, such as https://10.0.0.1:6443.
	URL   string
	Token Token
	// CA is the cluster's CA in PEM, for a token without its hash; nil otherwise.
	CA []byte
	// Certificate shows that this machine is a server of the cluster already, instead of a token; CA is needed then.
	Certificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
	// KnownHash is the CA hash of the cluster this machine is already part of; empty when
	// it is new.
	KnownHash string
}

// ErrUnreachable is wrapped when no answer came.
var ErrUnreachable = errors.New("the server cannot be reached")

// ErrWrongCluster is wrapped when the server is of another cluster than expected.
var ErrWrongCluster = errors.New("the server is of another cluster")

// A ServerJoin is a joined server's start.
type ServerJoin struct {
	ServerResponse
	// CA is the cluster's CA in PEM.
	CA []byte
}

// Server joins as a server. While the cluster cannot take it in just now, it tries again until
// ctx ends.
func Server(ctx context.Context, o Options, req ServerRequest) (*ServerJoin, error) {
	c, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	defer c.close()
	join := &ServerJoin{CA: c.ca}
	if err := c.call(ctx, http.MethodPost, PathServer, req, &join.ServerResponse); err != nil {
		return nil, err
	}
	return join, nil
}

// An AgentJoin is a joined agent's start.
type AgentJoin struct {
	Facts
	// CA is the cluster's CA in PEM.
	CA []byte
}

// Agent joins as an agent: what it learns lets it request a certificate from the API with the
// same token.
func Agent(ctx context.Context, o Options) (*AgentJoin, error) {
	c, err := connect(ctx, o)
	if err != nil {
		return nil, err
	}
	defer c.close()
	join := &AgentJoin{CA: c.ca}
	if err := c.call(ctx, http.MethodGet, PathAgent, nil, &join.Facts); err != nil {
		return nil, err
	}
	return join, nil
}

// caller calls a server that is known to be of the cluster.
type caller struct {
	base      string
	token     Token
	ca        []byte
	transport *http.Transport
}

func (c *caller) close() { c.transport.CloseIdleConnections() }

// connect finds out the cluster's CA and makes sure that it is the one the token means.
func connect(ctx context.Context, o Options) (*caller, error) {
	base, err := baseURL(o.URL)
	if err != nil {
		return nil, err
	}
	ca := o.CA
	if o.Token.CAHash == "" && len(ca) == 0 {
		return nil, errors.New("the token does not say which cluster it is for; " +
			"use one made by barque token create, or give the cluster's CA as well")
	}
	if len(ca) == 0 {
		if ca, err = fetchCA(ctx, base); err != nil {
			return nil, err
		}
	}
	hash, err := HashOfPEM(ca)
	if err != nil {
		return nil, fmt.Errorf("the server at %s answers with no CA, so it is no Barque server: %w", base, err)
	}
	switch {
	case o.Token.CAHash != "" && hash != o.Token.CAHash:
		return nil, fmt.Errorf("%w: the CA of %s has the hash %.12s…, the token is for %.12s…; "+
			"nothing secret was sent; check the address and the token", ErrWrongCluster, base, hash, o.Token.CAHash)
	case o.KnownHash != "" && hash != o.KnownHash:
		return nil, fmt.Errorf("%w: this machine's data directory belongs to the cluster %.12s…, the server %s to %.12s…; "+
			"use another data directory", ErrWrongCluster, o.KnownHash, base, hash)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, errors.New("the cluster's CA is damaged: it holds no certificate that can be read")
	}
	config := pinned(pool)
	config.GetClientCertificate = o.Certificate
	return &caller{base: base, token: o.Token, ca: ca, transport: newTransport(config)}, nil
}

func baseURL(text string) (string, error) {
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "https" {
		return "", fmt.Errorf("%q is not the address of a server; it should look like https://10.0.0.1:6443", text)
	}
	if u.Port() == "" {
		u.Host += ":6443"
	}
	return "https://" + u.Host, nil
}

func newTransport(config *tls.Config) *http.Transport {
	return &http.Transport{TLSClientConfig: config, TLSHandshakeTimeout: caTimeout, ForceAttemptHTTP2: true, Proxy: http.ProxyFromEnvironment}
}

// unchecked accepts any server: only what needs no trust may go over it.
func unchecked() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}
}

// pinned accepts API servers of the cluster, whatever address they were reached at: a server
// may be behind an address that its certificate does not name.
func pinned(pool *x509.CertPool) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			options := x509.VerifyOptions{
				Roots: pool, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			}
			for _, cert := range state.PeerCertificates[1:] {
				options.Intermediates.AddCert(cert)
			}
			leaf := state.PeerCertificates[0]
			if _, err := leaf.Verify(options); err != nil {
				return err
			}
			if leaf.Subject.CommonName != serverName {
				return fmt.Errorf("the certificate is that of %q, not of an API server", leaf.Subject.CommonName)
			}
			return nil
		},
	}
}

func fetchCA(ctx context.Context, base string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, caTimeout)
	defer cancel()
	transport := newTransport(unchecked())
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+PathCA, nil)
	if err != nil {
		return nil, fmt.Errorf("ask %s for the cluster's CA: %w", base, err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, unreachable(base, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse))
	if err != nil {
		return nil, unreachable(base, err)
	}
	if resp.StatusCode != http.StatusOK {
		if r := refusalIn(body); r != nil {
			return nil, r
		}
		return nil, fmt.Errorf("the server at %s is no Barque server: it answers %s with %s", base, PathCA, resp.Status)
	}
	return body, nil
}

func unreachable(base string, err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return fmt.Errorf("%w at %s (%w); check the address, that the server runs, and that no firewall closes its port", ErrUnreachable, base, err)
}

// call asks until there is an answer that does not ask to come back later.
func (c *caller) call(ctx context.Context, method, path string, in, out any) error {
	for {
		err := c.once(ctx, method, path, in, out)
		if !Refused(err, CodeTryAgain) && !Refused(err, CodeTooMany) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the cluster could not take this machine in within the time: %w", err)
		case <-time.After(retryInterval):
		}
	}
}

func (c *caller) once(ctx context.Context, method, path string, in, out any) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request to join: %w", err)
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return fmt.Errorf("make request to join: %w", err)
	}
	if c.token.ID != "" {
		req.Header.Set("Authorization", "Bearer "+c.token.Stock())
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Transport: c.transport}).Do(req)
	if err != nil {
		return unreachable(c.base, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxResponse))
	if err != nil {
		return unreachable(c.base, err)
	}
	if resp.StatusCode != http.StatusOK {
		if r := refusalIn(text); r != nil {
			return r
		}
		return fmt.Errorf("the server at %s answers %s with %s", c.base, path, resp.Status)
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("read the answer of %s: %w", c.base, err)
	}
	return nil
}

func refusalIn(body []byte) *Refusal {
	var r Refusal
	if json.Unmarshal(body, &r) != nil || r.Code == "" {
		return nil
	}
	return &r
}
