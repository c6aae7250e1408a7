// Package controllers watches over running work and mends it: one package a controller, and
// [All] lists them. A controller is a reconcile.Reconciler of sigs.k8s.io/controller-runtime
// and the kinds whose changes wake it; a [Runner] feeds it from the shared image, one queue a
// controller. They run on the server that leads, and every write of theirs is fenced.
//
// Decisions are pure functions over values; effects are at the edge. Package kit holds what the
// controllers' packages share.
package controllers

import (
	"net/netip"
	"time"

	"k8s.io/apiserver/pkg/cel/openapi/resolver"

	"barque.dev/internal/controllers/apiservice"
	"barque.dev/internal/controllers/cronjob"
	"barque.dev/internal/controllers/csr"
	"barque.dev/internal/controllers/customresourcedefinition"
	"barque.dev/internal/controllers/daemonset"
	"barque.dev/internal/controllers/deployment"
	"barque.dev/internal/controllers/disruption"
	"barque.dev/internal/controllers/endpoints"
	"barque.dev/internal/controllers/endpointslice"
	"barque.dev/internal/controllers/endpointslicemirroring"
	"barque.dev/internal/controllers/extensiontrust"
	"barque.dev/internal/controllers/flowcontrol"
	"barque.dev/internal/controllers/gc"
	"barque.dev/internal/controllers/job"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/kubernetes"
	"barque.dev/internal/controllers/namespace"
	"barque.dev/internal/controllers/nodeipam"
	"barque.dev/internal/controllers/nodelifecycle"
	"barque.dev/internal/controllers/noderole"
	"barque.dev/internal/controllers/podgc"
	"barque.dev/internal/controllers/policystatus"
	"barque.dev/internal/controllers/protection"
	"barque.dev/internal/controllers/replicaset"
	"barque.dev/internal/controllers/resourcequota"
	"barque.dev/internal/controllers/rootca"
	"barque.dev/internal/controllers/serviceaccount"
	"barque.dev/internal/controllers/serviceaccounttoken"
	"barque.dev/internal/controllers/statefulset"
	"barque.dev/internal/controllers/tainteviction"
)

// The types that controllers are made of, from package kit.
type (
	// Controller is a reconciler and what wakes it.
	Controller = kit.Controller
	// Watch turns the changes of one kind into requests.
	Watch = kit.Watch
	// Deps is what controllers are made with.
	Deps = kit.Deps
)

// Cluster is what some controllers must know of the cluster besides its objects.
type Cluster struct {
	// RootCA is the cluster's authority, in PEM.
	RootCA []byte
	// PodCIDR is the range that nodes' ranges are cut from.
	PodCIDR netip.Prefix
	// Sign issues the certificates that approved requests ask for, and Reserved says which names no node may serve under.
	Sign     csr.Signer
	Reserved csr.Reserved
	// SignToken makes the tokens that secrets keep, and UnusedTokens is how long one that nobody asked for may stay unused;
	// 0 is the default.
	SignToken    serviceaccounttoken.Sign
	UnusedTokens time.Duration
	// Witness knows which nodes live, and Nodes says how long they may be silent.
	Witness nodelifecycle.Witness
	Nodes   nodelifecycle.Bounds
	// Servers names the nodes that are servers.
	Servers noderole.Servers
	// Prober finds out which servers can be reached.
	Prober kubernetes.Prober
	// Elsewhere is what aggregated API servers keep.
	Elsewhere namespace.Elsewhere
	// APIServices reaches aggregated API servers, and Trust is what those must know of this cluster, until its channel is closed.
	APIServices apiservice.Prober
	Trust       func() (extensiontrust.Trust, <-chan struct{})
	// Schemas knows the kinds that are served, for policies to be checked against.
	Schemas resolver.SchemaResolver
}

// Portal lists the controllers of what the API itself is made of, which a stock API server has inside. They run wherever
// there are no others.
func Portal(deps Deps, c Cluster) []Controller {
	return []Controller{
		kubernetes.New(deps, c.Prober),
		customresourcedefinition.New(deps),
		apiservice.NewRegistration(deps),
		apiservice.NewAvailability(deps, c.APIServices),
		extensiontrust.New(deps, c.Trust),
		serviceaccounttoken.NewTracking(deps),
		flowcontrol.New(deps),
	}
}

// All lists the controllers that watch over running work. One more controller is one more line.
func All(deps Deps, c Cluster) []Controller {
	return []Controller{
		deployment.New(deps),
		replicaset.New(deps),
		replicaset.NewReplicationController(deps),
		statefulset.New(deps),
		daemonset.New(deps),
		job.New(deps),
		job.NewTTL(deps),
		cronjob.New(deps),
		disruption.New(deps),
		disruption.NewStale(deps),
		endpointslice.New(deps),
		endpointslicemirroring.New(deps),
		endpoints.New(deps),
		namespace.New(deps, c.Elsewhere),
		gc.New(deps),
		serviceaccount.New(deps),
		serviceaccounttoken.New(deps, c.RootCA, c.SignToken),
		serviceaccounttoken.NewCleaner(deps, c.UnusedTokens),
		rootca.New(deps, c.RootCA),
		nodeipam.New(deps, c.PodCIDR),
		noderole.New(deps, c.Servers),
		nodelifecycle.New(deps, c.Witness, c.Nodes),
		tainteviction.New(deps),
		podgc.New(deps),
		csr.New(deps, c.Sign, c.Reserved),
		policystatus.New(deps, c.Schemas),
		resourcequota.New(deps),
		protection.NewClaims(deps),
		protection.NewVolumes(deps),
		protection.NewVolumeAttributes(deps),
	}
}
