package registry

import (
	"context"
	"errors"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/store"
)

// IgnoresReadErrors tells whether a deletion is to remove an object that can't be read (KEP-3926).
func IgnoresReadErrors(opts *metav1.DeleteOptions) bool {
	return opts != nil && opts.IgnoreStoreReadErrorWithClusterBreakingPotential != nil && *opts.IgnoreStoreReadErrorWithClusterBreakingPotential
}

var errReadable = errors.New("unsafe deletion is not allowed because the object is decodable from storage")

// deleteUnreadable removes an object that can't be read, and no other. Nobody knows what finalizers it had, who owned it
// and what it owned: it just goes.
func (r *Registry) deleteUnreadable(ctx context.Context, req Request, dryRun bool) (Result, bool, error) {
	for {
		entry, err := r.find(ctx, req)
		if err != nil {
			return Result{}, false, err
		}
		if _, err := entry.Object(); err == nil {
			return Result{}, false, apierrors.NewConflict(req.groupResource(), req.Name, errReadable)
		}
		if !dryRun {
			_, _, err = r.tableOf(req).Delete(ctx, entry.Key(), entry.Revision())
		}
		if err == nil {
			status := success()
			status.Code = http.StatusOK
			status.Details = &metav1.StatusDetails{Name: req.Name, Kind: req.Resource.Kind}
			return Result{Object: status}, true, nil
		}
		if !raced(err) || ctx.Err() != nil {
			return Result{}, false, statusError(err, req.groupResource(), req.Name, "delete")
		}
	}
}

// listError is statusError for a list. One that meets an object that can't be read names all that it would have met.
func listError(err error, req Request, snapshot *store.Snapshot, sel *selector, after store.Key) error {
	if one := (*store.UnreadableError)(nil); !errors.As(err, &one) {
		return statusError(err, req.groupResource(), "", "list")
	}
	var unreadable barqueclient.Unreadable
	snapshot.Ascend(sel.namespace, after, func(entry *store.Entry) bool {
		_, err := entry.Object()
		return err == nil || !sel.inScope(entry.Key()) || unreadable.Add(err)
	})
	if named := unreadable.Err(req.groupResource()); named != nil {
		return named
	}
	return statusError(err, req.groupResource(), "", "list") // it can be read by now
}
