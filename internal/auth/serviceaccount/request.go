package serviceaccount

import (
	"context"
	"errors"
	"fmt"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	apiserviceaccount "k8s.io/apiserver/pkg/authentication/serviceaccount"
	tokenjwt "k8s.io/apiserver/pkg/authentication/token/jwt"
	"k8s.io/apiserver/pkg/warning"

	"barque.dev/internal/auth/image"
)

const (
	// defaultLifetime is that of a request that asks for none.
	defaultLifetime = time.Hour
	minLifetime     = 10 * time.Minute
	// maxSeconds is the longest lifetime that can be asked for.
	maxSeconds = 1 << 32
	// projectedLifetime is what the ServiceAccount admission asks for in pods. Such tokens
	// are given extendedLifetime, and their use after the asked time is reported: programs
	// that read their token only once go on working (KEP-1205).
	projectedLifetime = time.Hour + 7*time.Second
	extendedLifetime  = 365 * 24 * time.Hour
)

// Requester answers TokenRequests, the subresource "token" of service accounts. It is safe for
// concurrent use.
type Requester struct {
	Image  image.Reader
	Issuer *Issuer
	// Audiences are the API server's, for requests that name none.
	Audiences authenticator.Audiences
	// MaxLifetime shortens what requests ask for, with a warning; 0 is no limit.
	MaxLifetime time.Duration
	// Extend gives pods' own tokens a longer life than they ask for.
	Extend bool
	// CatchUp returns once the image holds all that was acknowledged, by whichever server, before
	// the call; nil when it always does.
	CatchUp func(context.Context) error
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// requestKind names what a Requester answers, in errors.
var requestKind = schema.GroupKind{Group: authenticationv1.GroupName, Kind: "TokenRequest"}

// Create issues a token for the service account name. obj is an
// authentication.k8s.io/v1 TokenRequest; a new one with its status is returned.
func (r *Requester) Create(ctx context.Context, namespace, name string, obj runtime.Object) (runtime.Object, error) {
	in, ok := obj.(*authenticationv1.TokenRequest)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("not a TokenRequest: %T", obj))
	}
	if r.CatchUp != nil {
		if err := r.CatchUp(ctx); err != nil {
			return nil, err
		}
	}
	account, ok := image.Get[*corev1.ServiceAccount](r.Image, core("serviceaccounts"), namespace, name)
	if !ok {
		return nil, apierrors.NewNotFound(core("serviceaccounts"), name)
	}
	now := time.Now()
	if r.Now != nil {
		now = r.Now()
	}
	req := in.DeepCopy()
	if err := r.complete(req, account, now); err != nil {
		return nil, err
	}
	binding, err := r.bind(req.Spec.BoundObjectRef, account)
	if err != nil {
		return nil, err
	}
	if limit := int64(r.MaxLifetime / time.Second); limit > 0 && *req.Spec.ExpirationSeconds > limit {
		warning.AddWarning(ctx, "", fmt.Sprintf("requested expiration of %d seconds shortened to %d seconds",
			*req.Spec.ExpirationSeconds, limit))
		req.Spec.ExpirationSeconds = &limit
	}
	lifetime := time.Duration(*req.Spec.ExpirationSeconds) * time.Second
	token := Token{ServiceAccount: account, Binding: binding, Audiences: req.Spec.Audiences, Lifetime: lifetime}
	if r.Extend && binding.Pod != nil && lifetime == projectedLifetime && r.ours(req.Spec.Audiences) {
		token.Lifetime, token.WarnAfter = extendedLifetime, lifetime
	}
	signed, id, err := r.Issuer.Issue(token, now)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	req.Status = authenticationv1.TokenRequestStatus{Token: signed, ExpirationTimestamp: metav1.NewTime(now.Add(lifetime))}
	audit.AddAuditAnnotation(ctx, apiserviceaccount.IssuedCredentialIDAuditAnnotationKey, tokenjwt.CredentialIDForJTI(id))
	return req, nil
}

// complete fills in what a request leaves open and checks the rest.
func (r *Requester) complete(req *authenticationv1.TokenRequest, account *corev1.ServiceAccount, now time.Time) error {
	var errs field.ErrorList
	if req.Name != "" && req.Name != account.Name {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "name"), req.Name, "must match the service account name if specified"))
	}
	if req.Namespace != "" && req.Namespace != account.Namespace {
		errs = append(errs, field.Invalid(field.NewPath("metadata", "namespace"), req.Namespace, "must match the service account namespace if specified"))
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(requestKind, account.Name, errs)
	}
	if req.UID != "" && req.UID != account.UID {
		return apierrors.NewConflict(schema.GroupResource{Group: requestKind.Group, Resource: requestKind.Kind}, account.Name,
			fmt.Errorf("the UID in the token request (%s) does not match the UID of the service account (%s)", req.UID, account.UID))
	}
	req.Name, req.Namespace, req.UID = account.Name, account.Namespace, account.UID
	req.CreationTimestamp = metav1.NewTime(now)
	if len(req.Spec.Audiences) == 0 {
		req.Spec.Audiences = r.Audiences
	}
	if req.Spec.ExpirationSeconds == nil {
		seconds := int64(defaultLifetime / time.Second)
		req.Spec.ExpirationSeconds = &seconds
	}
	path := field.NewPath("spec", "expirationSeconds")
	switch seconds := *req.Spec.ExpirationSeconds; {
	case seconds < int64(minLifetime/time.Second):
		errs = append(errs, field.Invalid(path, seconds, "may not specify a duration less than 10 minutes"))
	case seconds > maxSeconds:
		errs = append(errs, field.Invalid(path, seconds, "may not specify a duration larger than 2^32 seconds"))
	}
	if len(req.Spec.Attestations) > 0 {
		errs = append(errs, field.Invalid(field.NewPath("spec", "attestations"), req.Spec.Attestations,
			"attestations may only be specified with a webhook bound object reference"))
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(requestKind, "", errs)
	}
	return nil
}

// bind looks up what the token is to live with.
func (r *Requester) bind(ref *authenticationv1.BoundObjectReference, account *corev1.ServiceAccount) (Binding, error) {
	if ref == nil {
		return Binding{}, nil
	}
	gvk := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind)
	var b Binding
	var uid types.UID
	switch (schema.GroupKind{Group: gvk.Group, Kind: gvk.Kind}) {
	case schema.GroupKind{Kind: "Pod"}:
		pod, ok := image.Get[*corev1.Pod](r.Image, core("pods"), account.Namespace, ref.Name)
		if !ok {
			return b, apierrors.NewNotFound(core("pods"), ref.Name)
		}
		if pod.Spec.ServiceAccountName != account.Name {
			return b, apierrors.NewBadRequest(fmt.Sprintf(
				"cannot bind token for serviceaccount %q to pod running with different serviceaccount name.", account.Name))
		}
		b.Pod, uid = pod, pod.UID
		if name := pod.Spec.NodeName; name != "" {
			b.Node, ok = image.Get[*corev1.Node](r.Image, core("nodes"), "", name)
			if !ok {
				b.Node = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
			}
		}
	case schema.GroupKind{Kind: "Node"}:
		node, ok := image.Get[*corev1.Node](r.Image, core("nodes"), "", ref.Name)
		if !ok {
			return b, apierrors.NewNotFound(core("nodes"), ref.Name)
		}
		b.Node, uid = node, node.UID
	case schema.GroupKind{Kind: "Secret"}:
		secret, ok := image.Get[*corev1.Secret](r.Image, core("secrets"), account.Namespace, ref.Name)
		if !ok {
			return b, apierrors.NewNotFound(core("secrets"), ref.Name)
		}
		b.Secret, uid = secret, secret.UID
	default:
		return b, apierrors.NewBadRequest(fmt.Sprintf("cannot bind token to object of type %s", gvk))
	}
	if ref.UID != "" && ref.UID != uid {
		return b, apierrors.NewConflict(schema.GroupResource{Group: gvk.Group, Resource: gvk.Kind}, ref.Name,
			errors.New("the UID in the bound object reference ("+string(ref.UID)+") does not match the UID in record. "+
				"The object might have been deleted and then recreated"))
	}
	return b, nil
}

// ours tells whether all audiences are the API server's.
func (r *Requester) ours(audiences []string) bool {
	for _, a := range audiences {
		if !r.Audiences.Has(a) {
			return false
		}
	}
	return true
}

// core names a resource of the core group.
func core(name string) schema.GroupResource { return schema.GroupResource{Resource: name} }
