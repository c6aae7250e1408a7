package auth

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"

	"barque.dev/internal/auth/reload"
)

// FrontProxy says who may name users in headers, and in which: a proxy that has checked its
// users itself. What is left empty is as stock clusters have it.
type FrontProxy struct {
	// CAFile holds the authorities of proxies' client certificates in PEM; it is read again when it
	// changes. Empty means the cluster's own front proxy authority.
	CAFile string
	// AllowedNames are the common names of those certificates. Empty means front-proxy-client
	// with the cluster's own authority, and any name with CAFile.
	AllowedNames []string
	// UsernameHeaders, UIDHeaders and GroupHeaders name users; the first that is there counts, of
	// groups all. By default X-Remote-User, X-Remote-Uid and X-Remote-Group.
	UsernameHeaders, UIDHeaders, GroupHeaders []string
	// ExtraPrefixes come before what else is known of users; by default X-Remote-Extra-.
	ExtraPrefixes []string
}

// The headers that everybody uses.
const (
	userHeader  = "X-Remote-User"
	uidHeader   = "X-Remote-Uid"
	groupHeader = "X-Remote-Group"
	extraPrefix = "X-Remote-Extra-"
	// frontProxyName is the name of an API server when it calls another for its users.
	frontProxyName = "front-proxy-client"
)

func (p *FrontProxy) check() error {
	for _, it := range []struct {
		flag   string
		values []string
	}{
		{"--requestheader-allowed-names", p.AllowedNames}, {"--requestheader-username-headers", p.UsernameHeaders},
		{"--requestheader-uid-headers", p.UIDHeaders}, {"--requestheader-group-headers", p.GroupHeaders},
		{"--requestheader-extra-headers-prefix", p.ExtraPrefixes},
	} {
		for _, v := range it.values {
			if strings.TrimSpace(v) == "" {
				return fmt.Errorf("%s holds an empty value", it.flag)
			}
		}
	}
	return nil
}

// withDefaults fills in what is empty.
func (p FrontProxy) withDefaults() FrontProxy {
	set := func(list *[]string, value string) {
		if len(*list) == 0 {
			*list = []string{value}
		}
	}
	set(&p.UsernameHeaders, userHeader)
	set(&p.UIDHeaders, uidHeader)
	set(&p.GroupHeaders, groupHeader)
	set(&p.ExtraPrefixes, extraPrefix)
	if p.CAFile == "" {
		set(&p.AllowedNames, frontProxyName)
	}
	return p
}

// standard tells whether the headers are those that everybody uses, which the API server takes
// from every request anyway.
func (p *FrontProxy) standard() bool {
	only := func(list []string, value string) bool { return len(list) == 1 && strings.EqualFold(list[0], value) }
	return only(p.UsernameHeaders, userHeader) && only(p.UIDHeaders, uidHeader) && only(p.GroupHeaders, groupHeader) && only(p.ExtraPrefixes, extraPrefix)
}

// frontProxies recognises users that a proxy names.
type frontProxies struct {
	FrontProxy
	// names are UsernameHeaders as they stand in a request's headers.
	names   []string
	trusted atomic.Pointer[proxyAuthorities]
	secure  authenticator.Request
}

// proxyAuthorities are immutable.
type proxyAuthorities struct {
	pool *x509.CertPool
	pem  []byte
	// replaced is closed when others count.
	replaced chan struct{}
}

// Proxies are those that may name users, at one moment.
type Proxies struct {
	// FrontProxy has its defaults filled in.
	FrontProxy
	// CA are the authorities of their certificates, in PEM.
	CA []byte
}

// Proxies returns who may name users, and a channel that is closed when that has changed.
func (a *Auth) Proxies() (Proxies, <-chan struct{}) {
	if a.proxies == nil {
		return Proxies{FrontProxy: a.config.Options.FrontProxy.withDefaults()}, nil
	}
	now := a.proxies.trusted.Load()
	return Proxies{FrontProxy: a.proxies.FrontProxy, CA: now.pem}, now.replaced
}

// newFrontProxies trusts the authorities in CAFile, whose content is returned too, or else own, in
// PEM. Without either the result is nil. clients is the authority of users' certificates.
func newFrontProxies(p FrontProxy, own []byte, clients *x509.CertPool) (*frontProxies, []byte, error) {
	f := &frontProxies{FrontProxy: p.withDefaults()}
	var content []byte
	switch {
	case p.CAFile != "":
		var err error
		if content, err = os.ReadFile(p.CAFile); err != nil {
			return nil, nil, fmt.Errorf("--requestheader-client-ca-file: %w", err)
		}
		if err := f.trust(content, clients); err != nil {
			return nil, nil, fmt.Errorf("--requestheader-client-ca-file %s: %w", p.CAFile, err)
		}
	case own == nil:
		return nil, nil, nil
	default:
		if err := f.trust(own, clients); err != nil {
			return nil, nil, fmt.Errorf("the cluster's front proxy authority: %w", err)
		}
	}
	for _, h := range f.UsernameHeaders {
		f.names = append(f.names, http.CanonicalHeaderKey(h))
	}
	list := func(values []string) headerrequest.StaticStringSlice { return values }
	options := func() (x509.VerifyOptions, bool) {
		return x509.VerifyOptions{Roots: f.trusted.Load().pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, true
	}
	f.secure = headerrequest.NewDynamicVerifyOptionsSecure(options, list(f.AllowedNames),
		list(f.UsernameHeaders), list(f.UIDHeaders), list(f.GroupHeaders), list(f.ExtraPrefixes))
	return f, content, nil
}

// trust replaces the authorities of proxies, of which it keeps content. One call at a time.
func (f *frontProxies) trust(content []byte, clients *x509.CertPool) error {
	pool := x509.NewCertPool()
	found := false
	for rest := content; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		found = true
		pool.AddCert(cert)
		if len(f.AllowedNames) > 0 {
			continue
		}
		if with := clients.Clone(); !addsTo(with, clients, cert) {
			return errors.New("it holds the authority that signs users' certificates: give --requestheader-allowed-names, or every user could name any other")
		}
	}
	if !found {
		return errors.New("it holds no certificate in PEM")
	}
	before := f.trusted.Swap(&proxyAuthorities{pool: pool, pem: content, replaced: make(chan struct{})})
	if before != nil {
		close(before.replaced)
	}
	return nil
}

// addsTo tells whether cert is new to the pool, of which with is a copy.
func addsTo(with, pool *x509.CertPool, cert *x509.Certificate) bool {
	with.AddCert(cert)
	return !with.Equal(pool)
}

// AuthenticateRequest implements authenticator.Request. A request that names nobody costs a
// look at its headers.
func (f *frontProxies) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	for _, name := range f.names {
		if len(req.Header[name]) > 0 {
			return f.secure.AuthenticateRequest(req)
		}
	}
	return nil, false, nil
}

// follow keeps the authorities up to date with CAFile.
func (f *frontProxies) follow(config reload.Config, content []byte, clients *x509.CertPool) *reload.File {
	config.Path = f.CAFile
	config.Apply = func(_ context.Context, content []byte) error { return f.trust(content, clients) }
	return reload.New(config, content)
}

// withoutProxyHeaders takes the proxies' headers from requests, whoever sent them: what a request
// is passed on to must not believe them.
type withoutProxyHeaders struct {
	authenticator.Request
	of *FrontProxy
}

// AuthenticateRequest implements authenticator.Request.
func (w withoutProxyHeaders) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	response, ok, err := w.Request.AuthenticateRequest(req)
	list := func(values []string) headerrequest.StaticStringSlice { return values }
	headerrequest.ClearAuthenticationHeaders(req.Header,
		list(w.of.UsernameHeaders), list(w.of.UIDHeaders), list(w.of.GroupHeaders), list(w.of.ExtraPrefixes))
	return response, ok, err
}
