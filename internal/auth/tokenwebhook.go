package auth

import (
	"errors"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	tokencache "k8s.io/apiserver/pkg/authentication/token/cache"
	webhookutil "k8s.io/apiserver/pkg/util/webhook"
	"k8s.io/apiserver/plugin/pkg/authenticator/token/webhook"
)

// TokenWebhook is a service that says by TokenReview whose a token is.
type TokenWebhook struct {
	// ConfigFile is a kubeconfig that points at it; empty for none.
	ConfigFile string
	// Version of TokenReview is v1beta1 or v1; v1beta1 by default, as in stock.
	Version string
	// CacheTTL is how long its answers are kept; 2 minutes by default.
	CacheTTL *time.Duration
}

// Defaults of a TokenWebhook.
const (
	DefaultTokenReviewVersion = "v1beta1"
	DefaultTokenWebhookTTL    = 2 * time.Minute
)

// tokenTTL is how long it is remembered whose a token is that is not the cluster's own, as in
// stock.
const tokenTTL = 10 * time.Second

// webhookBackoff is how calls to webhooks are repeated, as in stock.
func webhookBackoff() wait.Backoff {
	return wait.Backoff{Duration: 500 * time.Millisecond, Factor: 1.5, Jitter: 0.2, Steps: 5}
}

func (w *TokenWebhook) check() error {
	switch {
	case w.Version != "" && w.Version != "v1" && w.Version != "v1beta1":
		return fmt.Errorf("--authentication-token-webhook-version %q: choose v1 or v1beta1", w.Version)
	case w.ConfigFile == "" && (w.Version != "" || w.CacheTTL != nil):
		return errors.New("--authentication-token-webhook-version and -cache-ttl need --authentication-token-webhook-config-file")
	case w.CacheTTL != nil && *w.CacheTTL < 0:
		return fmt.Errorf("--authentication-token-webhook-cache-ttl %v: choose 0 or more", *w.CacheTTL)
	}
	return nil
}

// open makes the authenticator; audiences are the API server's.
func (w *TokenWebhook) open(audiences authenticator.Audiences) (authenticator.Token, error) {
	client, err := webhookutil.LoadKubeconfig(w.ConfigFile, nil)
	if err != nil {
		return nil, fmt.Errorf("--authentication-token-webhook-config-file %s: %w", w.ConfigFile, err)
	}
	version, ttl := w.Version, DefaultTokenWebhookTTL
	if version == "" {
		version = DefaultTokenReviewVersion
	}
	if w.CacheTTL != nil {
		ttl = *w.CacheTTL
	}
	made, err := webhook.New(client, version, audiences, webhookBackoff())
	if err != nil {
		return nil, fmt.Errorf("--authentication-token-webhook-config-file %s: %w", w.ConfigFile, err)
	}
	return tokencache.New(made, false, ttl, ttl), nil
}
