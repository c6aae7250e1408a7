// Package auth decides who a request is from and whether it may be served.
//
// Requests are authenticated, in this order, by what a front proxy says, by client certificate,
// by service account token, bootstrap token, the token of an OpenID Connect issuer, and by a
// webhook that is asked whose a token is; what none of them recognises is anonymous where that
// is allowed. They are authorized for system:masters always, then by the node authorizer and
// RBAC, as in stock Kubernetes with its default settings, or by what the operator configured.
// Every decision of the cluster's own reads the store's shared image at that moment: nothing is
// cached but checked signatures, so a revoked right or a deleted pod counts at once.
//
// The subpackages hold the parts: rbac, node, serviceaccount, issuers, authorizers, review;
// image is how they read, and reload how they follow their files.
package auth

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	apirbac "barque.dev/internal/api/rbac"
	"barque.dev/internal/auth/authorizers"
	"barque.dev/internal/auth/image"
	"barque.dev/internal/auth/issuers"
	"barque.dev/internal/auth/node"
	"barque.dev/internal/auth/rbac"
	"barque.dev/internal/auth/reload"
	"barque.dev/internal/auth/review"
	"barque.dev/internal/auth/serviceaccount"
	"barque.dev/internal/run"
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
	// FrontProxyCA, in PEM, signs the certificate of the cluster's own front proxy; nil turns front
	// proxies off unless Options names an authority of theirs.
	FrontProxyCA []byte
	// SigningKey signs service account tokens; PublicKeys are those whose tokens are
	// accepted (that of SigningKey among them).
	SigningKey crypto.Signer
	PublicKeys []crypto.PublicKey
	// CatchUp returns once Image holds all that was acknowledged, by whichever server, before the
	// call; nil when it always does.
	CatchUp func(context.Context) error
	// MarkTokenUse writes when a token without an end was used, while Run runs; nil writes nothing.
	MarkTokenUse serviceaccount.Mark
	// Options are the operator's.
	Options Options
	// ServerID is this server's name in metrics of configuration files.
	ServerID string
	// Metrics receives the metrics of decisions; nil counts nothing.
	Metrics prometheus.Registerer
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log is told of configuration files that changed; nil discards.
	Log *slog.Logger
}

// Auth holds the cluster's answers. It is safe for concurrent use.
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

	config    Config
	keys      *serviceaccount.Keys
	uses      *serviceaccount.Uses // nil when nobody marks
	issuers   *issuers.Issuers     // nil when there is none to be
	proxies   *frontProxies        // nil when there is none to be
	files     []*reload.File
	discovery *serviceaccount.Discovery // nil when the issuer is no URL
	virtual   map[string]review.Create
}

// Indexes returns the indexes that the store must keep for decisions.
func Indexes() []image.Index { return append(rbac.Indexes(), node.Indexes()...) }

// New puts everything together. What the options' files hold must be good: an error says which
// is not, and why. Issuers of tokens are asked for their keys until ctx ends; nothing may be
// authenticated after that. [Auth.Run] does what goes on beside requests.
func New(ctx context.Context, config Config) (*Auth, error) {
	if config.Image == nil || config.ClientCA == nil || config.SigningKey == nil {
		return nil, errors.New("configure access: an image, a client authority and a signing key are needed")
	}
	if err := config.Options.Check(); err != nil {
		return nil, fmt.Errorf("configure access: %w", err)
	}
	config.complete()
	a := &Auth{Audiences: config.Options.ServiceAccounts.Audiences, config: config}
	if err := a.authenticate(ctx); err != nil {
		return nil, fmt.Errorf("configure authentication: %w", err)
	}
	if err := a.authorize(); err != nil {
		return nil, fmt.Errorf("configure authorization: %w", err)
	}
	if err := a.answer(); err != nil {
		return nil, fmt.Errorf("configure service account tokens: %w", err)
	}
	return a, nil
}

func (c *Config) complete() {
	accounts := &c.Options.ServiceAccounts
	if len(accounts.Issuers) == 0 {
		accounts.Issuers = []string{DefaultIssuer}
	}
	if len(accounts.Audiences) == 0 {
		accounts.Audiences = accounts.Issuers
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if len(c.PublicKeys) == 0 {
		c.PublicKeys = []crypto.PublicKey{c.SigningKey.Public()}
	}
}

// ReplaceKeys uses other keys of service account tokens from now on.
func (a *Auth) ReplaceKeys(signing crypto.Signer, public []crypto.PublicKey) error {
	return a.keys.Replace(signing, public)
}

// Run follows the configuration files, and marks tokens that are used, until ctx ends. It runs once.
func (a *Auth) Run(ctx context.Context) error {
	var services []run.Service
	for _, file := range a.files {
		services = append(services, run.Func("configuration file", file.Run))
	}
	if a.uses != nil {
		services = append(services, run.Func("use of tokens", a.uses.Run))
	}
	if len(services) == 0 {
		<-ctx.Done()
		return nil
	}
	return run.Group(ctx, a.config.Log, func() {}, services...)
}

// ClientCAs are the authorities whose certificates clients are asked for; nil when every client
// shall send what it has, as proxies' authorities can change.
func (a *Auth) ClientCAs() *x509.CertPool {
	if a.config.Options.FrontProxy.CAFile != "" {
		return nil
	}
	pool := a.config.ClientCA.Clone()
	pool.AppendCertsFromPEM(a.config.FrontProxyCA)
	return pool
}

func (a *Auth) authorize() error {
	roles := rbac.NewAuthorizer(a.config.Image)
	parts := authorizers.Parts{
		Node: node.NewAuthorizer(a.config.Image, apirbac.NodeRules()), RBAC: roles, Backoff: webhookBackoff(),
	}
	if a.config.Metrics != nil {
		var err error
		if parts.Decisions, err = authorizers.NewDecisions(a.config.Metrics); err != nil {
			return err
		}
	}
	if err := a.chain(parts); err != nil {
		return err
	}
	// Also where a configuration leaves RBAC out: nobody grants more than the roles give.
	a.Escalation = rbac.NewEscalationCheck(roles, a.Authorizer)
	return nil
}

// chain makes the authorizer of the options.
func (a *Auth) chain(parts authorizers.Parts) error {
	if a.config.Options.AuthorizationConfig != "" {
		return a.chainOfFile(parts)
	}
	conf, err := a.config.Options.Authorization.Configuration()
	if err != nil {
		return err
	}
	chain, err := authorizers.New(conf, parts)
	if err != nil {
		return err
	}
	a.Authorizer, a.Rules = chain.Authorizer, chain.RuleResolver
	return nil
}

func (a *Auth) answer() error {
	accounts := &a.config.Options.ServiceAccounts
	a.Issuer = serviceaccount.NewIssuer(accounts.Issuers[0], a.keys)
	var err error
	if a.discovery, err = serviceaccount.NewDiscovery(accounts.Issuers[0], accounts.KeySetURL, a.keys); err != nil {
		// As in stock, such a cluster's tokens are good, but others cannot check them.
		a.config.Log.Warn("others can't check service account tokens", "error", err)
	}
	reviewer := &review.Reviewer{Authenticator: a.Authenticator, Authorizer: a.Authorizer, Rules: a.Rules, Audiences: a.Audiences}
	a.virtual = reviewer.Handlers()
	requester := &serviceaccount.Requester{
		Image: a.config.Image, CatchUp: a.config.CatchUp, Issuer: a.Issuer, Audiences: a.Audiences,
		MaxLifetime: accounts.MaxLifetime, Extend: !accounts.Exact, Now: a.config.Now,
	}
	a.virtual["serviceaccounts/token"] = requester.Create
	return nil
}

// Virtual returns what answers the creation of things that are not stored, by
// "resource.group" or "resource/subresource": reviews and token requests, all of version v1.
func (a *Auth) Virtual() map[string]review.Create { return a.virtual }

// Handlers returns the handlers by path by which others check service account tokens.
func (a *Auth) Handlers() map[string]http.Handler {
	if a.discovery == nil {
		return nil
	}
	return a.discovery.Handlers()
}
