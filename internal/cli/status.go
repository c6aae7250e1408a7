package cli

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/local"
)

// perServer bounds the question to one server.
const perServer = 3 * time.Second

// printStatus shows a cluster on real machines, as its API tells. It is an error when something
// is wrong, so that scripts can tell.
func printStatus(ctx context.Context, a access, w io.Writer) error {
	client, config, err := a.client()
	if err != nil {
		return err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("the cluster at %s does not answer: %w", config.Host, err)
	}
	leases, err := client.CoordinationV1().Leases(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list the servers: %w", err)
	}
	servers, leader := serversOf(leases.Items)
	var saved savedState
	_, _ = fmt.Fprintf(w, "address   %s\nleader    %s\n\n", config.Host, leader)

	t := tabwriter.NewWriter(w, 0, 4, 3, ' ', 0)
	_, _ = fmt.Fprintln(t, "MACHINE\tROLE\tADDRESS\tAPI\tNODE")
	sick, machines := 0, 0
	row := func(name, role, address, api, node string) {
		machines++
		if api == "not ready" || strings.HasPrefix(node, "NotReady") || strings.Contains(node, "Pressure") {
			sick++
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", name, role, address, api, node)
	}
	states := map[string]string{}
	for i := range nodes.Items {
		states[nodes.Items[i].Name] = local.NodeState(&nodes.Items[i])
	}
	for _, name := range slices.Sorted(maps.Keys(servers)) {
		address := servers[name]
		api := "ready"
		if serverReady(ctx, config, address) != nil {
			api = "not ready"
		} else {
			saved.ask(ctx, config, address)
		}
		node, ok := states[name]
		if !ok {
			node = "-"
		}
		row(name, "server", address, api, node)
	}
	for _, m := range witnessesOf(ctx, a) {
		votes := "votes"
		if !m.Answers {
			votes = "not ready"
		}
		row(m.Name, "witness", strings.TrimPrefix(m.Witness, "https://"), votes, "-")
	}
	for i := range nodes.Items {
		n := &nodes.Items[i]
		if _, ok := servers[n.Name]; !ok {
			row(n.Name, "agent", internalIP(n), "-", states[n.Name])
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	saved.print(w)
	if sick > 0 {
		return fmt.Errorf("%d of %d machines are not well: see `kubectl describe nodes`, and `systemctl status barque` and the log on them", sick, machines)
	}
	return saved.problem()
}

// witnessesOf lists the witnesses; none with an etcd of the user's, where nobody knows.
func witnessesOf(ctx context.Context, a access) []membership.Server {
	var list membership.List
	if err := askServers(ctx, a, "GET", membership.PathServers, nil, &list); err != nil {
		return nil
	}
	return slices.DeleteFunc(list.Servers, func(m membership.Server) bool { return m.Witness == "" })
}

// serversOf finds the servers' addresses by name, and who leads.
func serversOf(leases []coordinationv1.Lease) (servers map[string]string, leader string) {
	servers, leader = map[string]string{}, "nobody"
	for i := range leases {
		l := &leases[i]
		switch {
		case l.Labels[apiserver.LeaseLabel] == apiserver.LeaseLabelValue && l.Annotations[apiserver.AddressAnnotation] != "":
			servers[strings.TrimPrefix(l.Name, apiserver.LeasePrefix)] = l.Annotations[apiserver.AddressAnnotation]
		case l.Name == "kube-controller-manager" && l.Spec.HolderIdentity != nil:
			leader = *l.Spec.HolderIdentity
		}
	}
	return servers, leader
}

func serverReady(ctx context.Context, config *rest.Config, address string) error {
	own := rest.CopyConfig(config)
	own.Host, own.Timeout = "https://"+address, perServer
	client, err := kubernetes.NewForConfig(own)
	if err != nil {
		return err
	}
	_, err = client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
	return err
}

func internalIP(n *corev1.Node) string {
	for _, a := range n.Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			return a.Address
		}
	}
	return "-"
}
