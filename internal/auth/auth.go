// Package auth decides who a request is from and whether it may be served.
//
// Requests are authenticated by client certificate, service account token or bootstrap token,
// in that order; what none of them recognises is anonymous. They are authorized for
// system:masters always, then by the node authorizer, then by RBAC, as in stock Kubernetes
// with its default settings. Every decision reads the store's shared image at that moment:
// nothing is cached but checked signatures, so a revoked right or a deleted pod counts at once.
//
// The subpackages hold the parts: rbac, node, serviceaccount, review; image is how they read.
package auth

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	"k8s.io/apiserver/pkg/authentication/request/headerrequest"
	requestunion "k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/request/websocket"
	tokenunion "k8s.io/apiserver/pkg/authentication/token/union"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	authorizerunion "k8s.io/apiserver/pkg/authorization/union"

	apirbac "barque.dev/internal/api/rbac"
	"barque.dev/internal/auth/image"
	"barque.dev/internal/auth/node"
	"barque.dev/internal/auth/rbac"
	"barque.dev/internal/auth/review"
	"barque.dev/internal/auth/serviceaccount"
)

// DefaultIssuer is the issuer of service account tokens in a cluster whose domain is
// cluster.local.
const DefaultIssuer = "https://kubernetes.default.svc.cluster.local"

// Config is what decisions stand on.
type Config struct {
	// Image is read for every decision; it must keep [Indexes].
	Image image.Reader
	// ClientCA signs client certificates.
	ClientCA *x509.CertPool
	// FrontProxyCA signs the front proxy's certificate; nil turns front proxies off.
	FrontProxyCA *x509.CertPool
	// SigningKey signs service account tokens; PublicKeys are those whose tokens are
	// accepted (that of SigningKey among them).
	SigningKey crypto.Signer
	PublicKeys []crypto.PublicKey
	// Issuer calls itself so in tokens; empty means DefaultIssuer.
	Issuer string
	// Audiences are the API server's own; empty means the issuer.
	Audiences []string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Auth holds the cluster's answers. It needs no goroutines and is safe for concurrent use.
type Auth struct {
	// Authenticator says who a request is from; anonymous at least, or an error for
	// credentials that are not good (401).
	Authenticator authenticator.Request
	// Authorizer says whether a user may do something.
	Authorizer authorizer.Authorizer
	// Rules lists what a user may do.
	Rules authorizer.RuleResolver
	// Escalation keeps users from granting what they do not hold: the last admission plugin.
	Escalation admission.ValidationInterface
	// Audiences are the API server's: put them into each request's context
	// (authenticator.WithAudiences) before authenticating.
	Audiences authenticator.Audiences
	// Issuer signs service account tokens.
	Issuer *serviceaccount.Issuer

	discovery *serviceaccount.Discovery
	virtual   map[string]review.Create
}

// Indexes returns the indexes that the store must keep for decisions.
func Indexes() []image.Index { return append(rbac.Indexes(), node.Indexes()...) }

// New puts everything together.
func New(config Config) (*Auth, error) {
	if config.Image == nil || config.ClientCA == nil || config.SigningKey == nil {
		return nil, errors.New("configure access: an image, a client authority and a signing key are needed")
	}
	if config.Issuer == "" {
		config.Issuer = DefaultIssuer
	}
	if len(config.Audiences) == 0 {
		config.Audiences = []string{config.Issuer}
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if len(config.PublicKeys) == 0 {
		config.PublicKeys = []crypto.PublicKey{config.SigningKey.Public()}
	}
	a := &Auth{Audiences: config.Audiences}
	if err := a.authenticate(config); err != nil {
		return nil, fmt.Errorf("configure authentication: %w", err)
	}
	if err := a.authorize(config); err != nil {
		return nil, fmt.Errorf("configure authorization: %w", err)
	}
	if err := a.answer(config); err != nil {
		return nil, fmt.Errorf("configure service account tokens: %w", err)
	}
	return a, nil
}

func (a *Auth) authenticate(config Config) error {
	clients, err := newCertificates(config.ClientCA, config.Now)
	if err != nil {
		return err
	}
	accounts, err := serviceaccount.NewAuthenticator(serviceaccount.AuthenticatorConfig{
		Image: config.Image, Issuers: []string{config.Issuer}, Keys: config.PublicKeys,
		Audiences: config.Audiences, Now: config.Now,
	})
	if err != nil {
		return err
	}
	tokens := tokenunion.New(newBootstrapTokens(config.Image, config.Now), accounts)
	var requests []authenticator.Request
	if config.FrontProxyCA != nil {
		requests = append(requests, frontProxy(config.FrontProxyCA))
	}
	requests = append(requests, clients, bearertoken.New(tokens), websocket.NewProtocolAuthenticator(tokens))
	a.Authenticator = requestunion.NewFailOnError(
		group.NewAuthenticatedGroupAdder(requestunion.New(requests...)),
		anonymous.NewAuthenticator(nil),
	)
	return nil
}

// frontProxy recognises users that the front proxy names in the headers that stock clusters
// use.
func frontProxy(roots *x509.CertPool) authenticator.Request {
	options := func() (x509.VerifyOptions, bool) {
		return x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, true
	}
	list := func(values ...string) headerrequest.StaticStringSlice { return values }
	return headerrequest.NewDynamicVerifyOptionsSecure(options, list("front-proxy-client"),
		list("X-Remote-User"), list("X-Remote-Uid"), list("X-Remote-Group"), list("X-Remote-Extra-"))
}

func (a *Auth) authorize(config Config) error {
	roles := rbac.NewAuthorizer(config.Image)
	nodes := node.NewAuthorizer(config.Image, apirbac.NodeRules())
	var err error
	a.Authorizer, err = authorizerunion.New(
		authorizerunion.NamedAuthorizer{AuthorizerName: "masters", Authorizer: authorizerfactory.NewPrivilegedGroups(user.SystemPrivilegedGroup)},
		authorizerunion.NamedAuthorizer{AuthorizerName: "node", Authorizer: nodes},
		authorizerunion.NamedAuthorizer{AuthorizerName: "rbac", Authorizer: roles},
	)
	if err != nil {
		return err
	}
	a.Rules = authorizerunion.NewRuleResolvers(nodes, roles)
	a.Escalation = rbac.NewEscalationCheck(roles, a.Authorizer)
	return nil
}

func (a *Auth) answer(config Config) error {
	var err error
	if a.Issuer, err = serviceaccount.NewIssuer(config.Issuer, config.SigningKey); err != nil {
		return err
	}
	if a.discovery, err = serviceaccount.NewDiscovery(config.Issuer, "", config.PublicKeys); err != nil {
		return err
	}
	reviewer := &review.Reviewer{Authenticator: a.Authenticator, Authorizer: a.Authorizer, Rules: a.Rules, Audiences: a.Audiences}
	a.virtual = reviewer.Handlers()
	requester := &serviceaccount.Requester{
		Image: config.Image, Issuer: a.Issuer, Audiences: a.Audiences, Extend: true, Now: config.Now,
	}
	a.virtual["serviceaccounts/token"] = requester.Create
	return nil
}

// Virtual returns what answers the creation of things that are not stored, by
// "resource.group" or "resource/subresource": reviews and token requests, all of version v1.
func (a *Auth) Virtual() map[string]review.Create { return a.virtual }

// Handlers returns the handlers by path by which others check service account tokens.
func (a *Auth) Handlers() map[string]http.Handler { return a.discovery.Handlers() }
