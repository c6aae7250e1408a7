package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"

	apirbac "barque.dev/internal/api/rbac"
)

// Who the policy's own bindings are for.
const (
	// GroupJoiningNodes is whom the bearer of a join token for agents is a member of.
	GroupJoiningNodes = "system:bootstrappers:barque"
	// UserKubeletClient is the API server when it calls a node's agent.
	UserKubeletClient = "kube-apiserver-kubelet-client"
)

// Policy returns what a cluster starts with: the stock policy, and what Barque's nodes need
// beyond it. A stock cluster gets the latter from its installer and from kube-proxy's and
// CoreDNS' manifests.
func Policy() apirbac.Policy {
	p := apirbac.Bootstrap()
	p.ClusterRoles = append(p.ClusterRoles, rbacv1.ClusterRole{
		ObjectMeta: metav1.ObjectMeta{Name: "barque:node-network", Labels: stockLabels(), Annotations: stockAnnotations()},
		Rules: []rbacv1.PolicyRule{
			reads("", "services", "endpoints", "namespaces", "nodes"),
			reads("discovery.k8s.io", "endpointslices"),
			reads("networking.k8s.io", "networkpolicies", "servicecidrs"),
		},
	})
	group := func(name string) rbacv1.Subject {
		return rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: name}
	}
	const requests = "system:certificates.k8s.io:certificatesigningrequests:"
	p.ClusterRoleBindings = append(p.ClusterRoleBindings,
		// Joining nodes request a certificate, which is approved without an administrator …
		binding("barque:node-bootstrap", "system:node-bootstrapper", group(GroupJoiningNodes)),
		binding("barque:node-approve", requests+"nodeclient", group(GroupJoiningNodes)),
		// … and renew it themselves.
		binding("barque:node-renew", requests+"selfnodeclient", group(user.NodesGroup)),
		// What they serve with is approved too, once they have registered the addresses: stock leaves that to somebody.
		binding("barque:node-serving", "system:certificates.k8s.io:kubelet-serving-approver",
			rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: metav1.NamespaceSystem, Name: "certificate-controller"}),
		// Every node runs the service proxy and DNS in its agent.
		binding("barque:node-network", "barque:node-network", group(user.NodesGroup)),
		binding("barque:kubelet-api", "system:kubelet-api-admin",
			rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: UserKubeletClient}),
	)
	return p
}

func reads(group string, resources ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: []string{"get", "list", "watch"}, APIGroups: []string{group}, Resources: resources}
}

func binding(name, role string, subject rbacv1.Subject) rbacv1.ClusterRoleBinding {
	return rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: stockLabels(), Annotations: stockAnnotations()},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
		Subjects:   []rbacv1.Subject{subject},
	}
}

func stockLabels() map[string]string {
	return map[string]string{"kubernetes.io/bootstrapping": "rbac-defaults"}
}

func stockAnnotations() map[string]string {
	return map[string]string{rbacv1.AutoUpdateAnnotationKey: "true"}
}
