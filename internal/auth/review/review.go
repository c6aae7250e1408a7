// Package review answers the API's questions about access: who a token is, who the caller is,
// and whether somebody may do something. Nothing of it is stored.
package review

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// Create answers one review: obj is of the v1 type, the result a new object with its status.
type Create func(ctx context.Context, namespace, name string, obj runtime.Object) (runtime.Object, error)

// Reviewer answers reviews. It is safe for concurrent use.
type Reviewer struct {
	Authenticator authenticator.Request
	Authorizer    authorizer.Authorizer
	Rules         authorizer.RuleResolver
	// Audiences are the API server's, for token reviews that name none.
	Audiences authenticator.Audiences
}

// Handlers returns the answers by resource, as "resource.group".
func (r *Reviewer) Handlers() map[string]Create {
	return map[string]Create{
		"tokenreviews.authentication.k8s.io":             r.token,
		"selfsubjectreviews.authentication.k8s.io":       r.self,
		"subjectaccessreviews.authorization.k8s.io":      r.subjectAccess,
		"localsubjectaccessreviews.authorization.k8s.io": r.localSubjectAccess,
		"selfsubjectaccessreviews.authorization.k8s.io":  r.selfSubjectAccess,
		"selfsubjectrulesreviews.authorization.k8s.io":   r.selfSubjectRules,
	}
}

func unexpected(want string, got runtime.Object) error {
	return apierrors.NewBadRequest(fmt.Sprintf("not a %s: %T", want, got))
}

// token says whose token it is. A token that nobody recognises is an answer, not an error.
func (r *Reviewer) token(ctx context.Context, _, _ string, obj runtime.Object) (runtime.Object, error) {
	in, ok := obj.(*authenticationv1.TokenReview)
	if !ok {
		return nil, unexpected("TokenReview", obj)
	}
	if in.Spec.Token == "" {
		return nil, apierrors.NewBadRequest("token is required for TokenReview in authentication")
	}
	out := in.DeepCopy()
	out.Status = authenticationv1.TokenReviewStatus{}
	audiences := authenticator.Audiences(in.Spec.Audiences)
	if len(audiences) == 0 {
		audiences = r.Audiences
	}
	// Nothing of the caller's but that they still wait: what is noted of the token, in the audit log or as a warning, is
	// not said of who shows it here.
	bare, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	if len(audiences) > 0 {
		bare = authenticator.WithAudiences(bare, audiences)
	}
	req := (&http.Request{URL: &url.URL{}, Header: http.Header{"Authorization": {"Bearer " + in.Spec.Token}}}).WithContext(bare)
	got, ok, err := r.Authenticator.AuthenticateRequest(req)
	if ctx.Err() != nil {
		return nil, ctx.Err() // which says nothing of the token
	}
	out.Status.Authenticated = ok
	if err != nil {
		out.Status.Error = err.Error()
	}
	if got == nil || got.User == nil {
		return out, nil
	}
	if len(audiences) > 0 && len(audiences.Intersect(got.Audiences)) == 0 {
		return nil, apierrors.NewInternalError(errors.New("error validating audiences"))
	}
	out.Status.User = infoOf(got.User)
	out.Status.Audiences = got.Audiences
	return out, nil
}

func infoOf(u user.Info) authenticationv1.UserInfo {
	info := authenticationv1.UserInfo{Username: u.GetName(), UID: u.GetUID(), Groups: u.GetGroups()}
	for key, values := range u.GetExtra() {
		if info.Extra == nil {
			info.Extra = map[string]authenticationv1.ExtraValue{}
		}
		info.Extra[key] = values
	}
	return info
}

// self says who the caller is.
func (r *Reviewer) self(ctx context.Context, _, _ string, obj runtime.Object) (runtime.Object, error) {
	if _, ok := obj.(*authenticationv1.SelfSubjectReview); !ok {
		return nil, unexpected("SelfSubjectReview", obj)
	}
	u, ok := request.UserFrom(ctx)
	if !ok {
		return nil, apierrors.NewBadRequest("no user present on request")
	}
	return &authenticationv1.SelfSubjectReview{
		ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.Now()},
		Status:     authenticationv1.SelfSubjectReviewStatus{UserInfo: infoOf(u)},
	}, nil
}

// selfSubjectRules lists what the caller may do in a namespace.
func (r *Reviewer) selfSubjectRules(ctx context.Context, _, _ string, obj runtime.Object) (runtime.Object, error) {
	in, ok := obj.(*authorizationv1.SelfSubjectRulesReview)
	if !ok {
		return nil, unexpected("SelfSubjectRulesReview", obj)
	}
	u, ok := request.UserFrom(ctx)
	if !ok {
		return nil, apierrors.NewBadRequest("no user present on request")
	}
	if in.Spec.Namespace == "" {
		return nil, apierrors.NewBadRequest("no namespace on request")
	}
	resources, others, incomplete, err := r.Rules.RulesFor(ctx, u, in.Spec.Namespace)
	// As in stock, the answer does not repeat the question.
	out := &authorizationv1.SelfSubjectRulesReview{Status: authorizationv1.SubjectRulesReviewStatus{
		ResourceRules: []authorizationv1.ResourceRule{}, NonResourceRules: []authorizationv1.NonResourceRule{}, Incomplete: incomplete,
	}}
	for _, rule := range resources {
		out.Status.ResourceRules = append(out.Status.ResourceRules, authorizationv1.ResourceRule{
			Verbs: rule.GetVerbs(), APIGroups: rule.GetAPIGroups(), Resources: rule.GetResources(), ResourceNames: rule.GetResourceNames(),
		})
	}
	for _, rule := range others {
		out.Status.NonResourceRules = append(out.Status.NonResourceRules, authorizationv1.NonResourceRule{
			Verbs: rule.GetVerbs(), NonResourceURLs: rule.GetNonResourceURLs(),
		})
	}
	if err != nil {
		out.Status.EvaluationError = err.Error()
	}
	return out, nil
}
