package review

import (
	"context"
	"errors"
	"fmt"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"

	"barque.dev/internal/api/reviews"
)

// subjectAccess says whether a user may do something.
func (r *Reviewer) subjectAccess(ctx context.Context, _, _ string, obj runtime.Object) (runtime.Object, error) {
	in, ok := obj.(*authorizationv1.SubjectAccessReview)
	if !ok {
		return nil, unexpected("SubjectAccessReview", obj)
	}
	if errs := reviews.Validate(ctx, in); len(errs) > 0 {
		return nil, invalid("SubjectAccessReview", errs)
	}
	out := in.DeepCopy()
	out.Status = r.decide(ctx, subjectOf(&in.Spec), in.Spec.ResourceAttributes, in.Spec.NonResourceAttributes)
	return out, nil
}

// localSubjectAccess says whether a user may do something in the namespace.
func (r *Reviewer) localSubjectAccess(ctx context.Context, namespace, _ string, obj runtime.Object) (runtime.Object, error) {
	in, ok := obj.(*authorizationv1.LocalSubjectAccessReview)
	if !ok {
		return nil, unexpected("LocalSubjectAccessReview", obj)
	}
	if errs := reviews.Validate(ctx, in); len(errs) > 0 {
		return nil, invalid("LocalSubjectAccessReview", errs)
	}
	if namespace != "" && namespace != in.Spec.ResourceAttributes.Namespace {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("spec.resourceAttributes.namespace must match namespace: %v", namespace))
	}
	out := in.DeepCopy()
	out.Status = r.decide(ctx, subjectOf(&in.Spec), in.Spec.ResourceAttributes, nil)
	return out, nil
}

// selfSubjectAccess says whether the caller may do something.
func (r *Reviewer) selfSubjectAccess(ctx context.Context, _, _ string, obj runtime.Object) (runtime.Object, error) {
	in, ok := obj.(*authorizationv1.SelfSubjectAccessReview)
	if !ok {
		return nil, unexpected("SelfSubjectAccessReview", obj)
	}
	if errs := reviews.Validate(ctx, in); len(errs) > 0 {
		return nil, invalid("SelfSubjectAccessReview", errs)
	}
	u, ok := request.UserFrom(ctx)
	if !ok {
		return nil, apierrors.NewBadRequest("no user present on request")
	}
	out := in.DeepCopy()
	out.Status = r.decide(ctx, u, in.Spec.ResourceAttributes, in.Spec.NonResourceAttributes)
	return out, nil
}

func (r *Reviewer) decide(ctx context.Context, u user.Info, resource *authorizationv1.ResourceAttributes, path *authorizationv1.NonResourceAttributes) authorizationv1.SubjectAccessReviewStatus {
	attrs := authorizer.AttributesRecord{User: u}
	if resource != nil {
		attrs = resourceAttributes(u, resource)
	} else if path != nil {
		attrs.Path, attrs.Verb = path.Path, path.Verb
	}
	decision, reason, err := r.Authorizer.Authorize(ctx, attrs)
	return authorizationv1.SubjectAccessReviewStatus{
		Allowed:         decision == authorizer.DecisionAllow,
		Denied:          decision == authorizer.DecisionDeny,
		Reason:          reason,
		EvaluationError: evaluationError(err, &attrs),
	}
}

func subjectOf(spec *authorizationv1.SubjectAccessReviewSpec) user.Info {
	info := &user.DefaultInfo{Name: spec.User, UID: spec.UID, Groups: spec.Groups}
	for key, values := range spec.Extra {
		if info.Extra == nil {
			info.Extra = map[string][]string{}
		}
		info.Extra[key] = values
	}
	return info
}

func resourceAttributes(u user.Info, in *authorizationv1.ResourceAttributes) authorizer.AttributesRecord {
	attrs := authorizer.AttributesRecord{
		User: u, Verb: in.Verb, Namespace: in.Namespace, APIGroup: in.Group, APIVersion: in.Version,
		Resource: in.Resource, Subresource: in.Subresource, Name: in.Name, ResourceRequest: true,
	}
	if attrs.APIVersion == "" {
		attrs.APIVersion = "*"
	}
	if s := in.FieldSelector; s != nil {
		attrs.FieldSelectorRequirements, attrs.FieldSelectorParsingErr = fieldRequirements(s)
	}
	if s := in.LabelSelector; s != nil {
		attrs.LabelSelectorRequirements, attrs.LabelSelectorParsingErr = labelRequirements(s)
	}
	return attrs
}

// fieldRequirements reads what of a selector can be understood. Leaving a part out is safe:
// requirements narrow, so the question becomes a wider one.
func fieldRequirements(s *authorizationv1.FieldSelectorAttributes) (fields.Requirements, error) {
	if s.RawSelector != "" {
		parsed, err := fields.ParseSelector(s.RawSelector)
		if err != nil {
			return nil, err
		}
		return parsed.Requirements(), nil
	}
	var out fields.Requirements
	var errs []error
	for _, q := range s.Requirements {
		operator := selection.Equals
		switch q.Operator {
		case metav1.FieldSelectorOpIn:
		case metav1.FieldSelectorOpNotIn:
			operator = selection.NotEquals
		default:
			errs = append(errs, fmt.Errorf("fieldSelectors do not support %q", q.Operator))
			continue
		}
		if len(q.Values) != 1 {
			errs = append(errs, fmt.Errorf("fieldSelectors must have one value, not %d", len(q.Values)))
			continue
		}
		out = append(out, fields.Requirement{Field: q.Key, Operator: operator, Value: q.Values[0]})
	}
	return out, errors.Join(errs...)
}

// labelRequirements reads what of a selector can be understood, like fieldRequirements.
func labelRequirements(s *authorizationv1.LabelSelectorAttributes) (labels.Requirements, error) {
	if s.RawSelector != "" {
		parsed, err := labels.Parse(s.RawSelector)
		if err != nil {
			return nil, err
		}
		out, _ := parsed.Requirements()
		return out, nil
	}
	operators := map[metav1.LabelSelectorOperator]selection.Operator{
		metav1.LabelSelectorOpIn: selection.In, metav1.LabelSelectorOpNotIn: selection.NotIn,
		metav1.LabelSelectorOpExists: selection.Exists, metav1.LabelSelectorOpDoesNotExist: selection.DoesNotExist,
	}
	var out labels.Requirements
	var errs []error
	for _, q := range s.Requirements {
		operator, ok := operators[q.Operator]
		if !ok {
			errs = append(errs, fmt.Errorf("%q is not a valid label selector operator", q.Operator))
			continue
		}
		r, err := labels.NewRequirement(q.Key, operator, q.Values)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, *r)
	}
	return out, errors.Join(errs...)
}

func evaluationError(err error, attrs *authorizer.AttributesRecord) string {
	var parts []string
	if err != nil {
		parts = append(parts, err.Error())
	}
	ignored := func(name string, kept int) string {
		if kept > 0 {
			return "spec.resourceAttributes." + name + " partially ignored due to parse error"
		}
		return "spec.resourceAttributes." + name + " ignored due to parse error"
	}
	if attrs.FieldSelectorParsingErr != nil {
		parts = append(parts, ignored("fieldSelector", len(attrs.FieldSelectorRequirements)))
	}
	if attrs.LabelSelectorParsingErr != nil {
		parts = append(parts, ignored("labelSelector", len(attrs.LabelSelectorRequirements)))
	}
	return strings.Join(parts, "; ")
}

func invalid(kind string, errs field.ErrorList) error {
	return apierrors.NewInvalid(schema.GroupKind{Group: authorizationv1.GroupName, Kind: kind}, "", errs)
}
