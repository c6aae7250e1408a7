package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/cluster/snapshot"
	"barque.dev/internal/cluster/upgrade"
	"barque.dev/internal/node"
)

func newUpgrade(s Streams) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "upgrade",
		Short: "Upgrade all machines of the cluster to this program, or another one, one after the other",
		Long: `Upgrade replaces the program of all machines, servers first, the one that leads last of them, then agents. Pods run on.

First the cluster must be well, and a snapshot is taken. All machines receive the program, and refuse one that does not run on them,
is older, or newer by more than one minor version. Then they switch to it, one at a time. A machine on which the new program is not
ready within minutes goes back to the old one by itself; after each machine the cluster must be well again, or that machine goes
back. Either ends the upgrade; run it again to go on.

The program's file is replaced on each machine, such as /usr/local/bin/barque; the one before stays beside it, as barque.previous.`,
		Example: `  ./barque-v1.5.0 upgrade                       # to this program
  barque upgrade --program ./barque-v1.5.0
  barque upgrade status                         # what each machine runs
  barque upgrade back server-2                  # to what it ran before`,
		Args: noArgs,
	}
	var a access
	var program string
	a.flags(cmd.PersistentFlags())
	cmd.Flags().StringVar(&program, "program", "", "`FILE` of the new program; by default this one's")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if program == "" {
			own, err := upgrade.ProgramFile()
			if err != nil {
				return err
			}
			program = own
		}
		sum, err := upgrade.SumOf(program)
		if err != nil {
			return fmt.Errorf("--program: %w", err)
		}
		f, err := newFleet(a)
		if err != nil {
			return err
		}
		machines, err := f.machines(cmd.Context())
		if err != nil {
			return err
		}
		return upgrade.Rollout{
			Sum: sum, Open: func() (io.ReadCloser, error) { return os.Open(program) },
			Remote: f.remote, Healthy: f.healthy, Snapshot: f.snapshot, Pace: upgrade.DefaultPace,
			Say: func(format string, args ...any) { _, _ = fmt.Fprintf(s.Out, format+"\n", args...) },
		}.Run(cmd.Context(), machines)
	}
	cmd.AddCommand(newUpgradeStatus(s, &a), newUpgradeBack(s, &a), newUpgradeGuard(s))
	return cmd
}

func newUpgradeStatus(s Streams, a *access) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show which program each machine runs, and what came of its last upgrade", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := newFleet(*a)
			if err != nil {
				return err
			}
			machines, err := f.machines(cmd.Context())
			if err != nil {
				return err
			}
			t := tabwriter.NewWriter(s.Out, 0, 4, 3, ' ', 0)
			_, _ = fmt.Fprintln(t, "MACHINE\tBARQUE\tKUBERNETES\tSHA256\tLAST UPGRADE")
			var silent []error
			for _, m := range machines {
				status, err := f.remote(m).Status(cmd.Context())
				if err != nil {
					silent = append(silent, fmt.Errorf("%s: %w", m.Name, err))
					continue
				}
				_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%.12s\t%s\n", m.Name, status.Running.Barque, status.Running.Kubernetes, status.Sum, lastUpgrade(status.Last))
			}
			return errors.Join(append([]error{t.Flush()}, silent...)...)
		},
	}
}

// lastUpgrade says what came of a machine's last upgrade.
func lastUpgrade(r upgrade.Record) string {
	at := r.Time.Local().Format(time.DateTime)
	switch r.Phase {
	case upgrade.None:
		return "-"
	case upgrade.Reverted:
		return fmt.Sprintf("%s reverted from %s: %s", at, r.To.Barque, r.Reason)
	}
	return fmt.Sprintf("%s %s, to %s", at, r.Phase, r.To.Barque)
}

func newUpgradeBack(s Streams, a *access) *cobra.Command {
	return &cobra.Command{
		Use: "back NAME", Short: "Have a machine run the program that it ran before its last upgrade",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errUsage{errors.New("barque upgrade back needs one machine's name, as `barque upgrade status` shows it")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := newFleet(*a)
			if err != nil {
				return err
			}
			machines, err := f.machines(cmd.Context())
			if err != nil {
				return err
			}
			i := slices.IndexFunc(machines, func(m upgrade.Machine) bool { return m.Name == args[0] })
			if i < 0 {
				return errUsage{fmt.Errorf("there is no machine %q: `barque upgrade status` lists them", args[0])}
			}
			if err := f.remote(machines[i]).Back(cmd.Context()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(s.Out, "%s goes back: `barque upgrade status` shows when it is there\n", args[0])
			return err
		},
	}
}

// newUpgradeGuard is what looks after a machine while its program is replaced.
func newUpgradeGuard(s Streams) *cobra.Command {
	return &cobra.Command{
		Use: "guard DIR", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			log, err := newLogger(s.Err, "info")
			if err != nil {
				return err
			}
			return node.Guard(cmd.Context(), args[0], log)
		},
	}
}

// A fleet is a cluster's machines, as its API tells of them.
type fleet struct {
	client  kubernetes.Interface
	config  *rest.Config
	access  access
	servers map[string]string // addresses by name
}

func newFleet(a access) (*fleet, error) {
	client, config, err := a.client()
	if err != nil {
		return nil, err
	}
	return &fleet{client: client, config: config, access: a}, nil
}

// machines lists all of them.
func (f *fleet) machines(ctx context.Context) ([]upgrade.Machine, error) {
	leases, err := f.client.CoordinationV1().Leases(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("the cluster at %s does not answer: %w", f.config.Host, err)
	}
	nodes, err := f.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list the machines: %w", err)
	}
	var leader string
	f.servers, leader = serversOf(leases.Items)
	var machines []upgrade.Machine
	for _, name := range slices.Sorted(maps.Keys(f.servers)) {
		machines = append(machines, upgrade.Machine{Name: name, Server: true, Leads: name == leader})
	}
	for i := range nodes.Items {
		if _, ok := f.servers[nodes.Items[i].Name]; !ok {
			machines = append(machines, upgrade.Machine{Name: nodes.Items[i].Name})
		}
	}
	return upgrade.Order(machines), nil
}

func (f *fleet) remote(m upgrade.Machine) upgrade.Remote {
	own := rest.CopyConfig(f.config)
	if m.Server {
		own.Host = "https://" + f.servers[m.Name]
		return remote{own, ""}
	}
	return remote{own, "/api/v1/nodes/" + m.Name + "/proxy"}
}

// healthy tells what is wrong with the cluster.
func (f *fleet) healthy(ctx context.Context) error {
	for name, address := range f.servers {
		if err := serverReady(ctx, f.config, address); err != nil {
			return fmt.Errorf("server %s is not ready: %w", name, err)
		}
	}
	var list membership.List
	ctx, cancel := context.WithTimeout(ctx, perServer)
	defer cancel()
	if err := askServers(ctx, f.access, "GET", membership.PathServers, nil, &list); err != nil {
		return err
	}
	led := false
	for _, m := range list.Servers {
		led = led || m.Leader
		if !m.Answers {
			return fmt.Errorf("server %s does not answer", m.Name)
		}
	}
	if !led {
		return errors.New("no server leads")
	}
	nodes, err := f.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list the nodes: %w", err)
	}
	for i := range nodes.Items {
		if !isReady(&nodes.Items[i]) {
			return fmt.Errorf("node %s is not ready", nodes.Items[i].Name)
		}
	}
	return nil
}

func isReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}

func (f *fleet) snapshot(ctx context.Context) (string, error) {
	var info snapshot.Info
	err := askSnapshots(ctx, f.config, "POST", snapshot.PathSave(longPaths), 0, &info)
	return fmt.Sprintf("%s on %s", info.File, info.Server), err
}

// remote is a machine's upgrades, by HTTPS. prefix is where its API is at a server.
type remote struct {
	config *rest.Config
	prefix string
}

func (r remote) call(ctx context.Context, method, path string, body io.Reader, within time.Duration) (status upgrade.Status, err error) {
	resp, err := callServer(ctx, r.config, method, r.prefix+path, body, within)
	if err != nil {
		return status, err
	}
	defer func() { _ = resp.Body.Close() }()
	if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
		return status, fmt.Errorf("read what %s answers: %w", r.config.Host, err)
	}
	return status, nil
}

// orderTimeout bounds an order, which has a machine copy its program.
const orderTimeout = time.Minute

func (r remote) Status(ctx context.Context) (upgrade.Status, error) {
	return r.call(ctx, "GET", upgrade.PathStatus, nil, perServer)
}

func (r remote) Send(ctx context.Context, sum string, program io.Reader) error {
	_, err := r.call(ctx, "POST", upgrade.PathProgram(longPaths)+"?sum="+sum, program, 0)
	return err
}

func (r remote) Switch(ctx context.Context, sum string) error {
	_, err := r.call(ctx, "POST", upgrade.PathSwitch+"?sum="+sum, nil, orderTimeout)
	return err
}

func (r remote) Back(ctx context.Context) error {
	_, err := r.call(ctx, "POST", upgrade.PathBack, nil, orderTimeout)
	return err
}
