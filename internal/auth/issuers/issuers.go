// Package issuers recognises users by the tokens of OpenID Connect issuers, as configured by
// an AuthenticationConfiguration (KEP-3331) or by the classic --oidc-* flags.
//
// What a configuration means, signatures, discovery, key rotation and CEL expressions are
// k8s.io/apiserver's. The set of issuers can be replaced as a whole while requests are served.
package issuers

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	authenticationcel "k8s.io/apiserver/pkg/authentication/cel"
	tokenunion "k8s.io/apiserver/pkg/authentication/token/union"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/apiserver/plugin/pkg/authenticator/token/oidc"

	"barque.dev/internal/auth/reload"
)

const (
	// DefaultReady is how long a replaced set may take until it can be used, as in stock.
	DefaultReady = time.Minute
	// retire is how long a set lives on after it was replaced, for requests that use it.
	retire = time.Minute
	// firstLook and slowLook are how soon, and later how often, a new set is asked whether it is ready.
	firstLook = 20 * time.Millisecond
	slowLook  = time.Second
)

// Config is what all issuers share.
type Config struct {
	// Own are the issuers of service account tokens: no other may go by their names.
	Own []string
	// Audiences are the API server's. What its own configuration accepts is meant for them.
	Audiences authenticator.Audiences
	// Algorithms are the accepted JWS algorithms; empty means all that are asymmetric.
	Algorithms []string
	// ServerID tells this server's metrics from the others'.
	ServerID string
	// Ready is how long Replace waits for the issuers; 0 means DefaultReady.
	Ready time.Duration
}

// Issuers are those that are accepted now. It is safe for concurrent use.
type Issuers struct {
	config   Config
	compiler authenticationcel.Compiler
	life     context.Context
	current  atomic.Pointer[set]
}

var _ authenticator.Token = (*Issuers)(nil)

// A set is made of one configuration.
type set struct {
	authenticator.Token
	checks []func() error
	urls   []string
	cancel context.CancelFunc
}

// New accepts the tokens of conf's issuers, which must be valid ([Load], [Check]). Each issuer is
// asked for its keys in the background until it answers; its tokens are refused until then.
// Nothing may be authenticated any more once ctx has ended.
func New(ctx context.Context, conf *apiserver.AuthenticationConfiguration, config Config) (*Issuers, error) {
	if len(config.Algorithms) == 0 {
		config.Algorithms = oidc.AllValidSigningAlgorithms()
	}
	if config.Ready == 0 {
		config.Ready = DefaultReady
	}
	i := &Issuers{config: config, compiler: authenticationcel.NewDefaultCompiler(), life: ctx}
	first, err := i.open(conf)
	if err != nil {
		return nil, err
	}
	i.current.Store(first)
	return i, nil
}

// AuthenticateToken implements authenticator.Token. A token of no issuer here is not ours: no
// user and no error.
func (i *Issuers) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	return i.current.Load().AuthenticateToken(ctx, token)
}

// Replace accepts the tokens of conf's issuers instead, once all of them have answered; until
// then, and with an error, those before stay. It waits for Config.Ready at most, and then
// returns what wraps reload.ErrRetry. Calls must not overlap.
func (i *Issuers) Replace(ctx context.Context, conf *apiserver.AuthenticationConfiguration) error {
	next, err := i.open(conf)
	if err != nil {
		return err
	}
	if err := next.await(ctx, i.config.Ready); err != nil {
		next.cancel()
		return errors.Join(err, reload.ErrRetry)
	}
	old := i.current.Swap(next)
	time.AfterFunc(retire, func() {
		old.cancel()
		i.forget(old.urls)
	})
	return nil
}

// forget takes the metrics of issuers away that are not accepted any more.
func (i *Issuers) forget(urls []string) {
	for _, url := range urls {
		if !slices.Contains(i.current.Load().urls, url) {
			oidc.DeleteJWKSFetchMetrics(url, i.config.ServerID)
		}
	}
}

func (i *Issuers) open(conf *apiserver.AuthenticationConfiguration) (_ *set, err error) {
	ctx, cancel := context.WithCancel(i.life)
	defer func() {
		if err != nil {
			cancel()
		}
	}()
	s := &set{cancel: cancel}
	tokens := make([]authenticator.Token, 0, len(conf.JWT))
	for _, jwt := range conf.JWT {
		var authority oidc.CAContentProvider
		if pem := jwt.Issuer.CertificateAuthority; pem != "" {
			if authority, err = dynamiccertificates.NewStaticCAContent("issuer "+jwt.Issuer.URL, []byte(pem)); err != nil {
				return nil, fmt.Errorf("certificate authority of the issuer %s: %w", jwt.Issuer.URL, err)
			}
		}
		one, err := oidc.New(ctx, oidc.Options{
			JWTAuthenticator: jwt, CAContentProvider: authority, Compiler: i.compiler,
			SupportedSigningAlgs: i.config.Algorithms, DisallowedIssuers: i.config.Own, APIServerID: i.config.ServerID,
		})
		if err != nil {
			return nil, fmt.Errorf("issuer %s: %w", jwt.Issuer.URL, err)
		}
		tokens = append(tokens, one)
		s.checks = append(s.checks, one.HealthCheck)
		s.urls = append(s.urls, jwt.Issuer.URL)
	}
	s.Token = authenticator.WrapAudienceAgnosticToken(i.config.Audiences, tokenunion.NewFailOnError(tokens...))
	return s, nil
}

// await waits until every issuer can be used.
func (s *set) await(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for wait := firstLook; ; wait = min(2*wait, slowLook) {
		err := s.healthy()
		if err == nil {
			return nil
		}
		look := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			look.Stop()
			return err
		case <-look.C:
		}
	}
}

func (s *set) healthy() error {
	var errs []error
	for _, check := range s.checks {
		errs = append(errs, check())
	}
	return errors.Join(errs...)
}
