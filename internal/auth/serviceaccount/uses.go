package serviceaccount

import (
	"context"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"barque.dev/internal/auth/image"
)

// Labels of the secrets that keep tokens without an end (KEP-2799). Their values are days ([Day]).
const (
	// LastUsedLabel says when somebody last called with the token.
	LastUsedLabel = "kubernetes.io/legacy-token-last-used"
	// InvalidSinceLabel says since when the token must not be used any more.
	InvalidSinceLabel = "kubernetes.io/legacy-token-invalid-since"
)

// Day is a moment's day in UTC, as in "2026-01-31"; days are in the order of their texts.
func Day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// ParseDay reads what Day writes: the first moment of the day.
func ParseDay(text string) (time.Time, error) { return time.Parse(time.DateOnly, text) }

// A Mark writes into a secret that keeps a token, if it is still the same secret, when the token was last used.
type Mark func(ctx context.Context, secret *corev1.Secret, day string) error

const (
	// waitingUses bounds how many secrets wait to be marked. What finds no room is marked at a later use.
	waitingUses = 256
	// markPause is how long a secret that could not be marked is left alone, however often its token is used.
	markPause = time.Minute
)

// Uses notes in the secrets when their tokens were last used, once a day. No request waits for that. It is safe for
// concurrent use.
type Uses struct {
	image   image.Reader
	mark    Mark
	now     func() time.Time
	log     *slog.Logger
	waiting chan types.NamespacedName

	mu sync.Mutex
	// known are the secrets that wait, and those that are left alone: one that is used a lot takes no other's place.
	known map[types.NamespacedName]struct{}
}

// NewUses marks secrets of the image, while Run runs.
func NewUses(reader image.Reader, mark Mark, now func() time.Time, log *slog.Logger) *Uses {
	return &Uses{
		image: reader, mark: mark, now: now, log: log,
		waiting: make(chan types.NamespacedName, waitingUses), known: map[types.NamespacedName]struct{}{},
	}
}

// note remembers that the token of a secret is in use. On nil it does nothing.
func (u *Uses) note(secret *corev1.Secret) {
	if u == nil || !u.stale(secret) {
		return
	}
	key := types.NamespacedName{Namespace: secret.Namespace, Name: secret.Name}
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, ok := u.known[key]; ok {
		return
	}
	select {
	case u.waiting <- key:
		u.known[key] = struct{}{}
	default:
	}
}

// forget lets a secret wait again at its next use.
func (u *Uses) forget(key types.NamespacedName) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.known, key)
}

// stale tells whether a secret is not marked with today. Another server's clock may be in tomorrow already.
func (u *Uses) stale(secret *corev1.Secret) bool {
	now, marked := u.now().UTC(), secret.Labels[LastUsedLabel]
	return marked != Day(now) && marked != Day(now.AddDate(0, 0, 1))
}

// Run marks secrets until ctx ends. It runs once.
func (u *Uses) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case key := <-u.waiting:
			if err := u.markNow(ctx, key); err != nil && ctx.Err() == nil {
				u.log.Error("the use of a service account token could not be noted", "namespace", key.Namespace, "secret", key.Name, "error", err)
				time.AfterFunc(markPause, func() { u.forget(key) })
				continue
			}
			u.forget(key)
		}
	}
}

// markNow marks a secret unless another server has done so meanwhile.
func (u *Uses) markNow(ctx context.Context, key types.NamespacedName) error {
	secret, ok := image.Get[*corev1.Secret](u.image, schema.GroupResource{Resource: "secrets"}, key.Namespace, key.Name)
	if !ok || !u.stale(secret) {
		return nil
	}
	return u.mark(ctx, secret, Day(u.now()))
}
