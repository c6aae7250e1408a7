package api

import (
	_ "k8s.io/kubernetes/pkg/apis/apps/install"
	_ "k8s.io/kubernetes/pkg/apis/autoscaling/install"
	_ "k8s.io/kubernetes/pkg/apis/batch/install"
	_ "k8s.io/kubernetes/pkg/apis/policy/install"
	"k8s.io/kubernetes/pkg/registry/apps/controllerrevision"
	"k8s.io/kubernetes/pkg/registry/apps/daemonset"
	"k8s.io/kubernetes/pkg/registry/apps/deployment"
	"k8s.io/kubernetes/pkg/registry/apps/replicaset"
	"k8s.io/kubernetes/pkg/registry/apps/statefulset"
	"k8s.io/kubernetes/pkg/registry/autoscaling/horizontalpodautoscaler"
	"k8s.io/kubernetes/pkg/registry/batch/cronjob"
	"k8s.io/kubernetes/pkg/registry/batch/job"
	"k8s.io/kubernetes/pkg/registry/policy/poddisruptionbudget"
)

func appsResources() []*Resource {
	return define("apps",
		definition{resource: "controllerrevisions", kind: "ControllerRevision", strategy: controllerrevision.Strategy},
		definition{resource: "daemonsets", kind: "DaemonSet", short: []string{"ds"}, categories: categoryAll(),
			strategy: daemonset.Strategy, status: daemonset.StatusStrategy},
		definition{resource: "deployments", kind: "Deployment", short: []string{"deploy"}, categories: categoryAll(),
			strategy: deployment.Strategy, status: deployment.StatusStrategy, subs: []*Subresource{scale()}},
		definition{resource: "replicasets", kind: "ReplicaSet", short: []string{"rs"}, categories: categoryAll(),
			strategy: replicaset.Strategy, status: replicaset.StatusStrategy, subs: []*Subresource{scale()}, fields: replicaSetFields},
		definition{resource: "statefulsets", kind: "StatefulSet", short: []string{"sts"}, categories: categoryAll(),
			strategy: statefulset.Strategy, status: statefulset.StatusStrategy, subs: []*Subresource{scale()}, onRead: completeStatefulSet},
	)
}

func batchResources() []*Resource {
	return define("batch",
		definition{resource: "cronjobs", kind: "CronJob", short: []string{"cj"}, categories: categoryAll(),
			strategy: cronjob.Strategy, status: cronjob.StatusStrategy},
		definition{resource: "jobs", kind: "Job", categories: categoryAll(),
			strategy: job.Strategy, status: job.StatusStrategy, fields: jobFields},
	)
}

func policyResources() []*Resource {
	out := define("policy",
		definition{resource: "poddisruptionbudgets", kind: "PodDisruptionBudget", short: []string{"pdb"},
			strategy: poddisruptionbudget.Strategy, status: poddisruptionbudget.StatusStrategy},
	)
	return append(out, define("autoscaling",
		definition{resource: "horizontalpodautoscalers", kind: "HorizontalPodAutoscaler", short: []string{"hpa"}, categories: categoryAll(),
			served: []string{"v2", "v1"}, strategy: horizontalpodautoscaler.Strategy, status: horizontalpodautoscaler.StatusStrategy},
	)...)
}
