package api

import "k8s.io/apimachinery/pkg/runtime/schema"

// A Priority is where a version of a group stands among all that is served: groups of a higher one come first in
// discovery, and within a group the versions of a higher one. It matters to users: kubectl resolves a short name
// that several groups use, such as "events", in favour of the first.
type Priority struct{ Group, Version int32 }

// PriorityOf returns the priority of a version of a group as kube-apiserver has it; that of custom resources for what
// is not built in.
func PriorityOf(gv schema.GroupVersion) Priority {
	if gv.Group == "apiregistration.k8s.io" {
		return Priority{Group: 20001} // more than an APIService can ask for
	}
	group, ok := groupPriority(gv.Group)
	if !ok {
		return Priority{Group: 1000, Version: 100}
	}
	p := Priority{Group: group, Version: 15} // of every group's first stable version
	switch gv {
	case schema.GroupVersion{Version: "v1"}:
		p.Version = 1
	case schema.GroupVersion{Group: "autoscaling", Version: "v2"}:
		p.Version = 30
	case schema.GroupVersion{Group: "flowcontrol.apiserver.k8s.io", Version: "v1"}, schema.GroupVersion{Group: "resource.k8s.io", Version: "v1"}:
		p.Version = 21
	}
	return p
}

// groupPriority is a built-in group's; false for others.
func groupPriority(group string) (int32, bool) {
	switch group {
	case "":
		return 18000, true
	case "apps":
		return 17800, true
	case "events.k8s.io":
		return 17750, true
	case "authentication.k8s.io":
		return 17700, true
	case "authorization.k8s.io":
		return 17600, true
	case "autoscaling":
		return 17500, true
	case "batch":
		return 17400, true
	case "certificates.k8s.io":
		return 17300, true
	case "networking.k8s.io":
		return 17200, true
	case "policy":
		return 17100, true
	case "rbac.authorization.k8s.io":
		return 17000, true
	case "storage.k8s.io":
		return 16800, true
	case "apiextensions.k8s.io", "admissionregistration.k8s.io":
		return 16700, true
	case "scheduling.k8s.io":
		return 16600, true
	case "coordination.k8s.io":
		return 16500, true
	case "node.k8s.io":
		return 16300, true
	case "discovery.k8s.io", "resource.k8s.io":
		return 16200, true
	case "flowcontrol.apiserver.k8s.io":
		return 16100, true
	case "storagemigration.k8s.io":
		return 15800, true
	}
	return 0, false
}
