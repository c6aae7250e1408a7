package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

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

// harnessLoops are the limits that upstream's harness gives the scheduler.
var harnessLoops = []string{"--kube-api-qps=5000", "--kube-api-burst=5000"}

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

// member is where one etcd and its API server are.
type member struct {
	index                   int
	name, client, peer, api string
}

// stand is what starting stock's programs takes: where and of what row.
type stand struct {
	stock
	*plane
	row     row
	dir     string
	files   *pki
	members []member
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
	if st.files, err = writePKI(dir); err != nil {
		return p, err
	}
	if p.tls, err = clientTLS(st.files.ca, st.files.adminCert, st.files.adminKey); err != nil {
		return p, err
	}
	for i := range r.members {
		free, err := proc.Ports(3)
		if err != nil {
			return p, err
		}
		st.members = append(st.members, member{i, fmt.Sprintf("etcd-%d", i+1), free[0], free[1], free[2]})
		p.urls = append(p.urls, "https://127.0.0.1:"+free[2])
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
func (st *stand) run(name string, m member, keepsState bool, flags []string) error {
	return st.launch(program{
		name: fmt.Sprintf("%s-%d", name, m.index+1), path: filepath.Join(st.programs, name), args: flags,
		dir: st.dir, member: m.index, keepsState: keepsState,
	})
}

func (st *stand) etcdFlags(m member) []string {
	var cluster []string
	for _, o := range st.members {
		cluster = append(cluster, o.name+"=https://127.0.0.1:"+o.peer)
	}
	client, peer := "https://127.0.0.1:"+m.client, "https://127.0.0.1:"+m.peer
	ca, cert, key := st.files.path("ca.crt"), st.files.path("server.crt"), st.files.path("server.key")
	flags := []string{
		"--name=" + m.name, "--data-dir=" + filepath.Join(st.dir, m.name), "--log-level=error",
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=" + strings.Join(cluster, ","),
		"--trusted-ca-file=" + ca, "--cert-file=" + cert, "--key-file=" + key, "--client-cert-auth",
		"--peer-trusted-ca-file=" + ca, "--peer-cert-file=" + cert, "--peer-key-file=" + key, "--peer-client-cert-auth",
	}
	if st.tuned {
		flags = append(flags, tunedEtcd...)
		if st.row.elects {
			flags = append(flags, tunedRaft...)
		}
	}
	return flags
}

func (st *stand) apiFlags(m member) []string {
	files := st.files
	flags := []string{
		"--etcd-servers=https://127.0.0.1:" + m.client, "--etcd-cafile=" + files.path("ca.crt"),
		"--etcd-certfile=" + files.path("admin.crt"), "--etcd-keyfile=" + files.path("admin.key"),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=" + m.api, "--cert-dir=" + st.dir,
		"--tls-cert-file=" + files.path("server.crt"), "--tls-private-key-file=" + files.path("server.key"),
		"--client-ca-file=" + files.path("ca.crt"), "--authorization-mode=Node,RBAC", "--service-cluster-ip-range=10.43.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + files.path("sa.key"), "--service-account-signing-key-file=" + files.path("sa.key"),
		"--enable-admission-plugins=NodeRestriction", "--endpoint-reconciler-type=none",
	}
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
func (st *stand) loops(m member) error {
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
		"--bind-address=127.0.0.1", "--client-ca-file=" + st.files.path("ca.crt"),
		"--tls-cert-file=" + st.files.path("server.crt"), "--tls-private-key-file=" + st.files.path("server.key"),
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
		flags := append(common, "--secure-port="+free[0], "--root-ca-file="+st.files.path("ca.crt"),
			"--service-account-private-key-file="+st.files.path("sa.key"), "--use-service-account-credentials=false")
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
func (st *stand) kubeconfig(m member) (string, error) {
	file := filepath.Join(st.dir, fmt.Sprintf("loops-%d.kubeconfig", m.index+1))
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:%s", certificate-authority: %q}}]
users: [{name: u, user: {client-certificate: %q, client-key: %q}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, m.api, st.files.path("ca.crt"), st.files.path("admin.crt"), st.files.path("admin.key"))
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
		err := st.poll(ctx, name+" leads", func(ctx context.Context) error {
			_, err := holder(ctx, l.clients[0], name)
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, m := range st.members {
		if m.index == first {
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
	err = st.poll(ctx, "a leader of etcd", func(ctx context.Context) error {
		for _, m := range st.members {
			families, err := st.metrics(ctx, "https://127.0.0.1:"+m.client)
			if err != nil {
				return err
			}
			if f := families["etcd_server_is_leader"]; f != nil && f.GetMetric()[0].GetGauge().GetValue() == 1 {
				leader = m.index
				return nil
			}
		}
		return errors.New("none of them leads")
	})
	return leader, err
}
