package integration

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// replicas makes a Deployment of n pods labelled app, whose pods have more in their spec.
func (s *scene) replicas(app string, n int, more string) {
	s.Helper()
	s.apply(fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: NS}
spec:
  replicas: %[2]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: c, image: BUSYBOX, command: [sleep, "1000"]}]
      %[3]s
`, app, n, more))
}

// perNode counts the pods labelled app by their nodes.
func (s *scene) perNode(app string) map[string]int {
	s.Helper()
	counts := map[string]int{}
	for _, p := range s.pods("app=" + app) {
		counts[p.Spec.NodeName]++
	}
	return counts
}

// Replicas that avoid each other have a server each, and one too many waits and says why; those that
// want to be near some are where these are.
func TestAffinityBetweenPods(t *testing.T) {
	s := newScene(t)
	s.replicas("apart", 3, "affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: apart}}}]}}")
	shared.kubectl(t, "-n", s.ns, "rollout", "status", "deployment/apart", "--timeout=60s")
	same(t, "nodes with a replica", len(s.perNode("apart")), 3)
	shared.kubectl(t, "-n", s.ns, "scale", "deployment/apart", "--replicas=4")
	waits := s.pending("app=apart")
	s.event(waits.Name, "FailedScheduling", "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules.")

	host := s.pod("host", "containers: [{name: c, command: [sleep, '1000']}]", func(p *corev1.Pod) { p.Labels = map[string]string{"app": "host"} })
	s.until(host.Name, "runs", podReady)
	s.replicas("near", 3, "affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, labelSelector: {matchLabels: {app: host}}}]}}")
	shared.kubectl(t, "-n", s.ns, "rollout", "status", "deployment/near", "--timeout=60s")
	same(t, "nodes of those that want to be near one pod", len(s.perNode("near")), 1)
}

// pending waits for one of the pods to have been refused by all nodes.
func (s *scene) pending(selector string) (found *corev1.Pod) {
	s.Helper()
	eventually(s, patience, "a pod "+selector+" without a node", func() error {
		for _, p := range s.pods(selector) {
			if c := podCondition(&p, corev1.PodScheduled); c != nil && c.Status == corev1.ConditionFalse {
				found = &p
				return nil
			}
		}
		return fmt.Errorf("all have one")
	})
	return found
}

// Replicas with a hard constraint are spread as evenly as it says.
func TestTopologyConstraints(t *testing.T) {
	s := newScene(t)
	s.replicas("even", 6, "topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: even}}}]")
	shared.kubectl(t, "-n", s.ns, "rollout", "status", "deployment/even", "--timeout=60s")
	for node, n := range s.perNode("even") {
		same(t, "replicas on "+node, n, 2)
	}
}

// A pod of higher priority takes the place of one of lower priority, which is told why it goes.
func TestPreemption(t *testing.T) {
	s := newScene(t)
	s.apply("{apiVersion: scheduling.k8s.io/v1, kind: PriorityClass, metadata: {name: NS}, value: 1000}")
	t.Cleanup(func() { shared.kubectl(t, "delete", "priorityclass", s.ns) })
	place := fmt.Sprintf(`
nodeSelector: {kubernetes.io/hostname: %s}
containers: [{name: c, command: [sleep, '1000'], ports: [{containerPort: 80, hostPort: 28124}]}]
`, shared.Machines[1].Name)
	s.pod("low", place, func(p *corev1.Pod) { p.Finalizers = []string{"example.com/look"} })
	s.until("low", "runs", podReady)
	s.pod("high", place+"priorityClassName: "+s.ns+"\n")
	s.event("high", "FailedScheduling", "preemption: found a potential placement for pod on node "+shared.Machines[1].Name)
	s.event("low", "Preempted", "Preempted by pod")
	s.until("low", "goes", func(p *corev1.Pod) error {
		c := podCondition(p, corev1.DisruptionTarget)
		if p.DeletionTimestamp == nil || c == nil || c.Status != corev1.ConditionTrue || c.Reason != corev1.PodReasonPreemptionByScheduler || !strings.HasPrefix(c.Message, "default-scheduler: preempting") {
			return fmt.Errorf("deleted %v, condition %+v", p.DeletionTimestamp, c)
		}
		return nil
	})
	shared.kubectl(t, "-n", s.ns, "patch", "pod", "low", "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
	p := s.until("high", "runs", podReady)
	same(t, "node", p.Spec.NodeName, shared.Machines[1].Name)
	same(t, "nominated node", p.Status.NominatedNodeName, "")
}
