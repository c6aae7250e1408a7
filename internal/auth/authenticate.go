package auth

import (
	"context"
	"fmt"
	"reflect"

	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/group"
	"k8s.io/apiserver/pkg/authentication/request/anonymous"
	"k8s.io/apiserver/pkg/authentication/request/bearertoken"
	requestunion "k8s.io/apiserver/pkg/authentication/request/union"
	"k8s.io/apiserver/pkg/authentication/request/websocket"
	tokencache "k8s.io/apiserver/pkg/authentication/token/cache"
	tokenunion "k8s.io/apiserver/pkg/authentication/token/union"

	"barque.dev/internal/auth/authorizers"
	"barque.dev/internal/auth/issuers"
	"barque.dev/internal/auth/reload"
	"barque.dev/internal/auth/serviceaccount"
)

// authenticate makes the authenticator: those that need nobody else first, as in stock.
func (a *Auth) authenticate(ctx context.Context) error {
	var requests []authenticator.Request
	if err := a.openProxies(); err != nil {
		return err
	}
	if a.proxies != nil {
		requests = append(requests, a.proxies)
	}
	clients, err := newCertificates(a.config.ClientCA, a.config.Now)
	if err != nil {
		return err
	}
	tokens, nobody, err := a.tokens(ctx)
	if err != nil {
		return err
	}
	requests = append(requests, clients, bearertoken.New(tokens), websocket.NewProtocolAuthenticator(tokens))
	a.Authenticator = group.NewAuthenticatedGroupAdder(requestunion.New(requests...))
	if nobody.Enabled {
		// Credentials that are not good are an error: nobody falls back to being nobody.
		a.Authenticator = requestunion.NewFailOnError(a.Authenticator, anonymous.NewAuthenticator(nobody.Conditions))
	}
	if a.proxies != nil && !a.proxies.standard() {
		a.Authenticator = withoutProxyHeaders{a.Authenticator, &a.proxies.FrontProxy}
	}
	return nil
}

func (a *Auth) openProxies() error {
	proxies, content, err := newFrontProxies(a.config.Options.FrontProxy, a.config.FrontProxyCA, a.config.ClientCA)
	if err != nil || proxies == nil {
		return err
	}
	proxies.secure = authenticator.WrapAudienceAgnosticRequest(a.Audiences, proxies.secure)
	a.proxies = proxies
	if proxies.CAFile != "" {
		a.files = append(a.files, proxies.follow(reload.Config{Log: a.config.Log}, content, a.config.ClientCA))
	}
	return nil
}

// tokens makes the authenticator of bearer tokens, and tells who may do without.
func (a *Auth) tokens(ctx context.Context) (authenticator.Token, apiserver.AnonymousAuthConfig, error) {
	none := apiserver.AnonymousAuthConfig{}
	var err error
	if a.keys, err = serviceaccount.NewKeys(a.config.SigningKey, a.config.PublicKeys); err != nil {
		return nil, none, err
	}
	accounts, err := a.accounts()
	if err != nil {
		return nil, none, err
	}
	own := []authenticator.Token{
		accounts, authenticator.WrapAudienceAgnosticToken(a.Audiences, newBootstrapTokens(a.config.Image, a.config.Now)),
	}
	conf, err := a.openIssuers(ctx)
	if err != nil {
		return nil, none, err
	}
	var others []authenticator.Token
	if a.issuers != nil {
		others = append(others, a.issuers)
	}
	if hook := &a.config.Options.TokenWebhook; hook.ConfigFile != "" {
		made, err := hook.open(a.Audiences)
		if err != nil {
			return nil, none, err
		}
		others = append(others, made)
	}
	nobody, err := a.nobody(conf)
	if err != nil {
		return nil, none, err
	}
	if len(others) > 0 {
		// The cluster's own tokens are checked each time, so that they end with what they are bound to.
		own = append(own, tokencache.New(tokenunion.New(others...), true, tokenTTL, 0))
	}
	return tokenunion.New(own...), nobody, nil
}

// accounts makes the authenticator of service accounts' tokens.
func (a *Auth) accounts() (*serviceaccount.Authenticator, error) {
	config := &a.config
	metrics, err := serviceaccount.NewMetrics(config.Metrics)
	if err != nil {
		return nil, err
	}
	if config.MarkTokenUse != nil {
		a.uses = serviceaccount.NewUses(config.Image, config.MarkTokenUse, config.Now, config.Log)
	}
	return serviceaccount.NewAuthenticator(serviceaccount.AuthenticatorConfig{
		Image: config.Image, Issuers: config.Options.ServiceAccounts.Issuers, Keys: a.keys,
		Audiences: a.Audiences, CatchUp: config.CatchUp, Uses: a.uses, Metrics: metrics, Now: config.Now,
	})
}

// openIssuers makes the issuers of the options, of which there may be none.
func (a *Auth) openIssuers(ctx context.Context) (*apiserver.AuthenticationConfiguration, error) {
	options := &a.config.Options
	own := options.ServiceAccounts.Issuers
	config := issuers.Config{Own: own, Audiences: a.Audiences, ServerID: a.config.ServerID}
	var conf *apiserver.AuthenticationConfiguration
	var err error
	switch {
	case options.AuthenticationConfig != "":
		return a.openIssuersOfFile(ctx, config)
	case options.OIDC.Set():
		if conf, err = options.OIDC.Configuration(own); err != nil {
			return nil, err
		}
		config.Algorithms = options.OIDC.Algorithms()
		a.issuers, err = issuers.New(ctx, conf, config)
	}
	return conf, err
}

func (a *Auth) openIssuersOfFile(ctx context.Context, config issuers.Config) (*apiserver.AuthenticationConfiguration, error) {
	path := a.config.Options.AuthenticationConfig
	conf, content, err := a.config.Options.readAuthentication()
	if err != nil {
		return nil, err
	}
	if a.issuers, err = issuers.New(ctx, conf, config); err != nil {
		return nil, fmt.Errorf("--authentication-config %s: %w", path, err)
	}
	follow := authenticationFile(a.config.ServerID, content)
	follow.Path, follow.Log = path, a.config.Log
	follow.Apply = func(ctx context.Context, content []byte) error {
		next, err := issuers.Load(content, config.Own)
		if err != nil {
			return err
		}
		if !reflect.DeepEqual(next.Anonymous, conf.Anonymous) {
			return fmt.Errorf("what it says about anonymous requests can't change without a restart")
		}
		return a.issuers.Replace(ctx, next)
	}
	a.files = append(a.files, reload.New(follow, content))
	return conf, nil
}

// nobody tells whether, and on which paths, a request may come without credentials.
func (a *Auth) nobody(conf *apiserver.AuthenticationConfiguration) (apiserver.AnonymousAuthConfig, error) {
	flag := a.config.Options.Anonymous
	switch {
	case conf != nil && conf.Anonymous != nil && flag != nil:
		return apiserver.AnonymousAuthConfig{}, fmt.Errorf("--anonymous-auth can't be given when %s says something about anonymous requests", a.config.Options.AuthenticationConfig)
	case conf != nil && conf.Anonymous != nil:
		return *conf.Anonymous, nil
	case flag != nil:
		// Where everything is allowed, nobody may do nothing: as in stock.
		open := a.config.Options.AuthorizationConfig == "" && allowsAll(&a.config.Options.Authorization)
		return apiserver.AnonymousAuthConfig{Enabled: *flag && !open}, nil
	}
	return apiserver.AnonymousAuthConfig{Enabled: true, Conditions: []apiserver.AnonymousAuthCondition{
		{Path: "/healthz"}, {Path: "/livez"}, {Path: "/readyz"},
	}}, nil
}

func allowsAll(f *authorizers.Flags) bool {
	conf, err := f.Configuration()
	return err == nil && authorizers.Has(conf, "AlwaysAllow")
}

// chainOfFile makes the authorizer that a file describes, and follows the file.
func (a *Auth) chainOfFile(parts authorizers.Parts) error {
	path := a.config.Options.AuthorizationConfig
	conf, content, err := a.config.Options.readAuthorization()
	if err != nil {
		return err
	}
	for _, needed := range []string{"Node", "RBAC"} {
		if !authorizers.Has(conf, needed) {
			a.config.Log.Warn("agents and the cluster's own parts need an authorizer that this configuration leaves out", "type", needed, "path", path)
		}
	}
	chain, err := authorizers.NewReplaceable(conf, parts)
	if err != nil {
		return fmt.Errorf("--authorization-config %s: %w", path, err)
	}
	follow := authorizationFile(a.config.ServerID, content)
	follow.Path, follow.Log = path, a.config.Log
	follow.Apply = func(_ context.Context, content []byte) error { return chain.Replace(content) }
	a.files = append(a.files, reload.New(follow, content))
	a.Authorizer, a.Rules = chain, chain
	return nil
}
