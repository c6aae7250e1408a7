package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	genericstorage "k8s.io/apiserver/pkg/storage"

	"barque.dev/internal/store"
)

// errModified is what a client is told that lost a race for an object.
var errModified = errors.New("the object has been modified; please apply your changes to the latest version and try again")

func notFound(gr schema.GroupResource, name string) error { return apierrors.NewNotFound(gr, name) }

// statusError turns an error of the store into the API's. Status errors pass through.
func statusError(err error, gr schema.GroupResource, name, verb string) error {
	if err == nil {
		return nil
	}
	if status := apierrors.APIStatus(nil); errors.As(err, &status) {
		return err
	}
	switch {
	case errors.Is(err, store.ErrNotFound):
		return apierrors.NewNotFound(gr, name)
	case errors.Is(err, store.ErrExists):
		return apierrors.NewAlreadyExists(gr, name)
	case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrOvertaken):
		return apierrors.NewConflict(gr, name, errModified)
	case errors.Is(err, store.ErrFenced):
		return apierrors.NewForbidden(gr, name, store.ErrFenced)
	case errors.Is(err, store.ErrCompacted):
		return apierrors.NewResourceExpired("The provided resource version is too old: its history is no longer kept.")
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrClosed):
		return unavailable(err)
	case errors.Is(err, store.ErrRejected):
		return apierrors.NewTooManyRequests(err.Error(), 1)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return apierrors.NewTimeoutError(fmt.Sprintf("%s %s %q: %v", verb, gr, name, err), 1)
	default:
		return apierrors.NewInternalError(fmt.Errorf("%s %s %q: %w", verb, gr, name, err))
	}
}

// CauseNoQuorum marks the refusals of a server that cannot reach the majority of servers. Another may.
const CauseNoQuorum metav1.CauseType = "NoQuorum"

// unavailable is a 503 that says why. Clients that are told when to try again do so ten times before they show
// the reason, so only those are told whom the loss of the leader hit under way, and whose request was surely not done.
func unavailable(err error) error {
	status := apierrors.NewServiceUnavailable(err.Error())
	status.ErrStatus.Details = &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: CauseNoQuorum, Message: err.Error()}}}
	if store.Passing(err) {
		status.ErrStatus.Details.RetryAfterSeconds = 1
	}
	return status
}

// futureVersion is the error for a resource version that the server has not reached.
func futureVersion(wanted, current int64) error {
	return genericstorage.NewTooLargeResourceVersionError(uint64(wanted), uint64(current), 1)
}

// methodNotSupported tells that a resource does not have a verb.
func methodNotSupported(req Request, verb string) error {
	return apierrors.NewMethodNotSupported(req.groupResource(), verb)
}

// success is the Status of a deletion, binding or eviction.
func success() *metav1.Status {
	return &metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusSuccess,
	}
}

// created is the Status of an action that is created, such as a binding.
func created() *metav1.Status {
	status := success()
	status.Code = http.StatusCreated
	return status
}
