// Package reviews re-exports stock's validation of access reviews, so that the package which
// answers them need not import k8s.io/kubernetes.
package reviews

import (
	"context"
	"fmt"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/apis/authorization"
	_ "k8s.io/kubernetes/pkg/apis/authorization/install"
	"k8s.io/kubernetes/pkg/apis/authorization/validation"
)

// Validate tells what is wrong with a SubjectAccessReview, LocalSubjectAccessReview or
// SelfSubjectAccessReview of authorization.k8s.io/v1 that somebody wants to create.
func Validate(ctx context.Context, review runtime.Object) field.ErrorList {
	scheme := legacyscheme.Scheme
	// The version that is validated is that of the review, whatever path it came by.
	ctx = request.WithRequestInfo(ctx, &request.RequestInfo{
		IsResourceRequest: true, APIGroup: authorization.GroupName, APIVersion: authorizationv1.SchemeGroupVersion.Version,
	})
	hub, err := scheme.ConvertToVersion(review, authorization.SchemeGroupVersion)
	if err != nil {
		return field.ErrorList{field.InternalError(nil, fmt.Errorf("convert %T: %w", review, err))}
	}
	switch hub := hub.(type) {
	case *authorization.SubjectAccessReview:
		return validation.ValidateSubjectAccessReviewCreate(ctx, scheme, hub)
	case *authorization.LocalSubjectAccessReview:
		return validation.ValidateLocalSubjectAccessReviewCreate(ctx, scheme, hub)
	case *authorization.SelfSubjectAccessReview:
		return validation.ValidateSelfSubjectAccessReviewCreate(ctx, scheme, hub)
	}
	return field.ErrorList{field.InternalError(nil, fmt.Errorf("%T is no access review", review))}
}
