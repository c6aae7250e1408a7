package auth

import (
	"context"
	"crypto/subtle"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	"barque.dev/internal/auth/image"
)

// What a bootstrap token's Secret holds, as in stock Kubernetes.
const (
	tokenSecretPrefix   = "bootstrap-token-"
	tokenIDKey          = "token-id"
	tokenSecretKey      = "token-secret"
	tokenExpirationKey  = "expiration" // RFC 3339
	tokenExtraGroupsKey = "auth-extra-groups"
	tokenUsageKey       = "usage-bootstrap-authentication"
	tokenUserPrefix     = "system:bootstrap:"
	tokenDefaultGroup   = "system:bootstrappers"
	tokenPattern        = `\A([a-z0-9]{6})\.([a-z0-9]{16})\z`
	tokenGroupPattern   = `\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z`
)

// bootstrapTokens recognises the tokens with which new nodes introduce themselves:
// "<id>.<secret>", kept in kube-system as Secrets "bootstrap-token-<id>".
type bootstrapTokens struct {
	image image.Reader
	now   func() time.Time
	token *regexp.Regexp
	group *regexp.Regexp
}

func newBootstrapTokens(r image.Reader, now func() time.Time) *bootstrapTokens {
	return &bootstrapTokens{
		image: r, now: now,
		token: regexp.MustCompile(tokenPattern),
		group: regexp.MustCompile(tokenGroupPattern),
	}
}

// AuthenticateToken implements authenticator.Token. What is no good token is not ours.
func (b *bootstrapTokens) AuthenticateToken(_ context.Context, token string) (*authenticator.Response, bool, error) {
	match := b.token.FindStringSubmatch(token)
	if len(match) != 3 {
		return nil, false, nil
	}
	id, value := match[1], match[2]
	secret, ok := image.Get[*corev1.Secret](b.image, schema.GroupResource{Resource: "secrets"},
		metav1.NamespaceSystem, tokenSecretPrefix+id)
	if !ok || secret.DeletionTimestamp != nil || secret.Type != corev1.SecretTypeBootstrapToken {
		return nil, false, nil
	}
	data := func(key string) string { return string(secret.Data[key]) }
	if subtle.ConstantTimeCompare(secret.Data[tokenSecretKey], []byte(value)) != 1 ||
		data(tokenIDKey) != id ||
		data(tokenUsageKey) != "true" {
		return nil, false, nil
	}
	if at := data(tokenExpirationKey); at != "" {
		expires, err := time.Parse(time.RFC3339, at)
		if err != nil || !b.now().Before(expires) {
			return nil, false, nil
		}
	}
	groups := []string{tokenDefaultGroup}
	for _, g := range strings.FieldsFunc(data(tokenExtraGroupsKey), func(r rune) bool { return r == ',' }) {
		if !b.group.MatchString(g) {
			return nil, false, nil
		}
		groups = append(groups, g)
	}
	return &authenticator.Response{User: &user.DefaultInfo{Name: tokenUserPrefix + id, Groups: groups}}, true, nil
}
