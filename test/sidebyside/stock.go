package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	at "barque.dev/test/plane"
	"barque.dev/test/proc"
)

// stock is Kubernetes as it is released: a member is an etcd and a kube-apiserver; beside the first
// run a kube-controller-manager and a kube-scheduler, the ones that would lead. Where the row is
// about that, they run beside each.
type stock struct {
	programs string
	// tuned has settings that are meant to make it faster.
	tuned bool
}

func (s stock) name() string {
	if s.tuned {
		return "stock, tuned"
	}
	return "stock"
}

// The flags of the tuned side, in addition to or in place of what the others have. The page quotes
// them.
var (
	tunedEtcd    = []string{"--snapshot-count=100000", "--backend-batch-limit=20000"}
	tunedServer  = []string{"--max-requests-inflight=4000", "--max-mutating-requests-inflight=4000"}
	tunedLoops   = []string{"--kube-api-qps=1000", "--kube-api-burst=2000"}
	tunedElects  = []string{"--leader-elect-lease-duration=4s", "--leader-elect-renew-deadline=3s", "--leader-elect-retry-period=500ms"}
	tunedRaft    = []string{"--heartbeat-interval=50", "--election-timeout=500"}
	tunedKubelet = map[string]any{"kubeAPIQPS": 1000, "kubeAPIBurst": 2000, "serializeImagePulls": false}
)

// tuning says which settings the tuned side has in a row.
func tuning(r row) string {
	if r.untuned != "" {
		return "There is no tuned side: " + r.untuned + "."
	}
	etcd, loops := tunedEtcd, tunedLoops
	if r.elects {
		etcd, loops = append(etcd[:len(etcd):len(etcd)], tunedRaft...), append(loops[:len(loops):len(loops)], tunedElects...)
	}
	all := []string{"etcd " + strings.Join(etcd, " "), "kube-apiserver " + strings.Join(tunedServer, " ")}
	switch {
	case r.schedules:
		all = append(all, "kube-scheduler as upstream's harness has it on both sides of stock, "+strings.Join(harnessLoops, " "))
	case !r.bare:
		all = append(all, "kube-controller-manager and kube-scheduler "+strings.Join(loops, " "))
	}
	if r.node {
		var settings []string
		for _, name := range []string{"kubeAPIQPS", "kubeAPIBurst", "serializeImagePulls"} {
			settings = append(settings, fmt.Sprintf("%s: %v", name, tunedKubelet[name]))
		}
		all = append(all, "kubelet "+strings.Join(settings, ", "))
	}
	return "Tuned is stock with " + strings.Join(all, "; ") + "."
}

// harnessLoops are what upstream's harness gives the scheduler: its limits, and no election. A scheduler that starves beside its
// API server would lose it, and end.
var harnessLoops = []string{"--kube-api-qps=5000", "--kube-api-burst=5000", "--leader-elect=false"}

// stockPrograms are those that a row starts.
func stockPrograms(dir string, r row) []string {
	names := []string{"etcd", "kube-apiserver"}
	if !r.bare {
		names = append(names, "kube-controller-manager", "kube-scheduler")
	}
	if r.node {
		names = append(names, "kubelet")
	}
	for i, name := range names {
		names[i] = filepath.Join(dir, name)
	}
	return names
}

// stand is what starting stock's programs takes: where and of what row.
type stand struct {
	stock
	*plane
	row     row
	dir     string
	files   *at.PKI
	members []at.Member
}

func (s stock) start(ctx context.Context, dir string, r row) (*plane, error) {
	st := &stand{stock: s, plane: &plane{}, row: r, dir: dir}
	p := st.plane
	if r.node {
		if err := p.isolate(); err != nil {
			return p, err
		}
	}
	var err error
	if st.files, err = at.WritePKI(dir); err != nil {
		return p, err
	}
	if p.tls, err = at.ClientTLS(st.files.CA, st.files.AdminCert, st.files.AdminKey); err != nil {
		return p, err
	}
	for i := range r.members {
		m, err := at.NewMember(i)
		if err != nil {
			return p, err
		}
		st.members = append(st.members, m)
		p.urls = append(p.urls, m.URL())
	}
	p.restart, p.leader = st.launchAll, st.etcdLeader
	if err := st.launchAll(ctx); err != nil || !r.node {
		return p, err
	}
	return p, st.startNode(ctx)
}

func (st *stand) launchAll(ctx context.Context) error {
	for _, m := range st.members {
		if err := st.run("etcd", m, true, st.etcdFlags(m)); err != nil {
			return err
		}
	}
	for _, m := range st.members {
		if err := st.run("kube-apiserver", m, false, st.apiFlags(m)); err != nil {
			return err
		}
	}
	if err := st.awaitReady(ctx); err != nil || st.row.bare {
		return err
	}
	if !st.row.elects {
		return st.loops(st.members[0])
	}
	return st.electedLoops(ctx)
}

// run starts one of a member's programs.
func (st *stand) run(name string, m at.Member, keepsState bool, flags []string) error {
	return st.Launch(at.Program{
		Name: fmt.Sprintf("%s-%d", name, m.Index+1), Path: filepath.Join(st.programs, name), Args: flags,
		Dir: st.dir, Member: m.Index, KeepsState: keepsState,
	})
}

func (st *stand) etcdFlags(m at.Member) []string {
	flags := m.EtcdFlags(st.dir, st.files, st.members)
	if st.tuned {
		flags = append(flags, tunedEtcd...)
		if st.row.elects {
			flags = append(flags, tunedRaft...)
		}
	}
	return flags
}

func (st *stand) apiFlags(m at.Member) []string {
	flags := m.APIFlags(st.dir, st.files, st.files.Path("ca.crt"))
	if st.row.schedules {
		// As upstream's harness has it: there are no accounts, and nobody takes such taints away.
		flags = append(flags, "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition")
	}
	if st.tuned {
		flags = append(flags, tunedServer...)
	}
	return flags
}

// loops starts the parts that watch over the state beside a member. Where the scheduler alone is of
// interest it has upstream's harness' limits and runs alone.
func (st *stand) loops(m at.Member) error {
	kubeconfig, err := st.kubeconfig(m)
	if err != nil {
		return err
	}
	free, err := proc.Ports(2)
	if err != nil {
		return err
	}
	common := []string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1", "--client-ca-file=" + st.files.Path("ca.crt"),
		"--tls-cert-file=" + st.files.Path("server.crt"), "--tls-private-key-file=" + st.files.Path("server.key"),
	}
	switch {
	case st.row.schedules:
		common = append(common, harnessLoops...)
	case st.tuned:
		common = append(common, tunedLoops...)
		if st.row.elects {
			common = append(common, tunedElects...)
		}
	}
	common = common[:len(common):len(common)]
	st.scheduler = "https://127.0.0.1:" + free[1]
	if !st.row.schedules {
		flags := append(common, "--secure-port="+free[0], "--root-ca-file="+st.files.Path("ca.crt"),
			"--service-account-private-key-file="+st.files.Path("sa.key"), "--use-service-account-credentials=false")
		if st.row.elects {
			flags = append(flags, "--node-monitor-grace-period=1h") // the node is made up: nobody renews its lease
		}
		if err := st.run("kube-controller-manager", m, false, flags); err != nil {
			return err
		}
	}
	return st.run("kube-scheduler", m, false, append(common, "--secure-port="+free[1]))
}

// kubeconfig writes the administrator's for a member's API server.
func (st *stand) kubeconfig(m at.Member) (string, error) {
	file := filepath.Join(st.dir, fmt.Sprintf("loops-%d.kubeconfig", m.Index+1))
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:%s", certificate-authority: %q}}]
users: [{name: u, user: {client-certificate: %q, client-key: %q}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, m.API, st.files.Path("ca.crt"), st.files.Path("admin.crt"), st.files.Path("admin.key"))
	return file, os.WriteFile(file, []byte(config), 0o600)
}

// electedLoops starts the loops beside every member, first where etcd leads, so that there is one
// whose loss takes all that leads.
func (st *stand) electedLoops(ctx context.Context) error {
	first, err := st.etcdLeader(ctx)
	if err != nil {
		return err
	}
	if err := st.loops(st.members[first]); err != nil {
		return err
	}
	l := newLoader(st.plane, 1)
	defer l.close()
	for _, name := range []string{"kube-scheduler", "kube-controller-manager"} {
		err := st.Poll(ctx, name+" leads", func(ctx context.Context) error {
			_, err := holder(ctx, l.clients[0], name)
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, m := range st.members {
		if m.Index == first {
			continue
		}
		if err := st.loops(m); err != nil {
			return err
		}
	}
	return nil
}

// etcdLeader asks the etcds which of them leads; the loops beside it lead by the order in which they
// were started.
func (st *stand) etcdLeader(ctx context.Context) (leader int, err error) {
	err = st.Poll(ctx, "a leader of etcd", func(ctx context.Context) error {
		for _, m := range st.members {
			families, err := st.metrics(ctx, "https://127.0.0.1:"+m.Client)
			if err != nil {
				return err
			}
			if f := families["etcd_server_is_leader"]; f != nil && f.GetMetric()[0].GetGauge().GetValue() == 1 {
				leader = m.Index
				return nil
			}
		}
		return errors.New("none of them leads")
	})
	return leader, err
}
