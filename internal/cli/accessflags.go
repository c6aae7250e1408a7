package cli

import (
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"barque.dev/internal/auth"
	"barque.dev/internal/auth/authorizers"
)

// accessFlags are kube-apiserver's flags for who may do what, by its names.
func accessFlags(flags *pflag.FlagSet, o *auth.Options) {
	flags.StringVar(&o.AuthenticationConfig, "authentication-config", "",
		"`FILE` with an AuthenticationConfiguration: issuers of tokens, anonymous access; read again when it changes")
	flags.Var(optionalBool{&o.Anonymous}, "anonymous-auth",
		"accept requests without credentials on every path (true) or none (false); left out, on /healthz, /livez and /readyz")
	flags.Lookup("anonymous-auth").NoOptDefVal = "true"
	issuerFlags(flags, o)
	hook := &o.TokenWebhook
	flags.StringVar(&hook.ConfigFile, "authentication-token-webhook-config-file", "", "kubeconfig `FILE` of a webhook that says whose a token is")
	flags.StringVar(&hook.Version, "authentication-token-webhook-version", "", "`version` of TokenReview: v1, or v1beta1, the default")
	flags.Var(optionalDuration{&hook.CacheTTL, auth.DefaultTokenWebhookTTL}, "authentication-token-webhook-cache-ttl", "how long the webhook's answers are kept")
	proxyFlags(flags, &o.FrontProxy)
	flags.StringVar(&o.AuthorizationConfig, "authorization-config", "",
		"`FILE` with an AuthorizationConfiguration: authorizers in their order; read again when it changes")
	authorizationFlags(flags, &o.Authorization)
	accountFlags(flags, &o.ServiceAccounts)
}

func issuerFlags(flags *pflag.FlagSet, o *auth.Options) {
	f := &o.OIDC
	flags.StringVar(&f.IssuerURL, "oidc-issuer-url", "", "`URL` of an OpenID Connect issuer whose tokens are accepted")
	flags.StringVar(&f.ClientID, "oidc-client-id", "", "`audience` that its tokens must be for")
	flags.StringVar(&f.CAFile, "oidc-ca-file", "", "CA `FILE` of the issuer; by default the machine's authorities")
	flags.StringVar(&f.UsernameClaim, "oidc-username-claim", "", "`claim` that names the user; sub by default")
	flags.StringVar(&f.UsernamePrefix, "oidc-username-prefix", "", "`prefix` of user names; by default the issuer's URL and #, except for the claim email; - for none")
	flags.StringVar(&f.GroupsClaim, "oidc-groups-claim", "", "`claim` that lists the user's groups")
	flags.StringVar(&f.GroupsPrefix, "oidc-groups-prefix", "", "`prefix` of groups")
	flags.StringSliceVar(&f.SigningAlgs, "oidc-signing-algs", nil, "`algorithms` that tokens may be signed with; RS256 by default")
	flags.Var(pairs{&f.RequiredClaims}, "oidc-required-claim", "`claim=value` that a token must have; may be repeated")
}

func proxyFlags(flags *pflag.FlagSet, p *auth.FrontProxy) {
	flags.StringVar(&p.CAFile, "requestheader-client-ca-file", "", "CA `FILE` of proxies that may name users in headers; by default the cluster's own front proxy's")
	flags.StringSliceVar(&p.AllowedNames, "requestheader-allowed-names", nil, "common `names` of those proxies' certificates; by default any of that CA's")
	flags.StringSliceVar(&p.UsernameHeaders, "requestheader-username-headers", nil, "`headers` that name the user; X-Remote-User by default")
	flags.StringSliceVar(&p.UIDHeaders, "requestheader-uid-headers", nil, "`headers` with the user's UID; X-Remote-Uid by default")
	flags.StringSliceVar(&p.GroupHeaders, "requestheader-group-headers", nil, "`headers` with the user's groups; X-Remote-Group by default")
	flags.StringSliceVar(&p.ExtraPrefixes, "requestheader-extra-headers-prefix", nil, "`prefixes` of headers with what else is known of the user; X-Remote-Extra- by default")
}

func authorizationFlags(flags *pflag.FlagSet, f *authorizers.Flags) {
	flags.StringSliceVar(&f.Modes, "authorization-mode", nil, "authorizers in their order, of `Node, RBAC, Webhook, AlwaysAllow, AlwaysDeny`; Node,RBAC by default")
	flags.StringVar(&f.WebhookFile, "authorization-webhook-config-file", "", "kubeconfig `FILE` of the webhook of --authorization-mode Webhook")
	flags.StringVar(&f.WebhookVersion, "authorization-webhook-version", "", "`version` of SubjectAccessReview: v1, or v1beta1, the default")
	flags.Var(optionalDuration{&f.AuthorizedTTL, authorizers.DefaultAuthorizedTTL}, "authorization-webhook-cache-authorized-ttl", "how long the webhook's permissions are kept")
	flags.Var(optionalDuration{&f.UnauthorizedTTL, authorizers.DefaultUnauthorizedTTL}, "authorization-webhook-cache-unauthorized-ttl", "how long the webhook's refusals are kept")
}

func accountFlags(flags *pflag.FlagSet, s *auth.ServiceAccounts) {
	flags.StringArrayVar(&s.Issuers, "service-account-issuer", nil,
		"`issuer` of service account tokens; may be repeated: the first issues, all are accepted. By default https://kubernetes.default.svc and the cluster's domain")
	flags.StringVar(&s.KeySetURL, "service-account-jwks-uri", "", "`URL` where others fetch the keys of service account tokens; by default at the issuer's host")
	flags.StringSliceVar(&s.Audiences, "api-audiences", nil, "`audiences` of the API; by default the issuers")
	flags.DurationVar(&s.MaxLifetime, "service-account-max-token-expiration", 0, "longest life of a service account token; 0 for no limit")
	flags.Var(negated{&s.Exact}, "service-account-extend-token-expiration",
		"let pods' own tokens live for a year, and report their use after the hour that was asked for")
	flags.Lookup("service-account-extend-token-expiration").NoOptDefVal = "true"
	flags.DurationVar(&s.Unused, "legacy-service-account-token-clean-up-period", 0,
		"how long a token without an end that nobody asked for must be unused until it is marked invalid, and later removed; a year by default")
}

// pairs is a flag of the form name=value that may be repeated; a comma belongs to the value.
type pairs struct{ to *map[string]string }

var _ pflag.SliceValue = pairs{}

func (p pairs) String() string {
	if p.to == nil {
		return ""
	}
	return strings.Join(p.GetSlice(), " ")
}

func (p pairs) Set(text string) error {
	name, value, ok := strings.Cut(text, "=")
	if !ok || strings.TrimSpace(name) == "" {
		return errors.New("it has no name and value")
	}
	if *p.to == nil {
		*p.to = map[string]string{}
	}
	(*p.to)[strings.TrimSpace(name)] = strings.TrimSpace(value)
	return nil
}

func (pairs) Type() string { return "pairs" }

// Append implements pflag.SliceValue, by which a configuration file may hold a list.
func (p pairs) Append(text string) error { return p.Set(text) }

// Replace implements pflag.SliceValue.
func (p pairs) Replace(list []string) error {
	*p.to = nil
	for _, text := range list {
		if err := p.Set(text); err != nil {
			return err
		}
	}
	return nil
}

// GetSlice implements pflag.SliceValue.
func (p pairs) GetSlice() []string {
	list := make([]string, 0, len(*p.to))
	for name, value := range *p.to {
		list = append(list, name+"="+value)
	}
	slices.Sort(list)
	return list
}

// optionalBool is a flag that says yes, no, or nothing.
type optionalBool struct{ to **bool }

func (b optionalBool) String() string {
	if b.to == nil || *b.to == nil {
		return ""
	}
	return strconv.FormatBool(**b.to)
}

func (b optionalBool) Set(text string) error {
	v, err := strconv.ParseBool(text)
	if err != nil {
		return err
	}
	*b.to = &v
	return nil
}

func (optionalBool) Type() string { return "bool" }

// negated is a flag that is on by default and sets a field that says the opposite.
type negated struct{ to *bool }

func (n negated) String() string { return strconv.FormatBool(n.to == nil || !*n.to) }

func (n negated) Set(text string) error {
	v, err := strconv.ParseBool(text)
	if err != nil {
		return err
	}
	*n.to = !v
	return nil
}

func (negated) Type() string { return "bool" }

// optionalDuration is a duration that may be left out, for which otherwise is shown.
type optionalDuration struct {
	to        **time.Duration
	otherwise time.Duration
}

func (d optionalDuration) String() string {
	if d.to == nil || *d.to == nil {
		return d.otherwise.String()
	}
	return (*d.to).String()
}

func (d optionalDuration) Set(text string) error {
	v, err := time.ParseDuration(text)
	if err != nil {
		return err
	}
	*d.to = &v
	return nil
}

func (optionalDuration) Type() string { return "duration" }
