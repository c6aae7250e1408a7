package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Names of the files in the directory of an [Authorities].
const (
	ClusterCertFile    = "ca.crt"
	clusterKeyFile     = "ca.key"
	etcdCertFile       = "etcd-ca.crt"
	etcdKeyFile        = "etcd-ca.key"
	frontProxyCertFile = "front-proxy-ca.crt"
	frontProxyKeyFile  = "front-proxy-ca.key"
	signingKeyFile     = "sa.key"
	signingPublicFile  = "sa.pub"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrExists: the directory already holds keys, which must not be replaced.
	ErrExists = errors.New("the cluster's keys exist already")
	// ErrNotFound: the directory holds no keys at all.
	ErrNotFound = errors.New("the cluster's keys are not there yet")
)

// Authorities are all that a server needs to know to be one. It is immutable.
type Authorities struct {
	// Cluster signs servers, clients and nodes.
	Cluster *Authority
	// Etcd signs etcd members.
	Etcd *Authority
	// FrontProxy signs the API server towards aggregated API servers.
	FrontProxy *Authority
	// ServiceAccounts signs service account tokens.
	ServiceAccounts *SigningKey

	dir string
}

// A SigningKey signs tokens with one key and accepts tokens of several.
type SigningKey struct {
	// Key signs.
	Key crypto.Signer
	// Public are the keys whose tokens are accepted: that of Key first, then older ones.
	Public []crypto.PublicKey
}

// Dir is where the keys are kept; empty for authorities that are in memory only.
func (a *Authorities) Dir() string { return a.dir }

// New makes all keys in memory.
func New(now time.Time) (*Authorities, error) {
	var a Authorities
	for _, it := range []struct {
		name string
		to   **Authority
	}{
		{"barque-cluster-ca", &a.Cluster},
		{"barque-etcd-ca", &a.Etcd},
		{"barque-front-proxy-ca", &a.FrontProxy},
	} {
		authority, err := NewAuthority(it.name, now)
		if err != nil {
			return nil, err
		}
		*it.to = authority
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make service account key: %w", err)
	}
	a.ServiceAccounts = &SigningKey{Key: key, Public: []crypto.PublicKey{key.Public()}}
	return &a, nil
}

// Create makes all keys and writes them to dir, which must not hold any; else ErrExists.
func Create(dir string) (*Authorities, error) {
	a, err := New(time.Now())
	if err != nil {
		return nil, err
	}
	bundle, err := a.Bundle()
	if err != nil {
		return nil, err
	}
	return Import(dir, bundle)
}

// Open reads the keys from dir. It returns ErrNotFound when none of the files is there, and an
// error that names the file when one is missing or damaged.
func Open(dir string) (*Authorities, error) {
	bundle := Bundle{}
	found := 0
	var missing []string
	for name, to := range bundle.files() {
		content, err := os.ReadFile(filepath.Join(dir, name))
		switch {
		case err == nil:
			found++
			*to = string(content)
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, name)
		default:
			return nil, fmt.Errorf("read the cluster's keys: %w", err)
		}
	}
	switch {
	case found == 0:
		return nil, fmt.Errorf("read %s: %w", dir, ErrNotFound)
	case len(missing) > 0:
		slices.Sort(missing)
		return nil, fmt.Errorf("the cluster's keys in %s are incomplete: %s is missing; "+
			"restore it from a backup or from another server", dir, missing[0])
	}
	a, err := bundle.parse(dir)
	if err != nil {
		return nil, err
	}
	a.dir = dir
	return a, nil
}

// OpenOrCreate opens the keys in dir, or makes them when there are none.
func OpenOrCreate(dir string) (*Authorities, error) {
	a, err := Open(dir)
	if errors.Is(err, ErrNotFound) {
		return Create(dir)
	}
	return a, err
}

// publicPEM encodes the public keys of k.
func (k *SigningKey) publicPEM() ([]byte, error) {
	var out []byte
	for _, key := range k.Public {
		der, err := x509.MarshalPKIXPublicKey(key)
		if err != nil {
			return nil, fmt.Errorf("encode service account public key: %w", err)
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: blockPublicKey, Bytes: der})...)
	}
	return out, nil
}
