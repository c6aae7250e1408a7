package serviceaccount

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	lru "github.com/hashicorp/golang-lru/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	apiserviceaccount "k8s.io/apiserver/pkg/authentication/serviceaccount"
	tokenjwt "k8s.io/apiserver/pkg/authentication/token/jwt"

	"barque.dev/internal/auth/image"
)

// verifiedTokens bounds how many tokens' signatures are remembered; one takes about 1 KB.
const verifiedTokens = 4096

// deletionGrace is how long a token outlives the moment its object was to be gone.
const deletionGrace = jwt.DefaultLeeway

// Authenticator recognises service account tokens. Signatures are checked once a token and
// remembered; expiry, audience and the existence of everything a token is bound to are checked
// at each use. It is safe for concurrent use.
type Authenticator struct {
	config   AuthenticatorConfig
	verified *lru.Cache[[sha256.Size]byte, verifiedToken]
}

// A verifiedToken was signed by a key of ring; with other keys it must be looked at again.
type verifiedToken struct {
	*claims
	by *ring
}

var _ authenticator.Token = (*Authenticator)(nil)

// AuthenticatorConfig says which tokens are good.
type AuthenticatorConfig struct {
	Image image.Reader
	// Issuers are accepted; usually one. Legacy tokens are accepted always.
	Issuers []string
	Keys    *Keys
	// Audiences are those of the API server: what a token must be for, unless the request
	// asks otherwise, and what tokens without any are for.
	Audiences authenticator.Audiences
	// CatchUp returns once the image holds all that was acknowledged, by whichever server, before
	// the call; nil when it always does. It is called for tokens of what the image has not.
	CatchUp func(context.Context) error
	// Uses is told of tokens without an end; nil for nobody.
	Uses *Uses
	// Metrics is never nil.
	Metrics *Metrics
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// NewAuthenticator checks the configuration.
func NewAuthenticator(config AuthenticatorConfig) (*Authenticator, error) {
	if config.Now == nil {
		config.Now = time.Now
	}
	verified, err := lru.New[[sha256.Size]byte, verifiedToken](verifiedTokens)
	if err != nil {
		return nil, fmt.Errorf("make token cache: %w", err)
	}
	return &Authenticator{config: config, verified: verified}, nil
}

// AuthenticateToken implements authenticator.Token. A token of another issuer is not ours: no
// error and no user. One of ours that is not good is an error.
func (a *Authenticator) AuthenticateToken(ctx context.Context, token string) (*authenticator.Response, bool, error) {
	c, ours, err := a.verify(token)
	if !ours || err != nil {
		return nil, false, err
	}
	of := authenticator.Audiences(c.Audience)
	if len(of) == 0 {
		audit.AddAuditAnnotation(ctx, "authentication.k8s.io/legacy-token", c.Subject)
		a.config.Metrics.legacy.Inc()
		of = a.config.Audiences
	}
	wanted, ok := authenticator.AudiencesFrom(ctx)
	if !ok {
		wanted = a.config.Audiences
	}
	audiences := of.Intersect(wanted)
	if len(audiences) == 0 && len(a.config.Audiences) != 0 {
		return nil, false, fmt.Errorf("token audiences %q is invalid for the target audiences %q", of, wanted)
	}
	if err := a.inTime(c); err != nil {
		return nil, false, err
	}
	info, err := a.holder(ctx, c, token)
	if err != nil && !errors.Is(err, errMarked) && a.config.CatchUp != nil && a.config.CatchUp(ctx) == nil {
		// Another server may have made it just now, or have made it anew.
		info, err = a.holder(ctx, c, token)
	}
	if err != nil {
		return nil, false, err
	}
	return &authenticator.Response{User: info.UserInfo(), Audiences: audiences}, true, nil
}

// verify checks who issued and signed a token.
func (a *Authenticator) verify(token string) (c *claims, ours bool, err error) {
	id, keys := sha256.Sum256([]byte(token)), a.config.Keys.current.Load()
	if v, ok := a.verified.Get(id); ok && v.by == keys {
		return v.claims, true, nil
	}
	if !a.issued(unverifiedIssuer(token)) {
		return nil, false, nil
	}
	parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.RS256, jose.ES256, jose.ES384, jose.ES512})
	if err != nil {
		return nil, false, nil // what is no JWT is not ours
	}
	var failures []error
	for _, key := range candidates(parsed, &keys.accepted) {
		var got claims
		if err := parsed.Claims(key, &got); err != nil {
			failures = append(failures, err)
			continue
		}
		if !a.issued(got.Issuer) || got.legacy() != (got.Issuer == LegacyIssuer) {
			return nil, true, fmt.Errorf("token issuer %q is invalid", got.Issuer)
		}
		a.verified.Add(id, verifiedToken{&got, keys})
		return &got, true, nil
	}
	if len(failures) == 0 {
		return nil, true, errors.New("invalid signature, no keys found")
	}
	return nil, true, errors.Join(failures...)
}

func (a *Authenticator) issued(issuer string) bool {
	if issuer == LegacyIssuer {
		return true
	}
	for _, i := range a.config.Issuers {
		if i == issuer {
			return true
		}
	}
	return false
}

// candidates returns the keys that may have signed a token: the one it names, or all. Each
// key verifies its own algorithm only.
func candidates(t *jwt.JSONWebToken, keys *jose.JSONWebKeySet) []jose.JSONWebKey {
	for _, h := range t.Headers {
		if h.KeyID != "" {
			return keys.Key(h.KeyID)
		}
	}
	return keys.Keys
}

// unverifiedIssuer reads who a token claims to be from. It is not to be trusted.
func unverifiedIssuer(token string) string {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return ""
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return ""
	}
	var c struct {
		Issuer string `json:"iss"`
	}
	if json.Unmarshal(payload, &c) != nil {
		return ""
	}
	return c.Issuer
}

// errMarked says that a token without an end must not be used any more.
var errMarked = errors.New("it has been marked invalid")

// errInvalidated says that what a token was bound to is gone.
var errInvalidated = errors.New("service account token has been invalidated")

// inTime checks when a token is valid; one without an end always is.
func (a *Authenticator) inTime(c *claims) error {
	if c.legacy() {
		return nil
	}
	switch err := c.Validate(jwt.Expected{Time: a.config.Now()}); {
	case errors.Is(err, jwt.ErrExpired):
		return errors.New("service account token has expired")
	case errors.Is(err, jwt.ErrNotValidYet):
		return errors.New("service account token is not valid yet")
	case errors.Is(err, jwt.ErrIssuedInTheFuture):
		return errors.New("service account token is issued in the future")
	case err != nil:
		return fmt.Errorf("service account token claims could not be validated: %w", err)
	}
	return nil
}

// holder looks up whose token it is, and all that it is bound to.
func (a *Authenticator) holder(ctx context.Context, c *claims, token string) (*apiserviceaccount.ServiceAccountInfo, error) {
	if c.legacy() {
		return a.legacy(ctx, c, token)
	}
	return a.bound(ctx, c)
}

func (a *Authenticator) bound(ctx context.Context, c *claims) (*apiserviceaccount.ServiceAccountInfo, error) {
	now := a.config.Now()
	k := c.Kubernetes
	if _, err := a.account(k.Namespace, k.ServiceAccount, now.Add(-deletionGrace)); err != nil {
		return nil, err
	}
	info := &apiserviceaccount.ServiceAccountInfo{
		Namespace: k.Namespace, Name: k.ServiceAccount.Name, UID: string(k.ServiceAccount.UID),
		CredentialID: tokenjwt.CredentialIDForJTI(c.ID),
	}
	if k.Secret != nil && !a.lives("secrets", k.Namespace, *k.Secret, now) {
		return nil, errInvalidated
	}
	if k.Pod != nil {
		if !a.lives("pods", k.Namespace, *k.Pod, now) {
			return nil, errInvalidated
		}
		info.PodName, info.PodUID = k.Pod.Name, string(k.Pod.UID)
	}
	if k.Node != nil {
		// For a token bound to a pod the node is only told; the pod's life decides.
		if k.Pod == nil && !a.lives("nodes", "", *k.Node, now) {
			return nil, errInvalidated
		}
		info.NodeName, info.NodeUID = k.Node.Name, string(k.Node.UID)
	}
	switch {
	case k.WarnAfter == nil:
	case now.After(k.WarnAfter.Time()):
		a.config.Metrics.stale.Inc()
		audit.AddAuditAnnotation(ctx, "authentication.k8s.io/stale-token", fmt.Sprintf(
			"subject: %s, seconds after warning threshold: %d", c.Subject, int64(now.Sub(k.WarnAfter.Time()).Seconds())))
	default:
		a.config.Metrics.valid.Inc()
	}
	return info, nil
}

func (a *Authenticator) account(namespace string, ref reference, deadline time.Time) (*corev1.ServiceAccount, error) {
	account, ok := image.Get[*corev1.ServiceAccount](a.config.Image, schema.GroupResource{Resource: "serviceaccounts"}, namespace, ref.Name)
	switch {
	case !ok:
		return nil, fmt.Errorf("serviceaccounts %q not found", ref.Name)
	case account.UID != ref.UID:
		return nil, fmt.Errorf("service account UID (%s) does not match claim (%s)", account.UID, ref.UID)
	case account.DeletionTimestamp != nil && account.DeletionTimestamp.Time.Before(deadline):
		return nil, fmt.Errorf("service account %s/%s has been deleted", namespace, ref.Name)
	}
	return account, nil
}

// lives tells whether the very object that is referred to exists and is not overdue for
// deletion.
func (a *Authenticator) lives(plural, namespace string, ref reference, now time.Time) bool {
	obj := a.config.Image.Get(schema.GroupResource{Resource: plural}, namespace, ref.Name)
	uid, deletion, ok := lifeOf(obj)
	return ok && uid == ref.UID && (deletion.IsZero() || !deletion.Before(now.Add(-deletionGrace)))
}

func lifeOf(obj runtime.Object) (uid types.UID, deletion time.Time, ok bool) {
	o, ok := obj.(metav1.Object)
	if !ok {
		return "", time.Time{}, false
	}
	if at := o.GetDeletionTimestamp(); at != nil {
		deletion = at.Time
	}
	return o.GetUID(), deletion, true
}
