package api

import (
	authenticationv1 "k8s.io/api/authentication/v1"
	_ "k8s.io/kubernetes/pkg/apis/authentication/install"
	_ "k8s.io/kubernetes/pkg/apis/authorization/install"
	_ "k8s.io/kubernetes/pkg/apis/certificates/install"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install"
	"k8s.io/kubernetes/pkg/registry/certificates/certificates"
	"k8s.io/kubernetes/pkg/registry/certificates/clustertrustbundle"
	"k8s.io/kubernetes/pkg/registry/certificates/podcertificaterequest"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrole"
	"k8s.io/kubernetes/pkg/registry/rbac/clusterrolebinding"
	"k8s.io/kubernetes/pkg/registry/rbac/role"
	"k8s.io/kubernetes/pkg/registry/rbac/rolebinding"
	"k8s.io/utils/clock"
)

func accessResources() []*Resource {
	requests := podcertificaterequest.NewStrategy()
	out := define("certificates.k8s.io",
		definition{resource: "certificatesigningrequests", kind: "CertificateSigningRequest", short: []string{"csr"}, cluster: true,
			strategy: certificates.Strategy, status: certificates.StatusStrategy,
			subs:   []*Subresource{view("approval", "CertificateSigningRequest", certificates.ApprovalStrategy)},
			fields: signingRequestFields},
		definition{resource: "clustertrustbundles", kind: "ClusterTrustBundle", cluster: true, storage: "v1beta1",
			strategy: clustertrustbundle.Strategy, fields: trustBundleFields},
		definition{resource: "podcertificaterequests", kind: "PodCertificateRequest", storage: "v1beta1",
			strategy: requests, status: podcertificaterequest.NewStatusStrategy(requests, contextAuthorizer{}, clock.RealClock{}),
			fields: podCertificateFields},
	)
	return append(out, define("rbac.authorization.k8s.io",
		definition{resource: "clusterrolebindings", kind: "ClusterRoleBinding", cluster: true, strategy: clusterrolebinding.Strategy},
		definition{resource: "clusterroles", kind: "ClusterRole", cluster: true, strategy: clusterrole.Strategy},
		definition{resource: "rolebindings", kind: "RoleBinding", strategy: rolebinding.Strategy},
		definition{resource: "roles", kind: "Role", strategy: role.Strategy},
	)...)
}

// virtualResources are created but never kept.
func virtualResources() []*Resource {
	create := []string{"create"}
	out := define("", definition{resource: "bindings", kind: "Binding", verbs: create})
	out = append(out, define(authenticationv1.GroupName,
		definition{resource: "selfsubjectreviews", kind: "SelfSubjectReview", cluster: true, verbs: create},
		definition{resource: "tokenreviews", kind: "TokenReview", cluster: true, verbs: create},
	)...)
	return append(out, define("authorization.k8s.io",
		definition{resource: "localsubjectaccessreviews", kind: "LocalSubjectAccessReview", verbs: create},
		definition{resource: "selfsubjectaccessreviews", kind: "SelfSubjectAccessReview", cluster: true, verbs: create},
		definition{resource: "selfsubjectrulesreviews", kind: "SelfSubjectRulesReview", cluster: true, verbs: create},
		definition{resource: "subjectaccessreviews", kind: "SubjectAccessReview", cluster: true, verbs: create},
	)...)
}
