package api

import (
	_ "k8s.io/kubernetes/pkg/apis/coordination/install"
	_ "k8s.io/kubernetes/pkg/apis/flowcontrol/install"
	_ "k8s.io/kubernetes/pkg/apis/node/install"
	_ "k8s.io/kubernetes/pkg/apis/scheduling/install"
	"k8s.io/kubernetes/pkg/registry/coordination/lease"
	"k8s.io/kubernetes/pkg/registry/flowcontrol/flowschema"
	"k8s.io/kubernetes/pkg/registry/flowcontrol/prioritylevelconfiguration"
	"k8s.io/kubernetes/pkg/registry/node/runtimeclass"
	"k8s.io/kubernetes/pkg/registry/scheduling/priorityclass"
)

func clusterResources() []*Resource {
	out := define("coordination.k8s.io",
		definition{resource: "leases", kind: "Lease", strategy: lease.Strategy})
	out = append(out, define("node.k8s.io",
		definition{resource: "runtimeclasses", kind: "RuntimeClass", cluster: true, strategy: runtimeclass.Strategy})...)
	out = append(out, define("scheduling.k8s.io",
		definition{resource: "priorityclasses", kind: "PriorityClass", short: []string{"pc"}, cluster: true, strategy: priorityclass.Strategy})...)
	return append(out, define("flowcontrol.apiserver.k8s.io",
		definition{resource: "flowschemas", kind: "FlowSchema", cluster: true, strategy: flowschema.Strategy, status: flowschema.StatusStrategy},
		definition{resource: "prioritylevelconfigurations", kind: "PriorityLevelConfiguration", cluster: true,
			strategy: prioritylevelconfiguration.Strategy, status: prioritylevelconfiguration.StatusStrategy},
	)...)
}
