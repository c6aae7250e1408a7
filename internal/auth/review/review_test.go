package review_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apiserver/pkg/authentication/authenticator"

	"barque.dev/internal/auth/review"
)

// silent asks somebody who never answers.
type silent struct{ asked chan struct{} }

func (s silent) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	close(s.asked)
	<-req.Context().Done()
	return nil, false, req.Context().Err()
}

// TestATokenReviewEndsWithItsRequest: nobody waits for whom a token belongs to when the one who asked has gone.
func TestATokenReviewEndsWithItsRequest(t *testing.T) {
	s := silent{make(chan struct{})}
	reviewer := &review.Reviewer{Authenticator: s}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := reviewer.Handlers()["tokenreviews.authentication.k8s.io"](ctx, "", "",
			&authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: "t"}})
		ended <- err
	}()
	<-s.asked
	cancel()
	select {
	case err := <-ended:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("it ends with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on")
	}
}
