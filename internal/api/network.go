package api

import (
	_ "k8s.io/kubernetes/pkg/apis/discovery/install"
	_ "k8s.io/kubernetes/pkg/apis/networking/install"
	"k8s.io/kubernetes/pkg/registry/discovery/endpointslice"
	"k8s.io/kubernetes/pkg/registry/networking/ingress"
	"k8s.io/kubernetes/pkg/registry/networking/ingressclass"
	"k8s.io/kubernetes/pkg/registry/networking/ipaddress"
	"k8s.io/kubernetes/pkg/registry/networking/networkpolicy"
	"k8s.io/kubernetes/pkg/registry/networking/servicecidr"
)

func networkingResources() []*Resource {
	out := define("networking.k8s.io",
		definition{resource: "ingressclasses", kind: "IngressClass", cluster: true, strategy: ingressclass.Strategy},
		definition{resource: "ingresses", kind: "Ingress", short: []string{"ing"}, prefix: "ingress",
			strategy: ingress.Strategy, status: ingress.StatusStrategy},
		definition{resource: "ipaddresses", kind: "IPAddress", short: []string{"ip"}, cluster: true, strategy: ipaddress.Strategy},
		definition{resource: "networkpolicies", kind: "NetworkPolicy", short: []string{"netpol"}, strategy: networkpolicy.Strategy},
		definition{resource: "servicecidrs", kind: "ServiceCIDR", cluster: true,
			strategy: servicecidr.Strategy, status: servicecidr.StatusStrategy},
	)
	return append(out, define("discovery.k8s.io",
		definition{resource: "endpointslices", kind: "EndpointSlice", strategy: endpointslice.Strategy},
	)...)
}
