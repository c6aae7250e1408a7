package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"barque.dev/test/proc"
)

// stock is Kubernetes as it is released: a member is an etcd and a kube-apiserver; beside the first
// run a kube-controller-manager and a kube-scheduler, the ones that would lead.
type stock struct {
	programs string
	// tuned has the settings that made it fastest of those we tried.
	tuned bool
}

func (s stock) name() string {
	if s.tuned {
		return "stock, tuned"
	}
	return "stock"
}

func stockPrograms(dir string) []string {
	var all []string
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		all = append(all, filepath.Join(dir, name))
	}
	return all
}

// member is where one etcd and its API server are.
type member struct{ name, client, peer, api string }

func (s stock) start(ctx context.Context, dir string, r row) (*plane, error) {
	p := &plane{}
	files, err := writePKI(dir)
	if err != nil {
		return p, err
	}
	if p.tls, err = clientTLS(files.ca, files.adminCert, files.adminKey); err != nil {
		return p, err
	}
	var all []member
	for i := range r.members {
		free, err := proc.Ports(3)
		if err != nil {
			return p, err
		}
		all = append(all, member{fmt.Sprintf("etcd-%d", i+1), free[0], free[1], free[2]})
		p.urls = append(p.urls, "https://127.0.0.1:"+free[2])
	}
	launch := func(ctx context.Context) error {
		for _, m := range all {
			if _, err := p.launch(m.name, dir, filepath.Join(s.programs, "etcd"), true, s.etcdFlags(dir, files, m, all)...); err != nil {
				return err
			}
		}
		for i, m := range all {
			name := fmt.Sprintf("kube-apiserver-%d", i+1)
			if _, err := p.launch(name, dir, filepath.Join(s.programs, "kube-apiserver"), false, s.apiFlags(dir, files, m, r)...); err != nil {
				return err
			}
		}
		if err := p.awaitReady(ctx); err != nil {
			return err
		}
		return s.loops(p, dir, files, all[0], r)
	}
	p.restart = launch
	return p, launch(ctx)
}

func (s stock) etcdFlags(dir string, files *pki, m member, all []member) []string {
	var cluster []string
	for _, o := range all {
		cluster = append(cluster, o.name+"=https://127.0.0.1:"+o.peer)
	}
	client, peer := "https://127.0.0.1:"+m.client, "https://127.0.0.1:"+m.peer
	flags := []string{
		"--name=" + m.name, "--data-dir=" + filepath.Join(dir, m.name), "--log-level=error",
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=" + strings.Join(cluster, ","),
		"--trusted-ca-file=" + files.path("ca.crt"), "--cert-file=" + files.path("server.crt"), "--key-file=" + files.path("server.key"), "--client-cert-auth",
		"--peer-trusted-ca-file=" + files.path("ca.crt"), "--peer-cert-file=" + files.path("server.crt"), "--peer-key-file=" + files.path("server.key"), "--peer-client-cert-auth",
	}
	if s.tuned {
		flags = append(flags, "--snapshot-count=100000", "--backend-batch-limit=20000")
	}
	return flags
}

func (s stock) apiFlags(dir string, files *pki, m member, r row) []string {
	flags := []string{
		"--etcd-servers=https://127.0.0.1:" + m.client, "--etcd-cafile=" + files.path("ca.crt"),
		"--etcd-certfile=" + files.path("admin.crt"), "--etcd-keyfile=" + files.path("admin.key"),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=" + m.api, "--cert-dir=" + dir,
		"--tls-cert-file=" + files.path("server.crt"), "--tls-private-key-file=" + files.path("server.key"),
		"--client-ca-file=" + files.path("ca.crt"), "--authorization-mode=Node,RBAC", "--service-cluster-ip-range=10.43.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + files.path("sa.key"), "--service-account-signing-key-file=" + files.path("sa.key"),
		"--enable-admission-plugins=NodeRestriction", "--endpoint-reconciler-type=none",
	}
	if r.schedules {
		// As upstream's harness has it: there are no accounts, and nobody takes such taints away.
		flags = append(flags, "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition")
	}
	if s.tuned {
		flags = append(flags, "--max-requests-inflight=4000", "--max-mutating-requests-inflight=4000")
	}
	return flags
}

// loops starts the parts that watch over the state; without limits on what they ask for when tuned.
// Where the scheduler alone is of interest it has upstream's harness' limits and runs alone.
func (s stock) loops(p *plane, dir string, files *pki, m member, r row) error {
	kubeconfig := filepath.Join(dir, "loops.kubeconfig")
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:%s", certificate-authority: %q}}]
users: [{name: u, user: {client-certificate: %q, client-key: %q}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, m.api, files.path("ca.crt"), files.path("admin.crt"), files.path("admin.key"))
	if err := os.WriteFile(kubeconfig, []byte(config), 0o600); err != nil {
		return err
	}
	free, err := proc.Ports(2)
	if err != nil {
		return err
	}
	common := []string{"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig, "--bind-address=127.0.0.1"}
	switch {
	case r.schedules:
		common = append(common, "--kube-api-qps=5000", "--kube-api-burst=5000")
	case s.tuned:
		common = append(common, "--kube-api-qps=1000", "--kube-api-burst=2000")
	}
	if r.schedules {
		_, err = p.launch("kube-scheduler", dir, filepath.Join(s.programs, "kube-scheduler"), false, append(common, "--secure-port="+free[1])...)
		return err
	}
	managed := append(common[:len(common):len(common)], "--secure-port="+free[0], "--root-ca-file="+files.path("ca.crt"),
		"--service-account-private-key-file="+files.path("sa.key"), "--use-service-account-credentials=false")
	if _, err := p.launch("kube-controller-manager", dir, filepath.Join(s.programs, "kube-controller-manager"), false, managed...); err != nil {
		return err
	}
	_, err = p.launch("kube-scheduler", dir, filepath.Join(s.programs, "kube-scheduler"), false, append(common[:len(common):len(common)], "--secure-port="+free[1])...)
	return err
}
