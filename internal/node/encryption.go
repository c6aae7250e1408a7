package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/healthz"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/cluster/join"
	"barque.dev/internal/encryption"
	"barque.dev/internal/pki"
	"barque.dev/internal/run"
	"barque.dev/internal/store"
)

// encryptionPurpose names the secret of the cluster's authority that seals the keys.
const encryptionPurpose = "encryption at rest"

// keyringFile is where a server keeps its copy of the keys, below its data directory.
var keyringFile = []string{"encryption", "keyring.json"}

// encrypted is what encrypts at rest.
type encrypted struct {
	keyring  *encryption.Keyring
	file     *encryption.File // nil without --encryption-provider-config
	rewriter *encryption.Rewriter
}

// openEncryption opens the cluster's keys, and the user's configuration.
func (s *Server) openEncryption(ctx context.Context) error {
	sealer, err := sealer(s.pki)
	if err != nil {
		return err
	}
	known, err := s.home.member()
	if err != nil {
		return err
	}
	e := &encrypted{}
	e.keyring, err = encryption.NewKeyring(encryption.KeyringConfig{
		Store: s.store, Etcd: s.backend, Sealer: sealer, Server: s.cfg.NodeName,
		File: s.home.path(keyringFile...), WriteFile: pki.WriteFile, Servers: s.readers, Founds: known == "" && s.cfg.Join == "", Log: s.cfg.Log,
	})
	if errors.Is(err, encryption.ErrSealed) {
		return fmt.Errorf("the data in etcd is another cluster's: %w, to %s", err, s.home.path("pki"))
	}
	if err != nil {
		return fmt.Errorf("open the cluster's encryption keys: %w", err)
	}
	if s.cfg.EncryptionConfig != "" {
		e.file, err = encryption.OpenFile(ctx, encryption.FileConfig{
			Path: s.cfg.EncryptionConfig, Reload: s.cfg.EncryptionReload, Server: s.cfg.NodeName, Log: s.cfg.Log,
		})
		if err != nil {
			return err
		}
	}
	e.rewriter = encryption.NewRewriter(encryption.RewriterConfig{
		Keyring: e.keyring, Store: s.store, Tables: s.kept, Log: s.cfg.Log.With("component", "encryption"),
	})
	s.encryption = e
	s.home.keep()
	return nil
}

// sealer seals the cluster's encryption keys.
func sealer(a *pki.Authorities) (*encryption.Sealer, error) {
	secret, id, err := a.Cluster.Secret(encryptionPurpose)
	if err != nil {
		return nil, err
	}
	return encryption.NewSealer(id, secret)
}

// EncryptionConfiguration makes, of what is in a server's data directory, the EncryptionConfiguration with
// which a stock kube-apiserver reads the cluster's Secrets.
func EncryptionConfiguration(dataDir string) ([]byte, error) {
	h := home{dir: dataDir}
	authorities, err := pki.Open(h.path("pki"))
	if errors.Is(err, pki.ErrNotFound) {
		return nil, fmt.Errorf("%s is not the data directory of a server: run this on a server, with its --data-dir", dataDir)
	}
	if err != nil {
		return nil, err
	}
	sealer, err := sealer(authorities)
	if err != nil {
		return nil, err
	}
	return encryption.Export(sealer, h.path(keyringFile...))
}

// kept are the tables of everything that the API keeps.
func (s *Server) kept() []*store.Table { return s.registry.Kept() }

// encryptionControl is what administrators see of it.
func (s *Server) encryptionControl() *encryption.Control {
	return encryption.NewControl(encryption.ControlConfig{
		Keyring: s.encryption.keyring, File: s.encryption.file, Tables: s.kept, Log: s.cfg.Log,
		Fresh: func(ctx context.Context) error {
			_, err := s.store.ReadIndex(ctx)
			return err
		},
	})
}

func (e *encrypted) transformer() func(schema.GroupResource) store.Transformer {
	return encryption.Transformers(e.keyring, e.file)
}

func (e *encrypted) services() []run.Service {
	services := []run.Service{{Name: "encryption keys", Run: e.keyring.Run}}
	if e.file != nil {
		services = append(services, run.Func("encryption configuration", e.file.Run))
	}
	return services
}

func (e *encrypted) checks() []healthz.HealthChecker {
	if e.file == nil {
		return nil
	}
	return slices.Clone(e.file.Checks())
}

func (e *encrypted) close() {
	if e != nil && e.file != nil {
		e.file.Close()
	}
}

// mayJoin refuses a server that could not read what is encrypted.
func (s *Server) mayJoin(req join.ServerRequest) error {
	if slices.Contains(req.Reads, join.ReadsEncryption) {
		return nil
	}
	return fmt.Errorf("%w: the cluster encrypts Secrets at rest, which that server's version does not know of: upgrade it first", join.ErrConflict)
}

// aliveWithin is how long ago at most a server that lives has renewed its identity Lease, which it does each
// 10 s.
const aliveWithin = 30 * time.Second

// readers are all that read the cluster's etcd, as far as is known: Barque's servers, and stock ones.
func (s *Server) readers(ctx context.Context) ([]encryption.Server, error) {
	var leases coordinationv1.LeaseList
	err := s.client.List(ctx, &leases, ctrlclient.InNamespace(apiserver.LeaseNamespace), ctrlclient.HasLabels{apiserver.LeaseLabel})
	if err != nil {
		return nil, fmt.Errorf("list the servers' leases: %w", err)
	}
	if s.membership == nil {
		return readers(nil, leases.Items, leaseMemory, time.Now()), nil
	}
	members := []string{}
	for _, m := range s.membership.List() {
		switch {
		case m.ID == s.member.ID():
			m.Name = s.cfg.NodeName
		case m.Name == "": // it has not started
			m.Name = "the server that joins at " + fmt.Sprint(m.PeerURLs)
		}
		members = append(members, m.Name)
	}
	return readers(members, leases.Items, aliveWithin, time.Now()), nil
}

// readers are etcd's members, which may be nobody, and whoever else holds an identity Lease, or did a
// while ago.
func readers(members []string, leases []coordinationv1.Lease, memory time.Duration, now time.Time) []encryption.Server {
	var servers []encryption.Server
	for _, name := range members {
		servers = append(servers, encryption.Server{Name: name})
	}
	for i := range leases {
		spec := &leases[i].Spec
		if spec.HolderIdentity == nil || spec.RenewTime == nil {
			continue
		}
		age := now.Sub(spec.RenewTime.Time)
		at := slices.IndexFunc(servers, func(s encryption.Server) bool { return s.Name == *spec.HolderIdentity })
		switch {
		case at >= 0:
			servers[at].Alive = servers[at].Alive || age < aliveWithin
		case age < memory:
			servers = append(servers, encryption.Server{Name: *spec.HolderIdentity, Alive: age < aliveWithin})
		}
	}
	return servers
}
