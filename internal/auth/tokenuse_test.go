package auth_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/warning"

	"barque.dev/internal/auth"
	"barque.dev/internal/auth/serviceaccount"
)

// warned keeps warnings.
type warned []string

func (w *warned) AddWarning(_, text string) { *w = append(*w, text) }

// TestUsesOfTokensWithoutAnEnd: such tokens are counted, warned of where nobody asked for them, refused when they are
// marked, and each use of a day is noted once in the secret.
func TestUsesOfTokensWithoutAnEnd(t *testing.T) {
	f := newFixture(t)
	f.now = time.Date(2030, 1, 1, 23, 0, 0, 0, time.UTC)
	config, registry := f.config(), prometheus.NewRegistry()
	marks := make(chan string, 10)
	config.Metrics = registry
	config.MarkTokenUse = func(ctx context.Context, s *corev1.Secret, day string) error {
		select {
		case marks <- s.Name + " " + day:
		case <-ctx.Done():
			return ctx.Err()
		}
		if s.Name == "unmarkable" {
			return errors.New("no quorum")
		}
		marked := s.DeepCopy()
		metav1.SetMetaDataLabel(&marked.ObjectMeta, serviceaccount.LastUsedLabel, day)
		f.image.Put(core("secrets"), marked)
		return nil
	}
	var err error
	if f.Auth, err = auth.New(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "sa", UID: "sa-uid"}, Secrets: []corev1.ObjectReference{{Name: "made"}}}
	f.image.Put(core("serviceaccounts"), account)
	secret := func(name string, labels map[string]string) http.Header {
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, Labels: labels}, Type: corev1.SecretTypeServiceAccountToken}
		token, err := f.Issuer.IssueLegacy(account, s)
		if err != nil {
			t.Fatal(err)
		}
		s.Data = map[string][]byte{corev1.ServiceAccountTokenKey: []byte(token)}
		f.image.Put(core("secrets"), s)
		return bearer(token)
	}
	ask := func(h http.Header) (accepted bool, warnings warned) {
		req := f.request("/api", h.Clone())
		_, accepted, err := f.Authenticator.AuthenticateRequest(req.WithContext(warning.WithWarningRecorder(req.Context(), &warnings)))
		return accepted && err == nil, warnings
	}
	unmarkable, asked, made := secret("unmarkable", nil), secret("asked", nil), secret("made", nil)
	tomorrow := secret("tomorrow", map[string]string{serviceaccount.LastUsedLabel: "2030-01-02"})
	invalid := secret("invalid", map[string]string{serviceaccount.InvalidSinceLabel: "2029-01-01", serviceaccount.LastUsedLabel: "2029-01-01"})
	for _, tt := range []struct {
		name     string
		token    http.Header
		accepted bool
		warnings int
	}{
		{"unmarkable", unmarkable, true, 0}, {"asked", asked, true, 0}, {"asked again", asked, true, 0},
		{"made", made, true, 1}, {"tomorrow", tomorrow, true, 0}, {"invalid", invalid, false, 0},
	} {
		if accepted, warnings := ask(tt.token); accepted != tt.accepted || len(warnings) != tt.warnings {
			t.Errorf("%s: accepted %v, warnings %q", tt.name, accepted, warnings)
		}
	}
	for range 300 { // a busy one that can't be marked: it takes the place of nobody, and is tried once
		ask(unmarkable)
	}
	ask(secret("late", nil))
	f.run(t) // not before: they all wait
	for _, want := range []string{"unmarkable 2030-01-01", "asked 2030-01-01", "made 2030-01-01", "invalid 2030-01-01", "late 2030-01-01"} {
		select {
		case got := <-marks:
			if got != want {
				t.Errorf("noted %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("nobody notes %q", want)
		}
	}
	want := ""
	for _, m := range []struct {
		name, help string
		count      int
	}{
		{"invalid_legacy_auto_token_uses_total", "Requests with tokens without an end that were marked invalid.", 1},
		{"legacy_auto_token_uses_total", "Requests with tokens without an end that a cluster made by itself.", 1},
		{"legacy_manual_token_uses_total", "Requests with tokens without an end that somebody asked for.", 305},
		{"legacy_tokens_total", "Requests with tokens without an end.", 307},
	} {
		want += fmt.Sprintf("# HELP serviceaccount_%[1]s %[2]s\n# TYPE serviceaccount_%[1]s counter\nserviceaccount_%[1]s %[3]d\n", m.name, m.help, m.count)
	}
	err = testutil.GatherAndCompare(registry, strings.NewReader(want), "serviceaccount_invalid_legacy_auto_token_uses_total",
		"serviceaccount_legacy_auto_token_uses_total", "serviceaccount_legacy_manual_token_uses_total", "serviceaccount_legacy_tokens_total")
	if err != nil {
		t.Error(err)
	}
}

// What is noted of a token that is reviewed is not said of who asks for the review: nothing goes into the audit event of that
// request, and no warning to its client.
func TestReviewedTokensAreNotTheCallers(t *testing.T) {
	f := newFixture(t)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "sa", UID: "sa-uid"}, Secrets: []corev1.ObjectReference{{Name: "made"}}}
	f.image.Put(core("serviceaccounts"), account)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "made"}, Type: corev1.SecretTypeServiceAccountToken}
	token, err := f.Issuer.IssueLegacy(account, secret)
	if err != nil {
		t.Fatal(err)
	}
	secret.Data = map[string][]byte{corev1.ServiceAccountTokenKey: []byte(token)}
	f.image.Put(core("secrets"), secret)

	var warnings warned
	ctx := audit.WithAuditContext(warning.WithWarningRecorder(t.Context(), &warnings))
	out, err := f.Virtual()["tokenreviews.authentication.k8s.io"](ctx, "", "",
		&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}})
	if err != nil {
		t.Fatal(err)
	}
	if status := out.(*authenticationv1.TokenReview).Status; !status.Authenticated || status.User.Username != "system:serviceaccount:a:sa" {
		t.Errorf("%+v", status)
	}
	if noted := audit.AuditContextFrom(ctx).GetEventAnnotations(); len(noted) > 0 || len(warnings) > 0 {
		t.Errorf("noted of the caller: %v, %q", noted, warnings)
	}
}
