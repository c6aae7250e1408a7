// Package rbac re-exports the roles and bindings that every stock Kubernetes cluster starts
// with, so that the packages which decide on access need not import k8s.io/kubernetes.
package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/kubernetes/plugin/pkg/auth/authorizer/rbac/bootstrappolicy"
)

// A Policy is the access rules a cluster starts with. Everything in it is the caller's own.
type Policy struct {
	ClusterRoles        []rbacv1.ClusterRole
	ClusterRoleBindings []rbacv1.ClusterRoleBinding
	// Roles and RoleBindings are in namespaces that may not exist yet.
	Roles        []rbacv1.Role
	RoleBindings []rbacv1.RoleBinding
	// Aggregated maps the name of a role that became an aggregated one to the name of the
	// role that now holds its own rules (clusters older than Kubernetes 1.9).
	Aggregated map[string]string
	// Split maps the name of a binding to a binding that takes over its subjects when it
	// does not exist yet (clusters older than Kubernetes 1.14).
	Split map[string]rbacv1.ClusterRoleBinding
}

// Bootstrap returns the stock policy of this Kubernetes release: that of users and components
// and that of each controller.
func Bootstrap() Policy {
	p := Policy{
		ClusterRoles:        append(bootstrappolicy.ClusterRoles(), bootstrappolicy.ControllerRoles()...),
		ClusterRoleBindings: append(bootstrappolicy.ClusterRoleBindings(), bootstrappolicy.ControllerRoleBindings()...),
		Aggregated:          bootstrappolicy.ClusterRolesToAggregate(),
		Split:               bootstrappolicy.ClusterRoleBindingsToSplit(),
	}
	for namespace, roles := range bootstrappolicy.NamespaceRoles() {
		for _, role := range roles {
			role = *role.DeepCopy()
			role.Namespace = namespace
			p.Roles = append(p.Roles, role)
		}
	}
	for namespace, bindings := range bootstrappolicy.NamespaceRoleBindings() {
		for _, binding := range bindings {
			binding = *binding.DeepCopy()
			binding.Namespace = namespace
			p.RoleBindings = append(p.RoleBindings, binding)
		}
	}
	return p
}

// NodeRules returns what every node may do whatever runs on it.
func NodeRules() []rbacv1.PolicyRule { return bootstrappolicy.NodeRules() }
