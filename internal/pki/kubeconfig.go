package pki

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Kubeconfig makes a kubeconfig for a user with one cluster, one user and one context, all
// called name. server is an URL such as https://10.0.0.1:6443. Certificates stand inside.
func Kubeconfig(name, server string, ca []byte, user *Pair) *clientcmdapi.Config {
	c := clientcmdapi.NewConfig()
	c.Clusters[name] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca}
	c.AuthInfos[name] = &clientcmdapi.AuthInfo{ClientCertificateData: user.Certificate, ClientKeyData: user.Key}
	c.Contexts[name] = &clientcmdapi.Context{Cluster: name, AuthInfo: name}
	c.CurrentContext = name
	return c
}

// WriteAdminKubeconfig writes a kubeconfig of the cluster's administrator (user
// kubernetes-admin, group system:masters) to path with mode 0600. A file that is there already
// and still good is left as it is: same server, same authority, certificate not due, and no longer
// valid than asked for; 0 is Validity.
func (a *Authorities) WriteAdminKubeconfig(path, name, server string, validity time.Duration, now time.Time) error {
	request := Client(UserAdmin, GroupMasters)
	request.Validity = validity
	if current, err := clientcmd.LoadFromFile(path); err == nil && a.goodKubeconfig(current, server, request, now) {
		return nil
	} else if err != nil && errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("read kubeconfig %s: %w", path, err)
	}
	pair, err := a.Cluster.Issue(request, now)
	if err != nil {
		return err
	}
	text, err := clientcmd.Write(*Kubeconfig(name, server, a.Cluster.PEM(), pair))
	if err != nil {
		return fmt.Errorf("encode kubeconfig %s: %w", path, err)
	}
	return WriteFile(path, text, 0o600)
}

func (a *Authorities) goodKubeconfig(c *clientcmdapi.Config, server string, request Request, now time.Time) bool {
	context := c.Contexts[c.CurrentContext]
	if context == nil {
		return false
	}
	cluster, user := c.Clusters[context.Cluster], c.AuthInfos[context.AuthInfo]
	if cluster == nil || user == nil || cluster.Server != server ||
		!slices.Equal(cluster.CertificateAuthorityData, a.Cluster.PEM()) {
		return false
	}
	cert, err := ParseCertificate(user.ClientCertificateData)
	return err == nil && !due(cert, now) && !outlives(cert, request, now) && mismatch(cert, request) == nil &&
		cert.CheckSignatureFrom(a.Cluster.cert) == nil
}

// Merge adds the clusters, users and contexts of add to the kubeconfig at path, replacing
// those of the same name, makes add's context current, and leaves everything else. A missing
// file is made with mode 0600.
func Merge(path string, add *clientcmdapi.Config) error {
	base, err := clientcmd.LoadFromFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		base, err = clientcmdapi.NewConfig(), nil
	}
	if err != nil {
		return fmt.Errorf("read kubeconfig %s: %w", path, err)
	}
	for name, v := range add.Clusters {
		base.Clusters[name] = v
	}
	for name, v := range add.AuthInfos {
		base.AuthInfos[name] = v
	}
	for name, v := range add.Contexts {
		base.Contexts[name] = v
	}
	base.CurrentContext = add.CurrentContext
	text, err := clientcmd.Write(*base)
	if err != nil {
		return fmt.Errorf("encode kubeconfig %s: %w", path, err)
	}
	mode := os.FileMode(0o600)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
	}
	return WriteFile(path, text, mode)
}
