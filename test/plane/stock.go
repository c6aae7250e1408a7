package plane

import (
	"fmt"
	"path/filepath"
	"strings"

	"barque.dev/test/proc"
)

// Member is one etcd of stock Kubernetes and the API server that stands on it.
type Member struct {
	Index int
	// Name is etcd's.
	Name string
	// Client, Peer and API are ports of the loopback address.
	Client, Peer, API string
}

// NewMember finds free ports for a member, the index-th from 0.
func NewMember(index int) (Member, error) {
	free, err := proc.Ports(3)
	if err != nil {
		return Member{}, err
	}
	return Member{index, fmt.Sprintf("etcd-%d", index+1), free[0], free[1], free[2]}, nil
}

// URL is where the member's API is.
func (m Member) URL() string { return "https://127.0.0.1:" + m.API }

// EtcdFlags start the member's etcd as one of several, with its data below dir.
func (m Member) EtcdFlags(dir string, files *PKI, all []Member) []string {
	var cluster []string
	for _, o := range all {
		cluster = append(cluster, o.Name+"=https://127.0.0.1:"+o.Peer)
	}
	client, peer := "https://127.0.0.1:"+m.Client, "https://127.0.0.1:"+m.Peer
	ca, cert, key := files.Path("ca.crt"), files.Path("server.crt"), files.Path("server.key")
	return []string{
		"--name=" + m.Name, "--data-dir=" + filepath.Join(dir, m.Name), "--log-level=error",
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
		"--initial-cluster=" + strings.Join(cluster, ","),
		"--trusted-ca-file=" + ca, "--cert-file=" + cert, "--key-file=" + key, "--client-cert-auth",
		"--peer-trusted-ca-file=" + ca, "--peer-cert-file=" + cert, "--peer-key-file=" + key, "--peer-client-cert-auth",
	}
}

// APIFlags start the member's API server, which accepts the client certificates of an authority. Of flags that are
// given twice the last one counts.
func (m Member) APIFlags(dir string, files *PKI, clientCA string) []string {
	return []string{
		"--etcd-servers=https://127.0.0.1:" + m.Client, "--etcd-cafile=" + files.Path("ca.crt"),
		"--etcd-certfile=" + files.Path("admin.crt"), "--etcd-keyfile=" + files.Path("admin.key"),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port=" + m.API, "--cert-dir=" + dir,
		"--tls-cert-file=" + files.Path("server.crt"), "--tls-private-key-file=" + files.Path("server.key"),
		"--client-ca-file=" + clientCA, "--authorization-mode=Node,RBAC", "--service-cluster-ip-range=10.43.0.0/16",
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + files.Path("sa.key"), "--service-account-signing-key-file=" + files.Path("sa.key"),
		"--enable-admission-plugins=NodeRestriction", "--endpoint-reconciler-type=none",
	}
}
