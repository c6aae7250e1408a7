package registry

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	fieldadmission "k8s.io/apiserver/pkg/endpoints/handlers/fieldmanager"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"

	"barque.dev/internal/apiserver/ownership"
)

// operation is what admission is asked about.
type operation struct {
	req     Request
	op      admission.Operation
	options runtime.Object
	dryRun  bool
	name    string
}

func (o operation) attributes(ctx context.Context, obj, old runtime.Object) admission.Attributes {
	user, _ := request.UserFrom(ctx)
	namespace := o.req.Namespace
	if !o.req.Resource.Namespaced {
		namespace = ""
		if isNamespaces(o.req) {
			namespace = o.name
		}
	}
	return admission.NewAttributesRecord(obj, old, o.req.kind(), namespace, o.name, o.req.gvr(), o.req.Subresource,
		o.op, o.options, o.dryRun, user)
}

func isNamespaces(req Request) bool {
	return req.Resource.Group == "" && req.Resource.Resource == "namespaces"
}

// mutate lets admission change obj, which is of the request's version, in place.
func (r *Registry) mutate(ctx context.Context, o operation, obj, old runtime.Object) error {
	if err := r.checkNamespace(ctx, o); err != nil {
		return err
	}
	if r.cfg.Admission != nil {
		boundCopies()
		mutating, ok := r.cfg.Admission.(admission.MutationInterface)
		if ok && mutating.Handles(o.op) {
			before := fieldsRecord(obj)
			if err := mutating.Admit(ctx, o.attributes(ctx, obj, copyOf(old)), objects{r}); err != nil {
				return statusError(err, o.req.groupResource(), o.name, "admit")
			}
			guardRecord(ctx, obj, before)
		}
	}
	dedupOwners(ctx, obj, true)
	return nil
}

// fieldsRecord is a copy of the record of who owns which field.
func fieldsRecord(obj runtime.Object) []metav1.ManagedFieldsEntry {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil
	}
	return slices.Clone(m.GetManagedFields())
}

// guardRecord takes back what admission made of the record, with a warning, if it makes no sense. Nearly always it is
// untouched, and need not be read.
func guardRecord(ctx context.Context, obj runtime.Object, before []metav1.ManagedFieldsEntry) {
	m, err := meta.Accessor(obj)
	if err != nil || ownership.SameRecord(before, m.GetManagedFields()) {
		return
	}
	if err := managedfields.ValidateManagedFields(m.GetManagedFields()); err != nil {
		m.SetManagedFields(before)
		warning.AddWarning(ctx, "", fmt.Sprintf(fieldadmission.InvalidManagedFieldsAfterMutatingAdmissionWarningFormat, err.Error()))
	}
}

// validate asks admission and guards about the object as it will be kept. Neither changes it, nor the old one, which is
// shared: plugins that validate get no copies, and tests see to it that they need none (package registrytest).
func (r *Registry) validate(ctx context.Context, o operation, obj, old runtime.Object) error {
	if guard := r.cfg.Guards[o.req.groupResource()]; guard != nil && o.op != admission.Delete {
		if err := guard(ctx, o.req, obj, old); err != nil {
			return statusError(err, o.req.groupResource(), o.name, "admit")
		}
	}
	validating, ok := r.cfg.Admission.(admission.ValidationInterface)
	if !ok || !validating.Handles(o.op) {
		return nil
	}
	err := validating.Validate(ctx, o.attributes(ctx, obj, old), objects{r})
	return statusError(err, o.req.groupResource(), o.name, "admit")
}

// validateDelete asks admission about a deletion; mutating plugins are asked too, as in stock.
func (r *Registry) validateDelete(ctx context.Context, o operation, old runtime.Object) error {
	return r.admit(ctx, o, nil, copyOf(old))
}

// admit asks all of admission about what is not an object to keep.
func (r *Registry) admit(ctx context.Context, o operation, obj, old runtime.Object) error {
	if r.cfg.Admission == nil {
		return nil
	}
	attributes := o.attributes(ctx, obj, old)
	if mutating, ok := r.cfg.Admission.(admission.MutationInterface); ok && mutating.Handles(o.op) {
		if err := mutating.Admit(ctx, attributes, objects{r}); err != nil {
			return statusError(err, o.req.groupResource(), o.name, "admit")
		}
	}
	if validating, ok := r.cfg.Admission.(admission.ValidationInterface); ok && validating.Handles(o.op) {
		err := validating.Validate(ctx, attributes, objects{r})
		return statusError(err, o.req.groupResource(), o.name, "admit")
	}
	return nil
}

func copyOf(obj runtime.Object) runtime.Object {
	if obj == nil {
		return nil
	}
	return obj.DeepCopyObject()
}

// immortalNamespaces cannot be deleted: the cluster stands on them.
func immortalNamespaces() []string {
	return []string{metav1.NamespaceDefault, metav1.NamespaceSystem, metav1.NamespacePublic}
}

// checkNamespace refuses to create in a namespace that is missing or being deleted, and to
// delete a namespace that the cluster needs: kube-apiserver's NamespaceLifecycle.
func (r *Registry) checkNamespace(ctx context.Context, o operation) error {
	if o.op == admission.Delete {
		if isNamespaces(o.req) && o.req.Subresource == "" && slices.Contains(immortalNamespaces(), o.name) {
			return apierrors.NewForbidden(o.req.groupResource(), o.name, fmt.Errorf("this namespace may not be deleted"))
		}
		return nil
	}
	if o.op != admission.Create || !o.req.Resource.Namespaced || o.req.Namespace == "" || isAccessReview(o.req) {
		return nil
	}
	namespaces, ok := r.Lookup(corev1.SchemeGroupVersion.WithResource("namespaces"))
	if !ok {
		return nil
	}
	obj, err := r.Find(ctx, namespaces.GroupResource, "", o.req.Namespace)
	if err != nil {
		return err
	}
	ns, ok := obj.(*corev1.Namespace)
	if !ok || ns.Status.Phase != corev1.NamespaceTerminating {
		return nil
	}
	forbidden := apierrors.NewForbidden(o.req.groupResource(), o.name,
		fmt.Errorf("unable to create new content in namespace %s because it is being terminated", ns.Name))
	forbidden.ErrStatus.Details.Causes = append(forbidden.ErrStatus.Details.Causes, metav1.StatusCause{
		Type:    corev1.NamespaceTerminatingCause,
		Message: fmt.Sprintf("namespace %s is being terminated", ns.Name),
		Field:   "metadata.namespace",
	})
	return forbidden
}

// Find returns an object of the storage version for decisions about a request. What the image does not
// hold is looked for again once it has caught up: another server may have just created it.
func (r *Registry) Find(ctx context.Context, gr schema.GroupResource, namespace, name string) (runtime.Object, error) {
	res, ok := r.Lookup(gr.WithVersion(""))
	if !ok || res.Virtual() {
		return nil, notFound(gr, name)
	}
	look := Request{Resource: res, Namespace: namespace, Name: name}
	entry, found := r.Table(gr).Get(look.key())
	if !found {
		var err error
		if entry, err = r.find(ctx, look); err != nil {
			return nil, err
		}
	}
	obj, err := entry.Object()
	if err != nil {
		return nil, statusError(err, gr, name, "read")
	}
	return obj, nil
}

// isAccessReview tells about questions whose answer must not tell whether a namespace exists.
func isAccessReview(req Request) bool {
	return req.Resource.Group == "authorization.k8s.io" && req.Resource.Resource == "localsubjectaccessreviews"
}

// authorizeCreate asks whether the user of a PUT or an apply may create.
func (r *Registry) authorizeCreate(ctx context.Context, req Request) error {
	if r.cfg.Authorizer == nil || trusted(ctx) {
		return nil
	}
	user, _ := request.UserFrom(ctx)
	attributes := authorizer.AttributesRecord{
		User: user, Verb: "create", ResourceRequest: true,
		APIGroup: req.Resource.Group, APIVersion: req.gv().Version, Resource: req.Resource.Resource,
		Subresource: req.Subresource, Namespace: req.Namespace, Name: req.Name,
	}
	if info, ok := request.RequestInfoFrom(ctx); ok {
		attributes.Path = info.Path
	}
	decision, reason, err := r.cfg.Authorizer.Authorize(ctx, attributes)
	switch {
	case decision == authorizer.DecisionAllow:
		return nil
	case err != nil:
		return apierrors.NewInternalError(err)
	default:
		return responsewriters.ForbiddenStatusError(attributes, reason)
	}
}

// dedupOwners drops owner references that are listed twice, with a warning.
func dedupOwners(ctx context.Context, obj runtime.Object, afterAdmission bool) {
	m, err := meta.Accessor(obj)
	if err != nil || len(m.GetOwnerReferences()) < 2 {
		return
	}
	var kept []metav1.OwnerReference
	var twice []string
	seen := map[ownerIdentity]bool{}
	for _, ref := range m.GetOwnerReferences() {
		id := identityOf(ref)
		if seen[id] {
			twice = append(twice, string(ref.UID))
			continue
		}
		seen[id] = true
		kept = append(kept, ref)
	}
	if len(twice) == 0 {
		return
	}
	m.SetOwnerReferences(kept)
	when := ""
	if afterAdmission {
		when = " after mutating admission"
	}
	warning.AddWarning(ctx, "", fmt.Sprintf(".metadata.ownerReferences contains duplicate entries%s; "+
		"duplicates were dropped, owner UIDs: %s", when, strings.Join(twice, ", ")))
}

// ownerIdentity is an owner reference by value: those that say the same are equal. A client may send as many as a request
// has room for, which are too many to compare each with each.
type ownerIdentity struct {
	ref                      metav1.OwnerReference // without its pointers
	controller, blocks       bool
	noController, noBlocking bool // nothing is said of it
}

func identityOf(ref metav1.OwnerReference) ownerIdentity {
	id := ownerIdentity{
		controller: ref.Controller != nil && *ref.Controller, noController: ref.Controller == nil,
		blocks: ref.BlockOwnerDeletion != nil && *ref.BlockOwnerDeletion, noBlocking: ref.BlockOwnerDeletion == nil,
	}
	ref.Controller, ref.BlockOwnerDeletion = nil, nil
	id.ref = ref
	return id
}

// uidConflict is the error for a UID precondition that does not hold.
func uidConflict(req Request, wanted, have types.UID) error {
	return apierrors.NewConflict(req.groupResource(), req.Name,
		//lint:ignore ST1005 stock's words, which clients show
		fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", wanted, have))
}
