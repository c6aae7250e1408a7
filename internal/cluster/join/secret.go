package join

import (
	"context"
	"crypto/subtle"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// What a token's Secret holds: the stock keys, and one of ours.
const (
	secretPrefix   = "bootstrap-token-"
	keyID          = "token-id"
	keySecret      = "token-secret"
	keyExpiration  = "expiration" // RFC 3339
	keyDescription = "description"
	keyGroups      = "auth-extra-groups"
	keyUseAgent    = "usage-bootstrap-authentication"
	keyUseServer   = "usage-bootstrap-barque-server"
)

// Group is whom the bearer of a token for agents is a member of: it may request a node's
// certificate.
const Group = "system:bootstrappers:barque"

// A Usage is what a token may be used for.
type Usage string

const (
	// UsageAgent lets a node join.
	UsageAgent Usage = "agent"
	// UsageServer lets a server join, which receives every key of the cluster.
	UsageServer Usage = "server"
)

func (u Usage) key() string {
	if u == UsageServer {
		return keyUseServer
	}
	return keyUseAgent
}

// DefaultTTL is how long a token is good unless said otherwise.
const DefaultTTL = 24 * time.Hour

// CreateOptions describe a new token.
type CreateOptions struct {
	// CAHash is put into the token.
	CAHash string
	// Usages must not be empty.
	Usages []Usage
	// TTL is how long it is good; 0 is for ever.
	TTL         time.Duration
	Description string
	// Token, unless zero, is used instead of a new one.
	Token Token
}

// Create makes a token and stores it.
func Create(ctx context.Context, c kubernetes.Interface, o CreateOptions, now time.Time) (Token, error) {
	token := o.Token
	if token.ID == "" {
		var err error
		if token, err = NewToken(o.CAHash); err != nil {
			return Token{}, err
		}
	}
	secret, err := NewSecret(token, o, now)
	if err != nil {
		return Token{}, err
	}
	if _, err := c.CoreV1().Secrets(secret.Namespace).Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		return Token{}, fmt.Errorf("create token %s: %w", token.ID, err)
	}
	return token, nil
}

// NewSecret makes the Secret that a token is kept as.
func NewSecret(token Token, o CreateOptions, now time.Time) (*corev1.Secret, error) {
	if len(o.Usages) == 0 {
		return nil, fmt.Errorf("create token %s: it must be usable for something", token.ID)
	}
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: secretPrefix + token.ID},
		Type:       corev1.SecretTypeBootstrapToken,
		Data:       map[string][]byte{keyID: []byte(token.ID), keySecret: []byte(token.Secret)},
	}
	for _, u := range o.Usages {
		switch u {
		case UsageAgent:
			secret.Data[keyGroups] = []byte(Group)
		case UsageServer:
		default:
			return nil, fmt.Errorf("create token %s: %q is no usage; use %s or %s", token.ID, u, UsageAgent, UsageServer)
		}
		secret.Data[u.key()] = []byte("true")
	}
	if o.TTL > 0 {
		secret.Data[keyExpiration] = []byte(now.Add(o.TTL).UTC().Format(time.RFC3339))
	}
	if o.Description != "" {
		secret.Data[keyDescription] = []byte(o.Description)
	}
	return secret, nil
}

// Info is what may be shown of a token.
type Info struct {
	ID          string
	Usages      []Usage
	Expires     time.Time // zero: never
	Expired     bool
	Description string
}

// List returns the cluster's tokens by id, without their secrets.
func List(ctx context.Context, c kubernetes.Interface, now time.Time) ([]Info, error) {
	list, err := c.CoreV1().Secrets(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{
		FieldSelector: "type=" + string(corev1.SecretTypeBootstrapToken),
	})
	if err != nil {
		return nil, fmt.Errorf("list tokens: %w", err)
	}
	var out []Info
	for i := range list.Items {
		s := &list.Items[i]
		if s.Type != corev1.SecretTypeBootstrapToken {
			continue
		}
		info := Info{ID: strings.TrimPrefix(s.Name, secretPrefix), Description: string(s.Data[keyDescription])}
		for _, u := range []Usage{UsageAgent, UsageServer} {
			if string(s.Data[u.key()]) == "true" {
				info.Usages = append(info.Usages, u)
			}
		}
		info.Expires, info.Expired = expiry(s, now)
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b Info) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// Delete revokes a token by its id; the whole token is understood too.
func Delete(ctx context.Context, c kubernetes.Interface, id string) error {
	if t, err := ParseToken(id); err == nil {
		id = t.ID
	}
	if !isText(id, idLength) {
		return fmt.Errorf("delete token %q: an id has %d letters and digits", id, idLength)
	}
	err := c.CoreV1().Secrets(metav1.NamespaceSystem).Delete(ctx, secretPrefix+id, metav1.DeleteOptions{})
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("delete token %s: the cluster has no such token", id)
	}
	if err != nil {
		return fmt.Errorf("delete token %s: %w", id, err)
	}
	return nil
}

// expiry reads when a token ends; one whose date cannot be read has ended.
func expiry(s *corev1.Secret, now time.Time) (at time.Time, over bool) {
	text := string(s.Data[keyExpiration])
	if text == "" {
		return time.Time{}, false
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, true
	}
	return at, !now.Before(at)
}

// check decides whether a token may be used; secret is nil when the cluster has none of its
// id. A wrong secret is answered like an unknown id, so that ids cannot be found by trying.
func check(secret *corev1.Secret, token Token, usage Usage, now time.Time) *Refusal {
	if secret == nil || secret.DeletionTimestamp != nil || secret.Type != corev1.SecretTypeBootstrapToken ||
		string(secret.Data[keyID]) != token.ID ||
		subtle.ConstantTimeCompare(secret.Data[keySecret], []byte(token.Secret)) != 1 {
		return &Refusal{Code: CodeUnknownToken, Message: fmt.Sprintf("the cluster does not know the token %s: "+
			"it was deleted, has expired or is of another cluster; make a new one on a server with: barque token create", token.ID)}
	}
	if at, over := expiry(secret, now); over {
		return &Refusal{Code: CodeExpiredToken, Message: fmt.Sprintf(
			"the token %s expired at %s; make a new one on a server with: barque token create", token.ID, at.Format(time.RFC3339))}
	}
	if string(secret.Data[usage.key()]) != "true" {
		return &Refusal{Code: CodeWrongUsage, Message: fmt.Sprintf(
			"the token %s may not be used to join as %s; make another one on a server with: barque token create --usage %s", token.ID, usage, usage)}
	}
	return nil
}
