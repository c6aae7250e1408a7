package node

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/auth"
	"barque.dev/internal/auth/image"
	"barque.dev/internal/auth/reload"
	"barque.dev/internal/auth/serviceaccount"
	"barque.dev/internal/controllers/extensiontrust"
	"barque.dev/internal/pki"
)

// checkAccess refuses files that are wrong before anything is made.
func (s *Server) checkAccess(context.Context) error { return s.cfg.Access.CheckFiles() }

// openAuth makes what decides on access. ctx ends with the server.
func (s *Server) openAuth(ctx context.Context, tables *image.Tables) (err error) {
	options := s.cfg.Access
	if len(options.ServiceAccounts.Issuers) == 0 {
		options.ServiceAccounts.Issuers = []string{"https://kubernetes.default.svc." + s.cfg.ClusterDomain}
	}
	// The files, and not what was read of them before: those are followed from here on.
	if s.accountKeys, err = pki.SigningFiles(s.pki.Dir()); err != nil {
		return err
	}
	keys, err := pki.ReadSigningKey(s.pki.Dir())
	if err != nil {
		return err
	}
	s.auth, err = auth.New(ctx, auth.Config{
		Image: tables, ClientCA: s.pki.Cluster.Pool(), FrontProxyCA: s.pki.FrontProxy.PEM(),
		CatchUp: s.catchUp, MarkTokenUse: s.markTokenUse,
		SigningKey: keys.Key, PublicKeys: keys.Public,
		Options: options, ServerID: apiserver.LeasePrefix + s.cfg.NodeName, Metrics: s.metrics, Log: s.cfg.Log,
	})
	if err != nil {
		return fmt.Errorf("set up access: %w", err)
	}
	return nil
}

// catchUpLimit is how long a request waits to know what other servers have acknowledged.
const catchUpLimit = 5 * time.Second

// catchUp waits until this server's image holds what any server has acknowledged.
func (s *Server) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpLimit)
	defer cancel()
	_, err := s.store.ReadIndex(ctx)
	return err
}

// markTokenUse notes in a secret on which day the token that it keeps was last used.
func (s *Server) markTokenUse(ctx context.Context, secret *corev1.Secret, day string) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpLimit)
	defer cancel()
	patch, err := json.Marshal(applycorev1.Secret(secret.Name, secret.Namespace).WithUID(secret.UID).
		WithLabels(map[string]string{serviceaccount.LastUsedLabel: day}))
	if err != nil {
		return fmt.Errorf("mark the token in secret %s/%s as used: %w", secret.Namespace, secret.Name, err)
	}
	target := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: secret.Namespace, Name: secret.Name}}
	return s.client.WithFieldManager(serverManager).Patch(ctx, target, client.RawPatch(types.MergePatchType, patch))
}

// followAccountKeys uses the keys of service account tokens as their files change.
func (s *Server) followAccountKeys(ctx context.Context) error {
	dir := s.pki.Dir()
	return reload.New(reload.Config{
		Path: dir, Log: s.cfg.Log,
		Read: func() ([]byte, error) { return pki.SigningFiles(dir) },
		Apply: func(context.Context, []byte) error {
			keys, err := pki.ReadSigningKey(dir)
			if err != nil {
				return err
			}
			return s.auth.ReplaceKeys(keys.Key, keys.Public)
		},
	}, s.accountKeys).Run(ctx)
}

// trust is what aggregated API servers must know of who calls them: the cluster's own front proxy, which passes requests on to
// them, and the operator's proxies. The channel is closed when another is to be told.
func (s *Server) trust() (extensiontrust.Trust, <-chan struct{}) {
	trust := extensiontrust.Trust{ClientCA: s.pki.Cluster.PEM(), FrontProxyCA: s.pki.FrontProxy.PEM()}
	proxies, replaced := s.auth.Proxies()
	trust.FrontProxyCA = append(trust.FrontProxyCA, proxies.CA...)
	if len(proxies.AllowedNames) > 0 {
		trust.Proxies = append([]string{pki.UserFrontProxy}, proxies.AllowedNames...)
	}
	trust.UsernameHeaders, trust.UIDHeaders = proxies.UsernameHeaders, proxies.UIDHeaders
	trust.GroupHeaders, trust.ExtraPrefixes = proxies.GroupHeaders, proxies.ExtraPrefixes
	return trust, replaced
}

// keys are the cluster's keys, as they are now, for a server that joins.
func (s *Server) keys() (json.RawMessage, error) {
	current, err := pki.Open(s.pki.Dir())
	if err != nil {
		return nil, err
	}
	bundle, err := current.Bundle()
	if err != nil {
		return nil, err
	}
	return json.Marshal(bundle)
}
