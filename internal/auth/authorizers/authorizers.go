// Package authorizers makes the chain of authorizers that every request is put to: system:masters
// first, as in stock Kubernetes, then what an AuthorizationConfiguration (KEP-3221) or the
// classic --authorization-* flags list, in their order. The first that allows or denies decides.
//
// Webhooks, their match conditions and caches are k8s.io/apiserver's; Node and RBAC are ours.
package authorizers

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	authorizationcel "k8s.io/apiserver/pkg/authorization/cel"
	"k8s.io/apiserver/pkg/authorization/union"
	webhookutil "k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/apiserver/plugin/pkg/authorizer/webhook"
	webhookmetrics "k8s.io/apiserver/plugin/pkg/authorizer/webhook/metrics"
)

// mastersName is what stock calls the authorizer of system:masters.
const mastersName = "kubernetes.io/system-privileged-group"

// Resolving is an authorizer that can also list what a user may do.
type Resolving interface {
	authorizer.Authorizer
	authorizer.RuleResolver
}

// Parts are what a chain is made of.
type Parts struct {
	// Node and RBAC are the cluster's own.
	Node, RBAC Resolving
	// Decisions counts what they decide; nil counts nothing.
	Decisions *Decisions
	// Backoff is how a call to a webhook is repeated.
	Backoff wait.Backoff
}

// Chain is the cluster's authorizer. It is safe for concurrent use.
type Chain struct {
	authorizer.Authorizer
	authorizer.RuleResolver
}

// New makes the chain of a valid configuration ([Load], [Flags.Configuration]). Files that it
// names are read.
func New(conf *apiserver.AuthorizationConfiguration, parts Parts) (*Chain, error) {
	named := []union.NamedAuthorizer{{
		AuthorizerName: mastersName, Authorizer: authorizerfactory.NewPrivilegedGroups(user.SystemPrivilegedGroup),
	}}
	var rules []authorizer.RuleResolver
	for i := range conf.Authorizers {
		one := &conf.Authorizers[i]
		made, err := parts.make(one)
		if err != nil {
			return nil, fmt.Errorf("authorizer %s: %w", one.Name, err)
		}
		named = append(named, union.NamedAuthorizer{AuthorizerName: one.Name, Authorizer: parts.Decisions.counted(one, made)})
		rules = append(rules, made)
	}
	chain, err := newOrdered(named)
	if err != nil {
		return nil, fmt.Errorf("join authorizers: %w", err)
	}
	return &Chain{chain, union.NewRuleResolvers(rules...)}, nil
}

func (p *Parts) make(conf *apiserver.AuthorizerConfiguration) (Resolving, error) {
	switch conf.Type {
	case typeNode:
		return p.Node, nil
	case typeRBAC:
		return p.RBAC, nil
	case typeAlwaysAllow:
		return authorizerfactory.NewAlwaysAllowAuthorizer(), nil
	case typeAlwaysDeny:
		return authorizerfactory.NewAlwaysDenyAuthorizer(), nil
	case apiserver.TypeWebhook:
		return p.webhook(conf)
	}
	return nil, fmt.Errorf("the type %q is not known", conf.Type)
}

// webhookMetrics are those that kube-apiserver reports of webhooks.
type webhookMetrics struct {
	webhookmetrics.NoopRequestMetrics
	webhookmetrics.WebhookMetrics
	authorizationcel.MatcherMetrics
}

func (p *Parts) webhook(conf *apiserver.AuthorizerConfiguration) (Resolving, error) {
	hook := conf.Webhook
	client, err := webhookutil.LoadKubeconfig(*hook.ConnectionInfo.KubeConfigFile, nil)
	if err != nil {
		return nil, fmt.Errorf("read the webhook's kubeconfig: %w", err)
	}
	if hook.Timeout.Duration != 0 {
		client.Timeout = hook.Timeout.Duration
	}
	onError := authorizer.DecisionNoOpinion
	if hook.FailurePolicy == apiserver.FailurePolicyDeny {
		onError = authorizer.DecisionDeny
	}
	ttl := func(cached bool, d time.Duration) time.Duration {
		if !cached {
			return 0
		}
		return d
	}
	return webhook.New(client, hook.SubjectAccessReviewVersion,
		ttl(hook.CacheAuthorizedRequests, hook.AuthorizedTTL.Duration),
		ttl(hook.CacheUnauthorizedRequests, hook.UnauthorizedTTL.Duration),
		p.Backoff, onError, hook.MatchConditions, conf.Name,
		webhookMetrics{WebhookMetrics: webhookmetrics.NewWebhookMetrics(), MatcherMetrics: authorizationcel.NewMatcherMetrics()},
		authorizationcel.NewDefaultCompiler())
}

// Replaceable is a chain that can be replaced while requests are served. It is safe for
// concurrent use.
type Replaceable struct {
	parts   Parts
	first   *apiserver.AuthorizationConfiguration
	current atomic.Pointer[Chain]
}

var _ Resolving = (*Replaceable)(nil)

// NewReplaceable starts with the chain of a valid configuration.
func NewReplaceable(conf *apiserver.AuthorizationConfiguration, parts Parts) (*Replaceable, error) {
	chain, err := New(conf, parts)
	if err != nil {
		return nil, err
	}
	r := &Replaceable{parts: parts, first: conf}
	r.current.Store(chain)
	return r, nil
}

// Replace uses the configuration in content from now on; with an error nothing changes. What is
// no webhook and was there at the start must stay: a file that is read while it is being
// written shall not leave the cluster without RBAC.
func (r *Replaceable) Replace(content []byte) error {
	conf, err := Load(content)
	if err != nil {
		return err
	}
	if missing := missingTypes(r.first, conf); len(missing) > 0 {
		return fmt.Errorf("the authorizers %q were there when the server started and can't be taken away without a restart", missing)
	}
	chain, err := New(conf, r.parts)
	if err != nil {
		return err
	}
	r.current.Store(chain)
	return nil
}

// Authorize implements authorizer.Authorizer.
func (r *Replaceable) Authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	return r.current.Load().Authorize(ctx, a)
}

// ConditionsAwareAuthorize implements authorizer.Authorizer.
func (r *Replaceable) ConditionsAwareAuthorize(ctx context.Context, a authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return r.current.Load().ConditionsAwareAuthorize(ctx, a)
}

// EvaluateConditions implements authorizer.Authorizer.
func (r *Replaceable) EvaluateConditions(ctx context.Context, d authorizer.ConditionsAwareDecision, data authorizer.ConditionsData) (authorizer.Decision, string, error) {
	return r.current.Load().EvaluateConditions(ctx, d, data)
}

// RulesFor implements authorizer.RuleResolver.
func (r *Replaceable) RulesFor(ctx context.Context, u user.Info, namespace string) ([]authorizer.ResourceRuleInfo, []authorizer.NonResourceRuleInfo, bool, error) {
	return r.current.Load().RulesFor(ctx, u, namespace)
}

// errEmpty refuses a file without content.
var errEmpty = errors.New("it is empty")
