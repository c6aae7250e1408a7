package objects

import (
	"context"
	"maps"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"barque.dev/internal/agent/volume"
)

// Tokens asks for service account tokens bound to pods (TokenRequest) and keeps them until four
// fifths of their life, or a day, have passed. It is safe for concurrent use.
type Tokens struct {
	client kubernetes.Interface
	now    func() time.Time

	mu    sync.Mutex
	known map[tokenKey]issued
}

type tokenKey struct {
	pod      types.UID
	audience string
	seconds  int64
}

type issued struct {
	token   volume.Token
	expires time.Time
}

// NewTokens returns an empty Tokens.
func NewTokens(client kubernetes.Interface, now func() time.Time) *Tokens {
	return &Tokens{client: client, now: now, known: map[tokenKey]issued{}}
}

// maxTokenAge: no token is used for longer than a day, however long it would hold.
const maxTokenAge = 24 * time.Hour

// Token returns a token for the pod's service account. One that should be renewed but cannot be is
// returned as long as it holds.
func (t *Tokens) Token(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (volume.Token, error) {
	key := tokenKey{pod.UID, audience, seconds}
	t.mu.Lock()
	have, ok := t.known[key]
	t.mu.Unlock()
	now := t.now()
	if ok && now.Before(have.token.Renew) {
		return have.token, nil
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		ExpirationSeconds: &seconds,
		BoundObjectRef:    &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID},
	}}
	if audience != "" {
		request.Spec.Audiences = []string{audience}
	}
	reply, err := t.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		if ok && now.Before(have.expires) {
			late := have.token
			late.Renew = now.Add(time.Minute)
			return late, nil
		}
		return volume.Token{}, err
	}
	expires := reply.Status.ExpirationTimestamp.Time
	life := expires.Sub(now)
	fresh := issued{expires: expires, token: volume.Token{Value: reply.Status.Token, Renew: now.Add(min(life*4/5, maxTokenAge))}}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known[key] = fresh
	return fresh.token, nil
}

// Drop forgets a pod's tokens.
func (t *Tokens) Drop(uid types.UID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.known, func(k tokenKey, _ issued) bool { return k.pod == uid })
}
