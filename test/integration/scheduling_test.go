package integration

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Pods that fit nowhere say why, in the stock words, by condition and event.
func TestUnschedulableReasons(t *testing.T) {
	s := newScene(t)
	tests := map[string]struct{ spec, want string }{
		"cpu":      {"containers: [{name: c, resources: {requests: {cpu: '1000'}}}]", "0/3 nodes are available: 3 Insufficient cpu."},
		"memory":   {"containers: [{name: c, resources: {requests: {memory: 100Ti}}}]", "0/3 nodes are available: 3 Insufficient memory."},
		"both":     {"containers: [{name: c, resources: {requests: {cpu: '1000', memory: 100Ti}}}]", "3 Insufficient cpu, 3 Insufficient memory."},
		"selector": {"{nodeSelector: {colour: purple}, containers: [{name: c}]}", "3 node(s) didn't match Pod's node affinity/selector."},
		"affinity": {`
affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [nobody]}]}]}}}
containers: [{name: c}]`, "3 node(s) didn't match Pod's node affinity/selector."},
	}
	for name, tt := range tests {
		s.pod(name, tt.spec)
	}
	for name, tt := range tests {
		s.until(name, "is unschedulable", func(p *corev1.Pod) error {
			c := podCondition(p, corev1.PodScheduled)
			if c == nil || c.Status != corev1.ConditionFalse || c.Reason != corev1.PodReasonUnschedulable || !strings.Contains(c.Message, tt.want) {
				return fmt.Errorf("condition %+v lacks %q", c, tt.want)
			}
			return nil
		})
		s.event(name, "FailedScheduling", tt.want)
	}
	// What was missing appears, and the pod runs.
	node := shared.Machines[0].Name
	shared.kubectl(t, "label", "node", node, "colour=purple")
	t.Cleanup(func() { shared.kubectl(t, "label", "node", node, "colour-") })
	p := s.until("selector", "is placed", func(p *corev1.Pod) error {
		if p.Spec.NodeName == "" {
			return fmt.Errorf("not yet")
		}
		return nil
	})
	same(t, "node", p.Spec.NodeName, node)
}

// A host port is used once on each node; the fourth pod of three nodes waits.
func TestHostPortsAndSpreading(t *testing.T) {
	s := newScene(t)
	nodes := map[string]bool{}
	for i := range 3 {
		s.pod(fmt.Sprint("p", i), "containers: [{name: c, command: [sleep, '1000'], ports: [{containerPort: 80, hostPort: 28123}]}]")
	}
	for i := range 3 {
		nodes[s.until(fmt.Sprint("p", i), "runs", podReady).Spec.NodeName] = true
	}
	same(t, "nodes with the port", len(nodes), 3)
	s.pod("p3", "containers: [{name: c, ports: [{containerPort: 80, hostPort: 28123}]}]")
	s.event("p3", "FailedScheduling", "3 node(s) didn't have free ports for the requested pod ports.")

	s.apply(`
apiVersion: apps/v1
kind: Deployment
metadata: {name: spread, namespace: NS}
spec:
  replicas: 3
  selector: {matchLabels: {app: spread}}
  template:
    metadata: {labels: {app: spread}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: BUSYBOX, command: [sleep, "1000"]}]}
`)
	shared.kubectl(t, "-n", s.ns, "rollout", "status", "deployment/spread", "--timeout=60s")
	nodes = map[string]bool{}
	for _, p := range s.pods("app=spread") {
		nodes[p.Spec.NodeName] = true
	}
	same(t, "nodes with a replica", len(nodes), 3)
}

// pods lists pods by label.
func (s *scene) pods(selector string) []corev1.Pod {
	s.Helper()
	list, err := s.client.CoreV1().Pods(s.ns).List(s.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		s.Fatal(err)
	}
	return list.Items
}

// A node that somebody names is not asked by the scheduler; cordons and taints are kept to. These
// change nodes, so this test does not run beside others.
func TestCordonAndTaints(t *testing.T) {
	s := &scene{T: t, ns: shared.namespace(t), client: shared.client(t)}
	node := shared.Machines[2].Name
	pin := "nodeSelector: {kubernetes.io/hostname: " + node + "}\ncontainers: [{name: c, command: [sleep, '1000']}]\n"
	shared.kubectl(t, "cordon", node)
	t.Cleanup(func() { shared.kubectl(t, "uncordon", node) })
	s.pod("cordoned", pin)
	s.event("cordoned", "FailedScheduling", "1 node(s) were unschedulable")
	s.pod("named", "nodeName: "+node+"\ncontainers: [{name: c, command: [sleep, '1000']}]")
	s.until("named", "runs", podReady)
	shared.kubectl(t, "uncordon", node)
	s.until("cordoned", "runs", podReady)

	shared.kubectl(t, "taint", "node", node, "test=yes:NoSchedule")
	t.Cleanup(func() { _, _ = shared.tryKubectl("", "taint", "node", node, "test-") })
	s.pod("repelled", pin)
	s.event("repelled", "FailedScheduling", "1 node(s) had untolerated taint")
	s.pod("tolerant", pin+"tolerations: [{key: test, operator: Exists, effect: NoSchedule}]\n")
	s.until("tolerant", "runs", podReady)
	shared.kubectl(t, "taint", "node", node, "test-")
	s.until("repelled", "runs", podReady)

	shared.kubectl(t, "taint", "node", node, "test=yes:NoExecute")
	s.gone("repelled")
	shared.kubectl(t, "taint", "node", node, "test-")
}
