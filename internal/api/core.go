package api

import (
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	_ "k8s.io/kubernetes/pkg/apis/core/install"
	_ "k8s.io/kubernetes/pkg/apis/events/install"
	"k8s.io/kubernetes/pkg/registry/core/configmap"
	"k8s.io/kubernetes/pkg/registry/core/endpoint"
	"k8s.io/kubernetes/pkg/registry/core/event"
	"k8s.io/kubernetes/pkg/registry/core/limitrange"
	"k8s.io/kubernetes/pkg/registry/core/namespace"
	"k8s.io/kubernetes/pkg/registry/core/node"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolume"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolumeclaim"
	"k8s.io/kubernetes/pkg/registry/core/pod"
	"k8s.io/kubernetes/pkg/registry/core/podtemplate"
	"k8s.io/kubernetes/pkg/registry/core/replicationcontroller"
	"k8s.io/kubernetes/pkg/registry/core/resourcequota"
	"k8s.io/kubernetes/pkg/registry/core/secret"
	"k8s.io/kubernetes/pkg/registry/core/service"
	"k8s.io/kubernetes/pkg/registry/core/serviceaccount"
)

// EventTTL is how long an Event lasts after its last write, kube-apiserver's --event-ttl.
const EventTTL = time.Hour

func categoryAll() []string { return []string{"all"} }

func coreResources() []*Resource {
	out := define("",
		definition{resource: "configmaps", kind: "ConfigMap", short: []string{"cm"}, strategy: configmap.Strategy},
		definition{resource: "endpoints", kind: "Endpoints", short: []string{"ep"}, prefix: "services/endpoints", strategy: endpoint.Strategy},
		definition{resource: "limitranges", kind: "LimitRange", short: []string{"limits"}, strategy: limitrange.Strategy},
		definition{resource: "persistentvolumeclaims", kind: "PersistentVolumeClaim", short: []string{"pvc"}, returns: true,
			strategy: persistentvolumeclaim.Strategy, status: persistentvolumeclaim.StatusStrategy,
			fields: nameField, onRead: completeClaim},
		definition{resource: "persistentvolumes", kind: "PersistentVolume", short: []string{"pv"}, cluster: true, returns: true,
			strategy: persistentvolume.Strategy, status: persistentvolume.StatusStrategy, fields: nameField},
		definition{resource: "podtemplates", kind: "PodTemplate", returns: true, strategy: podtemplate.Strategy},
		definition{resource: "replicationcontrollers", kind: "ReplicationController", short: []string{"rc"}, categories: categoryAll(),
			prefix: "controllers", strategy: replicationcontroller.Strategy, status: replicationcontroller.StatusStrategy,
			subs: []*Subresource{scale()}, fields: replicationControllerFields},
		definition{resource: "resourcequotas", kind: "ResourceQuota", short: []string{"quota"}, returns: true,
			strategy: resourcequota.Strategy, status: resourcequota.StatusStrategy},
		definition{resource: "secrets", kind: "Secret", strategy: secret.Strategy, fields: secretFields, indexes: secretIndexes()},
		definition{resource: "serviceaccounts", kind: "ServiceAccount", short: []string{"sa"}, returns: true, strategy: serviceaccount.Strategy,
			subs: []*Subresource{action("token", authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"))}},
		definition{resource: "services", kind: "Service", short: []string{"svc"}, categories: categoryAll(), returns: true,
			prefix: "services/specs", strategy: service.Strategy, status: service.StatusStrategy,
			subs: []*Subresource{proxy("ServiceProxyOptions")}, fields: serviceFields, onRead: completeService},
		namespaces(), nodes(), pods(), events(),
	)
	return append(out, define("events.k8s.io", viewOfEvents())...)
}

func namespaces() definition {
	finalize := view("finalize", "Namespace", namespace.FinalizeStrategy)
	finalize.Verbs = []string{"update"}
	return definition{resource: "namespaces", kind: "Namespace", short: []string{"ns"}, cluster: true, returns: true,
		verbs:    []string{"create", "delete", "get", "list", "patch", "update", "watch"},
		strategy: namespace.Strategy, status: namespace.StatusStrategy,
		subs: []*Subresource{finalize}, fields: namespaceFields}
}

func nodes() definition {
	return definition{resource: "nodes", kind: "Node", short: []string{"no"}, cluster: true, prefix: "minions",
		strategy: node.Strategy, status: node.StatusStrategy,
		subs: []*Subresource{proxy("NodeProxyOptions")}, fields: nodeFields}
}

func pods() definition {
	stream := []string{"create", "get"}
	logs := connect("log", "Pod", "get")
	return definition{resource: "pods", kind: "Pod", short: []string{"po"}, categories: categoryAll(), returns: true,
		strategy: pod.Strategy, status: pod.StatusStrategy,
		subs: []*Subresource{
			action("binding", schema.GroupVersionKind{Kind: "Binding"}),
			action("eviction", policyv1.SchemeGroupVersion.WithKind("Eviction")),
			viewWithoutReset("ephemeralcontainers", "Pod", pod.EphemeralContainersStrategy),
			viewWithoutReset("resize", "Pod", pod.ResizeStrategy),
			connect("attach", "PodAttachOptions", stream...),
			connect("exec", "PodExecOptions", stream...),
			connect("portforward", "PodPortForwardOptions", stream...),
			logs, proxy("PodProxyOptions"),
		},
		fields: podFields, indexes: podIndexes()}
}

func events() definition {
	return definition{resource: "events", kind: "Event", short: []string{"ev"}, ttl: EventTTL,
		strategy: event.Strategy, fields: eventFields, indexes: eventIndexes()}
}

// viewOfEvents is the same events in another group; core/v1 is what is kept.
func viewOfEvents() definition {
	d := events()
	group := corev1.GroupName
	d.storageGroup = &group
	return d
}

// RangeAllocations is where allocators keep their bitmaps, as kube-apiserver does. Clients do
// not see it: it is not among Resources. Its one key is "servicenodeports".
func RangeAllocations() *Resource {
	return define("", definition{resource: "rangeallocations", kind: "RangeAllocation", cluster: true, verbs: []string{},
		prefix: "ranges"})[0]
}
