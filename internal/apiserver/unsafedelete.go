package apiserver

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/filters"
)

const (
	// unsafeDelete is the verb that a user must be allowed besides to delete what can't be read (KEP-3926).
	unsafeDelete = "unsafe-delete-ignore-read-errors"
	// unsafeDeleteAnnotation marks the audit events of those who try.
	unsafeDeleteAnnotation = "apiserver.k8s.io/unsafe-delete-ignore-read-error"
)

// authorizeUnsafeDelete refuses the deletion of an object that can't be read to whom that is not allowed. Options that are
// no good are left to the registry, which says so.
func (x *exchange) authorizeUnsafeDelete(opts *metav1.DeleteOptions) error {
	if len(metav1validation.ValidateDeleteOptions(opts)) > 0 {
		return nil
	}
	ctx := x.req.Context()
	audit.AddAuditAnnotation(ctx, unsafeDeleteAnnotation, "")
	attributes, err := filters.GetAuthorizerAttributes(ctx)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	record := *attributes.(*authorizer.AttributesRecord)
	record.Verb = unsafeDelete
	decision, reason, err := x.server.cfg.Authorizer.Authorize(ctx, &record)
	switch {
	case err != nil:
		err = fmt.Errorf("error while checking permission for %q, %w", unsafeDelete, err)
	case decision == authorizer.DecisionAllow:
		return nil
	default:
		err = fmt.Errorf("not permitted to do %q, reason: %s", unsafeDelete, reason)
	}
	return apierrors.NewForbidden(x.resource.GroupResource, x.target.Name, err)
}
