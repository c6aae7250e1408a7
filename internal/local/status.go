package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// machineStatus is what `barque status` shows of a machine.
type machineStatus struct {
	process, api, node string
	pods               int
}

// PrintStatus shows the machines of the cluster in dir: who runs, who leads, who is ready, and
// what runs where. It is an error when something is wrong, so that scripts can tell.
func PrintStatus(ctx context.Context, dir string, w io.Writer) error {
	c, err := Load(dir)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("there is no cluster in %s: start one with `barque up`", dir)
	}
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(w, "cluster   %s in %s\naddress   %s\n", c.ID, c.Dir, c.VIPURL())

	statuses := map[string]*machineStatus{}
	for _, m := range c.Machines {
		statuses[m.Name] = &machineStatus{process: "stopped", api: "-", node: "-"}
		if m.Left() {
			statuses[m.Name].process = "left"
		}
		if pid := m.PID(); pid != 0 {
			statuses[m.Name].process = fmt.Sprintf("running (pid %d)", pid)
		}
	}
	c.readyz(ctx, statuses)
	leader, err := c.survey(ctx, statuses)
	switch {
	case err != nil:
		_, _ = fmt.Fprintf(w, "leader    unknown: %v\n\n", err)
	default:
		_, _ = fmt.Fprintf(w, "leader    %s\n\n", leader)
	}

	t := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "MACHINE\tROLE\tADDRESS\tPROCESS\tAPI\tNODE\tPODS")
	sick := 0
	for _, m := range c.Machines {
		s := statuses[m.Name]
		name := m.Name
		if name == leader {
			name += " *"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\n", name, m.Role, m.IP, s.process, s.api, s.node, s.pods)
		if m.Left() {
			continue
		}
		if !m.Running() || s.node != "Ready" || m.Role == RoleServer && s.api != "ready" {
			sick++
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if sick > 0 {
		return fmt.Errorf("%d of %d machines are not well: `barque up` starts what does not run, `kubectl describe nodes` says what a node lacks", sick, len(c.Machines))
	}
	return nil
}

// readyz asks every server by itself.
func (c *Cluster) readyz(ctx context.Context, statuses map[string]*machineStatus) {
	var wg sync.WaitGroup
	for _, m := range c.Machines {
		if m.Role != RoleServer || !m.Running() {
			continue
		}
		s := statuses[m.Name]
		wg.Go(func() {
			if s.api = "ready"; c.probe(ctx, m) != nil {
				s.api = "not ready"
			}
		})
	}
	wg.Wait()
}

// survey asks the cluster who leads, which nodes are ready and how many pods they run. Any
// server that runs may answer.
func (c *Cluster) survey(ctx context.Context, statuses map[string]*machineStatus) (leader string, err error) {
	err = errors.New("no server runs")
	for _, m := range c.Machines {
		if m.Role != RoleServer || !m.Running() {
			continue
		}
		var config *rest.Config
		if config, err = c.MachineConfig(m); err != nil {
			continue
		}
		var client kubernetes.Interface
		if client, err = kubernetes.NewForConfig(config); err != nil {
			continue
		}
		if leader, err = surveyBy(ctx, client, statuses); err == nil {
			return leader, nil
		}
	}
	return "", err
}

func surveyBy(ctx context.Context, client kubernetes.Interface, statuses map[string]*machineStatus) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	for i := range nodes.Items {
		if s := statuses[nodes.Items[i].Name]; s != nil {
			s.node = NodeState(&nodes.Items[i])
		}
	}
	pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	for i := range pods.Items {
		if s := statuses[pods.Items[i].Spec.NodeName]; s != nil && pods.Items[i].Status.Phase == corev1.PodRunning {
			s.pods++
		}
	}
	lease, err := client.CoordinationV1().Leases(metav1.NamespaceSystem).Get(ctx, "kube-controller-manager", metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	if lease.Spec.HolderIdentity == nil {
		return "nobody", nil
	}
	return *lease.Spec.HolderIdentity, nil
}

// NodeState is a node's state in a word, and what keeps pods from it: "Ready", "Ready,DiskPressure".
func NodeState(n *corev1.Node) string {
	state := "NotReady"
	if ready(n) {
		state = "Ready"
	}
	for _, c := range n.Status.Conditions {
		if isPressure(c) {
			state += "," + string(c.Type)
		}
	}
	if n.Spec.Unschedulable {
		state += ",SchedulingDisabled"
	}
	for _, t := range n.Spec.Taints {
		if t.Key == corev1.TaintNodeOutOfService {
			state += ",lost"
		}
	}
	return state
}

// isPressure tells whether a condition says that a node has too little left of something.
func isPressure(c corev1.NodeCondition) bool {
	switch c.Type {
	case corev1.NodeDiskPressure, corev1.NodeMemoryPressure, corev1.NodePIDPressure:
		return c.Status == corev1.ConditionTrue
	}
	return false
}
