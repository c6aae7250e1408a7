// Package node decides what a node's agent may do: read the secrets, config maps, claims and
// service accounts of the pods that are bound to it and no others, and write its own node,
// lease and CSI node. What cannot be told from a request's path (which pod a status belongs to,
// the name of an object being created) the NodeRestriction admission decides.
//
// The rules are those of stock Kubernetes' node authorizer; there is no graph beside the image:
// the pods of a node are found by the store's index over spec.nodeName, and what they refer to
// is read from them (KEP-279).
package node

import (
	"context"
	"fmt"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"barque.dev/internal/auth/image"
	"barque.dev/internal/auth/rbac"
)

const (
	userPrefix = "system:node:"
	group      = user.NodesGroup
)

// PodIndex is the name of the index of pods by node.
const PodIndex = "spec.nodeName"

// Indexes returns the indexes that the store must keep for this package.
func Indexes() []image.Index {
	return []image.Index{{
		Resource: schema.GroupResource{Resource: "pods"}, Name: PodIndex,
		Values: func(obj runtime.Object) []string {
			if pod, ok := obj.(*corev1.Pod); ok && pod.Spec.NodeName != "" {
				return []string{pod.Spec.NodeName}
			}
			return nil
		},
	}}
}

// Name returns the node that a user is. isNode tells whether the user is a node at all; the
// name is empty for a member of system:nodes that does not say which node it is.
func Name(u user.Info) (name string, isNode bool) {
	if u == nil {
		return "", false
	}
	name, ok := strings.CutPrefix(u.GetName(), userPrefix)
	if !ok {
		return "", false
	}
	for _, g := range u.GetGroups() {
		if g == group {
			return name, true
		}
	}
	return "", false
}

// Authorizer allows what nodes may do and has no opinion on everything else. It is safe for
// concurrent use.
type Authorizer struct {
	image image.Reader
	// rules hold for every node, whatever runs on it.
	rules []rbacv1.PolicyRule
}

var (
	_ authorizer.Authorizer   = (*Authorizer)(nil)
	_ authorizer.RuleResolver = (*Authorizer)(nil)
)

// NewAuthorizer decides from an image that keeps [Indexes]; rules hold for every node.
func NewAuthorizer(r image.Reader, rules []rbacv1.PolicyRule) *Authorizer {
	return &Authorizer{image: r, rules: rules}
}

// Authorize implements authorizer.Authorizer.
func (a *Authorizer) Authorize(_ context.Context, attrs authorizer.Attributes) (authorizer.Decision, string, error) {
	node, isNode := Name(attrs.GetUser())
	if !isNode {
		return authorizer.DecisionNoOpinion, "", nil
	}
	if node == "" {
		return authorizer.DecisionNoOpinion, fmt.Sprintf("unknown node for user %q", attrs.GetUser().GetName()), nil
	}
	if denial := a.deny(node, attrs); denial != "" {
		return authorizer.DecisionNoOpinion, denial, nil
	}
	return authorizer.DecisionAllow, "", nil
}

// ConditionsAwareAuthorize implements authorizer.Authorizer; nodes know no conditions.
func (a *Authorizer) ConditionsAwareAuthorize(ctx context.Context, attrs authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return authorizer.ConditionsAwareDecisionFromParts(a.Authorize(ctx, attrs))
}

// EvaluateConditions implements authorizer.Authorizer; nodes know no conditions.
func (a *Authorizer) EvaluateConditions(context.Context, authorizer.ConditionsAwareDecision, authorizer.ConditionsData) (authorizer.Decision, string, error) {
	return authorizer.DecisionDeny, "", authorizer.ErrorConditionEvaluationNotSupported
}

// RulesFor implements authorizer.RuleResolver: a node's rights depend on its pods and cannot
// be listed.
func (a *Authorizer) RulesFor(_ context.Context, u user.Info, _ string) ([]authorizer.ResourceRuleInfo, []authorizer.NonResourceRuleInfo, bool, error) {
	if _, isNode := Name(u); isNode {
		return nil, nil, true, fmt.Errorf("node authorizer does not support user rule resolution")
	}
	return nil, nil, false, nil
}

// deny returns why a node may not do this, or nothing when it may.
func (a *Authorizer) deny(node string, attrs authorizer.Attributes) string {
	if !attrs.IsResourceRequest() {
		return a.byRule(attrs)
	}
	switch (schema.GroupResource{Group: attrs.GetAPIGroup(), Resource: attrs.GetResource()}) {
	case schema.GroupResource{Resource: "secrets"}:
		return a.readReferenced(node, attrs, a.usesSecret)
	case schema.GroupResource{Resource: "configmaps"}:
		return a.readReferenced(node, attrs, a.usesConfigMap)
	case schema.GroupResource{Resource: "persistentvolumeclaims"}:
		return a.claim(node, attrs)
	case schema.GroupResource{Resource: "persistentvolumes"}:
		return a.get(node, attrs, a.usesVolume)
	case schema.GroupResource{Group: resourcev1.GroupName, Resource: "resourceclaims"}:
		return a.get(node, attrs, a.usesResourceClaim)
	case schema.GroupResource{Group: storagev1.GroupName, Resource: "volumeattachments"}:
		return a.get(node, attrs, a.attached)
	case schema.GroupResource{Resource: "serviceaccounts"}:
		return a.serviceAccount(node, attrs)
	case schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}:
		return ownObject(node, attrs, corev1.NamespaceNodeLease)
	case schema.GroupResource{Group: storagev1.GroupName, Resource: "csinodes"}:
		return ownObject(node, attrs, "")
	case schema.GroupResource{Group: resourcev1.GroupName, Resource: "resourceslices"}:
		return a.resourceSlice(node, attrs)
	case schema.GroupResource{Resource: "nodes"}:
		return ownNode(node, attrs)
	case schema.GroupResource{Resource: "pods"}:
		return a.pod(node, attrs)
	case schema.GroupResource{Group: certificatesv1.GroupName, Resource: "podcertificaterequests"}:
		return a.podCertificate(node, attrs)
	}
	return a.byRule(attrs)
}

const denied = "not among the rules of nodes"

func (a *Authorizer) byRule(attrs authorizer.Attributes) string {
	if rbac.Allows(attrs, a.rules) {
		return ""
	}
	return denied
}

// A relation tells whether something on the node refers to an object.
type relation func(node, namespace, name string) bool

func (a *Authorizer) related(node string, attrs authorizer.Attributes, r relation) string {
	if attrs.GetName() == "" {
		return "No Object name found"
	}
	if !r(node, attrs.GetNamespace(), attrs.GetName()) {
		return fmt.Sprintf("no relationship found between node '%s' and this object", node)
	}
	return ""
}

func (a *Authorizer) get(node string, attrs authorizer.Attributes, r relation) string {
	if attrs.GetVerb() != "get" {
		return "can only get individual resources of this type"
	}
	if attrs.GetSubresource() != "" {
		return "cannot get subresource"
	}
	return a.related(node, attrs, r)
}

func (a *Authorizer) readReferenced(node string, attrs authorizer.Attributes, r relation) string {
	switch attrs.GetVerb() {
	case "get", "list", "watch":
	default:
		return "can only read resources of this type"
	}
	if attrs.GetSubresource() != "" {
		return "cannot read subresource"
	}
	if attrs.GetNamespace() == "" {
		return "can only read namespaced object of this type"
	}
	return a.related(node, attrs, r)
}

func (a *Authorizer) claim(node string, attrs authorizer.Attributes) string {
	if attrs.GetSubresource() != "status" {
		return a.get(node, attrs, a.usesClaim)
	}
	if v := attrs.GetVerb(); v != "update" && v != "patch" {
		return "can only get/update/patch this type"
	}
	return a.related(node, attrs, a.usesClaim)
}

func (a *Authorizer) serviceAccount(node string, attrs authorizer.Attributes) string {
	if attrs.GetVerb() == "get" && attrs.GetSubresource() == "" {
		return a.readReferenced(node, attrs, a.usesServiceAccount)
	}
	if attrs.GetVerb() != "create" || attrs.GetName() == "" {
		return "can only create tokens for individual service accounts"
	}
	if attrs.GetSubresource() != "token" {
		return "can only create token subresource of serviceaccount"
	}
	return a.related(node, attrs, a.usesServiceAccount)
}

// ownObject allows all but listing on the object that is called as the node is. On creation
// the name is not known yet: admission checks it.
func ownObject(node string, attrs authorizer.Attributes, namespace string) string {
	if attrs.GetSubresource() != "" {
		return "cannot use a subresource of this type"
	}
	switch attrs.GetVerb() {
	case "get", "create", "update", "patch", "delete":
	default:
		return "can only get, create, update, patch, or delete an object of this type"
	}
	if attrs.GetNamespace() != namespace {
		return fmt.Sprintf("can only access objects of this type in the %q system namespace", namespace)
	}
	if attrs.GetVerb() != "create" && attrs.GetName() != node {
		return "can only access the object with the same name as the requesting node"
	}
	return ""
}

func ownNode(node string, attrs authorizer.Attributes) string {
	switch attrs.GetSubresource() {
	case "":
		switch attrs.GetVerb() {
		case "create", "update", "patch":
			return ""
		case "get", "list", "watch":
			if attrs.GetName() == node {
				return ""
			}
			return fmt.Sprintf("node '%s' cannot read other nodes, only its own Node object", node)
		}
	case "status":
		if v := attrs.GetVerb(); v == "update" || v == "patch" {
			return ""
		}
	}
	return "can only read and write its own node"
}

func (a *Authorizer) pod(node string, attrs authorizer.Attributes) string {
	verb := attrs.GetVerb()
	switch attrs.GetSubresource() {
	case "":
		switch verb {
		case "get":
			return a.get(node, attrs, a.runs)
		case "list", "watch":
			if selectsField(attrs, PodIndex, node) {
				return ""
			}
			if attrs.GetName() != "" {
				return a.related(node, attrs, a.runs)
			}
			return "can only list/watch pods with spec.nodeName field selector"
		case "create", "delete":
			return ""
		}
	case "status":
		if verb == "update" || verb == "patch" {
			return ""
		}
	case "eviction":
		if verb == "create" {
			return ""
		}
	}
	return "can only read its own pods, report their status and evict them"
}

func (a *Authorizer) resourceSlice(node string, attrs authorizer.Attributes) string {
	if attrs.GetSubresource() != "" {
		return "cannot authorize ResourceSlice subresources"
	}
	switch attrs.GetVerb() {
	case "create":
		return ""
	case "get", "update", "patch", "delete":
		return a.related(node, attrs, a.ownsSlice)
	case "watch", "list", "deletecollection":
		if selectsField(attrs, resourcev1.ResourceSliceSelectorNodeName, node) {
			return ""
		}
		return "can only list/watch/deletecollection resourceslices with nodeName field selector"
	}
	return "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection"
}

func (a *Authorizer) podCertificate(node string, attrs authorizer.Attributes) string {
	if attrs.GetSubresource() != "" {
		return "nodes may not access the status subresource of PodCertificateRequests"
	}
	switch attrs.GetVerb() {
	case "create":
		return ""
	case "get":
		return a.related(node, attrs, a.ownsCertificate)
	case "list", "watch":
		if selectsField(attrs, "spec.nodeName", node) {
			return ""
		}
		return "can only list/watch podcertificaterequests with nodeName field selector"
	}
	return fmt.Sprintf("nodes may not %s podcertificaterequests", attrs.GetVerb())
}

// selectsField tells whether the request is limited to objects whose field is value. A
// selector that cannot be parsed limits nothing.
func selectsField(attrs authorizer.Attributes, field, value string) bool {
	requirements, err := attrs.GetFieldSelector()
	if err != nil {
		return false
	}
	for _, r := range requirements {
		if r.Field == field && r.Operator == selection.Equals && r.Value == value {
			return true
		}
	}
	return false
}
