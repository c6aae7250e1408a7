package auth

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/apiserver/pkg/apis/apiserver"

	"barque.dev/internal/auth/authorizers"
	"barque.dev/internal/auth/issuers"
)

// Options are what an operator can say about who may do what. They have the names and the
// meaning of kube-apiserver's flags; the zero value is a cluster that knows its own users only.
// All servers of a cluster should be given the same: each decides by what it was given.
type Options struct {
	// AuthenticationConfig is a file with an AuthenticationConfiguration. It is read again when
	// it changes. It excludes OIDC, and Anonymous if it says something about that.
	AuthenticationConfig string
	// Anonymous accepts requests without credentials on every path (true) or on none (false).
	// Unset, it accepts them where health is asked for: /healthz, /livez and /readyz.
	Anonymous *bool
	// OIDC is one issuer by the classic flags.
	OIDC issuers.Flags
	// TokenWebhook is asked whose tokens are that nobody here knows.
	TokenWebhook TokenWebhook
	// FrontProxy is who may name users in headers.
	FrontProxy FrontProxy
	// AuthorizationConfig is a file with an AuthorizationConfiguration. It is read again when it
	// changes. It excludes Authorization.
	AuthorizationConfig string
	// Authorization is the chain of authorizers by the classic flags.
	Authorization authorizers.Flags
	// ServiceAccounts are their tokens.
	ServiceAccounts ServiceAccounts
}

// ServiceAccounts says how service account tokens are issued and which are accepted.
type ServiceAccounts struct {
	// Issuers are accepted; the first issues. Empty means https://kubernetes.default.svc and the
	// cluster's domain.
	Issuers []string
	// KeySetURL is where others fetch the keys, as the discovery document says; an https URL.
	// Empty means the issuer's host.
	KeySetURL string
	// Audiences are the API server's own; empty means Issuers.
	Audiences []string
	// MaxLifetime shortens what is asked for; 0 is no limit.
	MaxLifetime time.Duration
	// Exact gives pods' own tokens no longer life than they ask for. By default they get a year,
	// and their use after the asked time is reported (KEP-1205).
	Exact bool
	// Unused is how long a token without an end that nobody asked for must not have been used until it is marked
	// invalid, and marked until it is removed; 0 is a year.
	Unused time.Duration
}

// Check tells what contradicts itself, in one sentence that says what to do. What files hold is
// found when they are read, by New.
func (o *Options) Check() error {
	switch {
	case o.AuthenticationConfig != "" && o.OIDC.Set():
		return errors.New("--authentication-config and the --oidc-* flags exclude each other: describe all issuers in the file")
	case o.AuthorizationConfig != "" && o.Authorization.Set():
		return errors.New("--authorization-config excludes --authorization-mode and the --authorization-webhook-* flags: describe all authorizers in the file")
	}
	for _, err := range []error{o.OIDC.Check(), o.TokenWebhook.check(), o.FrontProxy.check()} {
		if err != nil {
			return err
		}
	}
	if o.AuthorizationConfig == "" {
		if _, err := o.Authorization.Configuration(); err != nil {
			return err
		}
	}
	return o.ServiceAccounts.check()
}

// CheckFiles reads the files that the options name and tells what is wrong with them, so that a
// server can refuse them before it has made anything.
func (o *Options) CheckFiles() error {
	if o.AuthenticationConfig != "" {
		if _, _, err := o.readAuthentication(); err != nil {
			return err
		}
	}
	if o.AuthorizationConfig != "" {
		conf, _, err := o.readAuthorization()
		if err != nil {
			return err
		}
		for i := range conf.Authorizers {
			if hook := conf.Authorizers[i].Webhook; hook != nil && hook.ConnectionInfo.KubeConfigFile != nil {
				if err := readable("--authorization-config "+o.AuthorizationConfig, *hook.ConnectionInfo.KubeConfigFile); err != nil {
					return err
				}
			}
		}
	}
	if o.OIDC.Set() {
		if _, err := o.OIDC.Configuration(o.ServiceAccounts.Issuers); err != nil {
			return err
		}
	}
	for flag, path := range map[string]string{
		"--requestheader-client-ca-file": o.FrontProxy.CAFile, "--authorization-webhook-config-file": o.Authorization.WebhookFile,
		"--authentication-token-webhook-config-file": o.TokenWebhook.ConfigFile,
	} {
		if path == "" {
			continue
		}
		if err := readable(flag, path); err != nil {
			return err
		}
	}
	return nil
}

func readable(flag, path string) error {
	if _, err := os.ReadFile(path); err != nil {
		return fmt.Errorf("%s: %w", flag, err)
	}
	return nil
}

// readAuthentication reads the AuthenticationConfiguration, which must be good.
func (o *Options) readAuthentication() (*apiserver.AuthenticationConfiguration, []byte, error) {
	content, err := os.ReadFile(o.AuthenticationConfig)
	if err != nil {
		return nil, nil, fmt.Errorf("--authentication-config: %w", err)
	}
	conf, err := issuers.Load(content, o.ServiceAccounts.Issuers)
	if err != nil {
		return nil, nil, fmt.Errorf("--authentication-config %s: %w", o.AuthenticationConfig, err)
	}
	return conf, content, nil
}

// readAuthorization reads the AuthorizationConfiguration, which must be good.
func (o *Options) readAuthorization() (*apiserver.AuthorizationConfiguration, []byte, error) {
	content, err := os.ReadFile(o.AuthorizationConfig)
	if err != nil {
		return nil, nil, fmt.Errorf("--authorization-config: %w", err)
	}
	conf, err := authorizers.Load(content)
	if err != nil {
		return nil, nil, fmt.Errorf("--authorization-config %s: %w", o.AuthorizationConfig, err)
	}
	return conf, content, nil
}

func (s *ServiceAccounts) check() error {
	for i, issuer := range s.Issuers {
		if issuer == "" {
			return errors.New("--service-account-issuer must not be empty")
		}
		if slices.Contains(s.Issuers[:i], issuer) {
			return fmt.Errorf("--service-account-issuer %s is given twice", issuer)
		}
		if _, err := url.Parse(issuer); strings.Contains(issuer, ":") && err != nil {
			return fmt.Errorf("--service-account-issuer %q: with a colon in it, it must be a URL: %w", issuer, err)
		}
	}
	if s.KeySetURL != "" {
		if u, err := url.Parse(s.KeySetURL); err != nil || u.Scheme != "https" {
			return fmt.Errorf("--service-account-jwks-uri %q: give an https URL", s.KeySetURL)
		}
	}
	if s.MaxLifetime != 0 && (s.MaxLifetime < minTokenLimit || s.MaxLifetime > maxTokenLimit) {
		return fmt.Errorf("--service-account-max-token-expiration %v: choose %v to 2^32 seconds", s.MaxLifetime, minTokenLimit)
	}
	if s.Unused < 0 {
		return fmt.Errorf("--legacy-service-account-token-clean-up-period %v: choose more than 0", s.Unused)
	}
	return nil
}

// Bounds of ServiceAccounts.MaxLifetime, as in stock.
const (
	minTokenLimit = time.Hour
	maxTokenLimit = (1 << 32) * time.Second
)
