package client

import (
	"errors"
	"fmt"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/store"
)

func TestUnreadableIsBounded(t *testing.T) {
	gr := schema.GroupResource{Resource: "secrets"}
	var u Unreadable
	if u.Err(gr) != nil {
		t.Error("an error for nothing")
	}
	one := func(i int) error {
		return fmt.Errorf("read: %w", &store.UnreadableError{Prefix: "/registry/secrets/", Key: store.Key{Namespace: "ns", Name: fmt.Sprint(i)}, Err: errors.New("no key")})
	}
	for i := range maxUnreadable + 1 {
		if !u.Add(one(i)) {
			t.Fatal("it gives up")
		}
	}
	var status apierrors.APIStatus
	if !errors.As(u.Err(gr), &status) {
		t.Fatal("it is no status")
	}
	causes := status.Status().Details.Causes
	if last := causes[len(causes)-1]; len(causes) != maxUnreadable+1 || last.Type != metav1.CauseTypeTooMany {
		t.Errorf("%d causes, the last is %v", len(causes), last)
	}
	u.since = time.Now().Add(-unreadableTime)
	if u.Add(one(0)) {
		t.Error("it goes on for ever")
	}
	if u.Add(errors.New("another")) {
		t.Error("another error is taken in")
	}
}
