package serviceaccount

import (
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	apiserviceaccount "k8s.io/apiserver/pkg/authentication/serviceaccount"
)

// LegacyIssuer issues the tokens without an end.
const LegacyIssuer = "kubernetes/serviceaccount"

// An Issuer signs tokens. It is safe for concurrent use.
type Issuer struct {
	issuer string
	keys   *Keys
}

// NewIssuer makes an issuer that calls itself issuer (an https URL) and signs with the key that
// keys has at that moment.
func NewIssuer(issuer string, keys *Keys) *Issuer { return &Issuer{issuer: issuer, keys: keys} }

// Binding says what a token lives with: a pod (Node is then a hint), a node or a secret; or
// nothing.
type Binding struct {
	Pod    *corev1.Pod
	Node   *corev1.Node
	Secret *corev1.Secret
}

// Token is what to sign.
type Token struct {
	ServiceAccount *corev1.ServiceAccount
	Binding        Binding
	Audiences      []string
	// Lifetime is how long it is valid from now.
	Lifetime time.Duration
	// WarnAfter, unless 0, is when its use starts to be reported though it is valid.
	WarnAfter time.Duration
}

// Issue signs a token. It returns the token and its identifier (the "jti" claim).
func (i *Issuer) Issue(t Token, now time.Time) (token, id string, err error) {
	bound := t.Binding
	if bound.Secret != nil && (bound.Node != nil || bound.Pod != nil) {
		return "", "", errors.New("issue service account token: it can be bound to one object only")
	}
	kube := &kubernetesClaims{
		Namespace:      t.ServiceAccount.Namespace,
		ServiceAccount: reference{t.ServiceAccount.Name, t.ServiceAccount.UID},
	}
	if bound.Pod != nil {
		kube.Pod = &reference{bound.Pod.Name, bound.Pod.UID}
	}
	if bound.Node != nil {
		kube.Node = &reference{bound.Node.Name, bound.Node.UID}
	}
	if bound.Secret != nil {
		kube.Secret = &reference{bound.Secret.Name, bound.Secret.UID}
	}
	if t.WarnAfter > 0 {
		kube.WarnAfter = jwt.NewNumericDate(now.Add(t.WarnAfter))
	}
	id = string(uuid.NewUUID())
	token, err = i.sign(claims{
		Claims: jwt.Claims{
			Issuer: i.issuer, ID: id,
			Subject:   apiserviceaccount.MakeUsername(t.ServiceAccount.Namespace, t.ServiceAccount.Name),
			Audience:  t.Audiences,
			IssuedAt:  jwt.NewNumericDate(now),
			NotBefore: jwt.NewNumericDate(now),
			Expiry:    jwt.NewNumericDate(now.Add(t.Lifetime)),
		},
		Kubernetes: kube,
	})
	return token, id, err
}

// IssueLegacy signs the token without an end that is to be kept in secret, a Secret of type
// kubernetes.io/service-account-token. It is valid as long as the secret holds it.
func (i *Issuer) IssueLegacy(account *corev1.ServiceAccount, secret *corev1.Secret) (string, error) {
	return i.sign(claims{
		Claims: jwt.Claims{
			Issuer:  LegacyIssuer,
			Subject: apiserviceaccount.MakeUsername(account.Namespace, account.Name),
		},
		LegacyName: account.Name, LegacyUID: string(account.UID),
		LegacySecretName: secret.Name, LegacyNamespace: secret.Namespace,
	})
}

func (i *Issuer) sign(c claims) (string, error) {
	token, err := jwt.Signed(i.keys.current.Load().signer).Claims(c).Serialize()
	if err != nil {
		return "", fmt.Errorf("sign service account token of %s: %w", c.Subject, err)
	}
	return token, nil
}
