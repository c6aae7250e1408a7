package api

import (
	"cmp"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/runtime"
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
		definition{resource: "flowschemas", kind: "FlowSchema", cluster: true, strategy: flowschema.Strategy, status: flowschema.StatusStrategy,
			order: byPrecedence},
		definition{resource: "prioritylevelconfigurations", kind: "PriorityLevelConfiguration", cluster: true,
			strategy: prioritylevelconfiguration.Strategy, status: prioritylevelconfiguration.StatusStrategy},
	)...)
}

// byPrecedence orders FlowSchemas as requests are matched with them.
func byPrecedence(a, b runtime.Object) int {
	x, okX := a.(*flowcontrolv1.FlowSchema)
	y, okY := b.(*flowcontrolv1.FlowSchema)
	if !okX || !okY {
		return 0
	}
	return cmp.Or(cmp.Compare(x.Spec.MatchingPrecedence, y.Spec.MatchingPrecedence), strings.Compare(x.Name, y.Name))
}
