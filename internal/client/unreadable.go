package client

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/store"
)

const (
	// maxUnreadable bounds how many objects an error names (stock: 100).
	maxUnreadable = 100
	// unreadableTime bounds how long a list goes on after it met the first: whoever decrypts may be away, and be asked
	// for each.
	unreadableTime = time.Second
)

// Unreadable collects the objects of a list that can't be read. The zero value is ready for use.
type Unreadable struct {
	named []*store.UnreadableError
	count int
	since time.Time
	cut   bool // there may be more
}

// Add takes an error in. It returns false when the list should not go on: the error is of another kind, or too much time
// has gone into what can't be read.
func (u *Unreadable) Add(err error) bool {
	var one *store.UnreadableError
	if !errors.As(err, &one) {
		return false
	}
	if u.count++; u.count == 1 {
		u.since = time.Now()
	}
	if len(u.named) < maxUnreadable {
		u.named = append(u.named, one)
	}
	u.cut = time.Since(u.since) >= unreadableTime
	return !u.cut
}

// Err is the error of the list, for which apierrors.IsStoreReadError holds, or nil when everything could be read. Its
// causes name the objects by their keys in etcd, as kube-apiserver does (KEP-3926).
func (u *Unreadable) Err(gr schema.GroupResource) error {
	if u.count == 0 {
		return nil
	}
	status := metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Reason: metav1.StatusReasonStoreReadError,
		Message: fmt.Sprintf("failed to read one or more %s from the storage: %v", gr, u.named[0]),
		Details: &metav1.StatusDetails{Group: gr.Group, Kind: gr.Resource, Name: "list"},
	}
	if u.count > 1 {
		status.Message += fmt.Sprintf(" (and %d more)", u.count-1)
	}
	for _, one := range u.named {
		status.Details.Causes = append(status.Details.Causes, metav1.StatusCause{
			Type: metav1.CauseTypeUnexpectedServerResponse, Field: one.EtcdKey(), Message: one.Error(),
		})
	}
	if u.count > len(u.named) || u.cut {
		status.Details.Causes = append(status.Details.Causes, metav1.StatusCause{
			Type: metav1.CauseTypeTooMany, Message: "there are more of them, or there may be",
		})
	}
	return &apierrors.StatusError{ErrStatus: status}
}
