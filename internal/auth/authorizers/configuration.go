package authorizers

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/load"
	"k8s.io/apiserver/pkg/apis/apiserver/validation"
	authorizationcel "k8s.io/apiserver/pkg/authorization/cel"
)

// The types of authorizers beside Webhook. Stock's ABAC, which reads a file of its own, is not
// there.
const (
	typeNode        apiserver.AuthorizerType = "Node"
	typeRBAC        apiserver.AuthorizerType = "RBAC"
	typeAlwaysAllow apiserver.AuthorizerType = "AlwaysAllow"
	typeAlwaysDeny  apiserver.AuthorizerType = "AlwaysDeny"
)

func types() []string {
	return []string{string(typeAlwaysAllow), string(typeAlwaysDeny), string(typeNode), string(typeRBAC), string(apiserver.TypeWebhook)}
}

// Default is the configuration of a cluster that was not told otherwise: Node, then RBAC.
func Default() *apiserver.AuthorizationConfiguration {
	return &apiserver.AuthorizationConfiguration{Authorizers: []apiserver.AuthorizerConfiguration{plain(typeNode), plain(typeRBAC)}}
}

// plain is an authorizer that needs no configuration; it is named as stock names it.
func plain(t apiserver.AuthorizerType) apiserver.AuthorizerConfiguration {
	return apiserver.AuthorizerConfiguration{Type: t, Name: strings.ToLower(string(t))}
}

// Load reads an AuthorizationConfiguration of any version that stock reads, strictly, and checks
// it: types and names, webhooks, and that CEL expressions compile.
func Load(content []byte) (*apiserver.AuthorizationConfiguration, error) {
	if len(content) == 0 {
		return nil, errEmpty
	}
	conf, err := load.LoadFromData(content)
	if err != nil {
		return nil, fmt.Errorf("decode AuthorizationConfiguration: %w", err)
	}
	return conf, check(conf)
}

func check(conf *apiserver.AuthorizationConfiguration) error {
	problems := validation.ValidateAuthorizationConfiguration(authorizationcel.NewDefaultCompiler(), nil, conf,
		sets.New(types()...), sets.New(string(apiserver.TypeWebhook)))
	if err := problems.ToAggregate(); err != nil {
		return err
	}
	var errs []error
	for i := range conf.Authorizers {
		one := &conf.Authorizers[i]
		if want := strings.ToLower(string(one.Type)); one.Type != apiserver.TypeWebhook && one.Name != want {
			errs = append(errs, fmt.Errorf("the authorizer of type %s must be named %q, not %q", one.Type, want, one.Name))
		}
	}
	return errors.Join(errs...)
}

// missingTypes are those of first, webhooks apart, that conf has not.
func missingTypes(first, conf *apiserver.AuthorizationConfiguration) []apiserver.AuthorizerType {
	var missing []apiserver.AuthorizerType
	for i := range first.Authorizers {
		if t := first.Authorizers[i].Type; t != apiserver.TypeWebhook && !Has(conf, string(t)) {
			missing = append(missing, t)
		}
	}
	return missing
}

// Has tells whether a configuration has an authorizer of that type.
func Has(conf *apiserver.AuthorizationConfiguration, name string) bool {
	return slices.ContainsFunc(conf.Authorizers, func(a apiserver.AuthorizerConfiguration) bool { return string(a.Type) == name })
}

// Flags are the classic description of the chain, with stock's names and meaning.
type Flags struct {
	// Modes are types in their order; Node and RBAC by default.
	Modes []string
	// WebhookFile is the kubeconfig of the webhook, which the mode Webhook needs.
	WebhookFile string
	// WebhookVersion of SubjectAccessReview is v1beta1 or v1; v1beta1 by default, as in stock.
	WebhookVersion string
	// AuthorizedTTL and UnauthorizedTTL are how long the webhook's answers are kept: by default
	// 5 minutes and 30 seconds; 0 keeps none.
	AuthorizedTTL, UnauthorizedTTL *time.Duration
}

// Set tells whether any flag was given.
func (f *Flags) Set() bool {
	return len(f.Modes) > 0 || f.WebhookFile != "" || f.WebhookVersion != "" || f.AuthorizedTTL != nil || f.UnauthorizedTTL != nil
}

// Defaults of the webhook of the classic flags.
const (
	DefaultWebhookVersion  = "v1beta1"
	DefaultAuthorizedTTL   = 5 * time.Minute
	DefaultUnauthorizedTTL = 30 * time.Second
	webhookTimeout         = 30 * time.Second
)

// Configuration is what the flags mean, checked.
func (f *Flags) Configuration() (*apiserver.AuthorizationConfiguration, error) {
	conf := Default()
	if len(f.Modes) > 0 {
		conf.Authorizers = nil
	}
	for _, mode := range f.Modes {
		switch {
		case mode == "ABAC":
			return nil, errors.New("--authorization-mode ABAC: there is no ABAC here; choose of " + strings.Join(types(), ", "))
		case !slices.Contains(types(), mode):
			return nil, fmt.Errorf("--authorization-mode %q: choose of %s", mode, strings.Join(types(), ", "))
		case Has(conf, mode):
			return nil, fmt.Errorf("--authorization-mode %s is given twice", mode)
		case mode == string(apiserver.TypeWebhook):
			conf.Authorizers = append(conf.Authorizers, f.webhook())
		default:
			conf.Authorizers = append(conf.Authorizers, plain(apiserver.AuthorizerType(mode)))
		}
	}
	switch hook := Has(conf, string(apiserver.TypeWebhook)); {
	case hook && f.WebhookFile == "":
		return nil, errors.New("--authorization-mode Webhook needs --authorization-webhook-config-file")
	case !hook && f.WebhookFile != "":
		return nil, errors.New("--authorization-webhook-config-file needs Webhook in --authorization-mode")
	}
	return conf, f.checkVersion()
}

func (f *Flags) checkVersion() error {
	if v := f.WebhookVersion; v != "" && v != "v1" && v != "v1beta1" {
		return fmt.Errorf("--authorization-webhook-version %q: choose v1 or v1beta1", v)
	}
	return nil
}

func (f *Flags) webhook() apiserver.AuthorizerConfiguration {
	orElse := func(d *time.Duration, otherwise time.Duration) time.Duration {
		if d == nil {
			return otherwise
		}
		return *d
	}
	version := f.WebhookVersion
	if version == "" {
		version = DefaultWebhookVersion
	}
	allowed, refused := orElse(f.AuthorizedTTL, DefaultAuthorizedTTL), orElse(f.UnauthorizedTTL, DefaultUnauthorizedTTL)
	return apiserver.AuthorizerConfiguration{Type: apiserver.TypeWebhook, Name: "default", Webhook: &apiserver.WebhookConfiguration{
		AuthorizedTTL: metav1.Duration{Duration: allowed}, CacheAuthorizedRequests: allowed != 0,
		UnauthorizedTTL: metav1.Duration{Duration: refused}, CacheUnauthorizedRequests: refused != 0,
		Timeout: metav1.Duration{Duration: webhookTimeout}, FailurePolicy: apiserver.FailurePolicyNoOpinion,
		SubjectAccessReviewVersion: version,
		ConnectionInfo: apiserver.WebhookConnectionInfo{
			Type: apiserver.AuthorizationWebhookConnectionInfoTypeKubeConfigFile, KubeConfigFile: &f.WebhookFile,
		},
	}}
}
