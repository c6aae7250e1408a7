package pki

import (
	"crypto"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
)

// A Bundle is every key of the cluster in PEM, as a joining server receives it. Whoever holds
// it owns the cluster: it travels only over a pinned TLS connection and rests only in files
// of mode 0600.
type Bundle struct {
	ClusterCert    string `json:"clusterCert"`
	ClusterKey     string `json:"clusterKey"`
	EtcdCert       string `json:"etcdCert"`
	EtcdKey        string `json:"etcdKey"`
	FrontProxyCert string `json:"frontProxyCert"`
	FrontProxyKey  string `json:"frontProxyKey"`
	SigningKey     string `json:"serviceAccountKey"`
	SigningPublic  string `json:"serviceAccountPublicKeys"`
}

// String keeps keys out of logs.
func (Bundle) String() string { return "pki.Bundle(private)" }

// GoString keeps keys out of logs.
func (b Bundle) GoString() string { return b.String() }

// files yields each file's name with the field that holds its content.
func (b *Bundle) files() iter.Seq2[string, *string] {
	return func(yield func(string, *string) bool) {
		_ = yield(ClusterCertFile, &b.ClusterCert) &&
			yield(clusterKeyFile, &b.ClusterKey) &&
			yield(etcdCertFile, &b.EtcdCert) &&
			yield(etcdKeyFile, &b.EtcdKey) &&
			yield(frontProxyCertFile, &b.FrontProxyCert) &&
			yield(frontProxyKeyFile, &b.FrontProxyKey) &&
			yield(signingKeyFile, &b.SigningKey) &&
			yield(signingPublicFile, &b.SigningPublic)
	}
}

// Bundle encodes all keys.
func (a *Authorities) Bundle() (Bundle, error) {
	var b Bundle
	for _, it := range []struct {
		authority *Authority
		cert, key *string
	}{
		{a.Cluster, &b.ClusterCert, &b.ClusterKey},
		{a.Etcd, &b.EtcdCert, &b.EtcdKey},
		{a.FrontProxy, &b.FrontProxyCert, &b.FrontProxyKey},
	} {
		key, err := encodeSigner(it.authority.key)
		if err != nil {
			return Bundle{}, fmt.Errorf("encode key of %s: %w", it.authority.cert.Subject.CommonName, err)
		}
		*it.cert, *it.key = string(it.authority.PEM()), string(key)
	}
	key, err := encodeSigner(a.ServiceAccounts.Key)
	if err != nil {
		return Bundle{}, fmt.Errorf("encode service account key: %w", err)
	}
	public, err := a.ServiceAccounts.publicPEM()
	if err != nil {
		return Bundle{}, err
	}
	b.SigningKey, b.SigningPublic = string(key), string(public)
	return b, nil
}

// Authorities checks the bundle and reads it, in memory only.
func (b Bundle) Authorities() (*Authorities, error) { return b.parse("bundle") }

// Import checks the bundle and writes it to dir, which must not hold keys; else ErrExists. The
// directory appears complete or not at all, also when the machine dies meanwhile.
func Import(dir string, b Bundle) (*Authorities, error) {
	a, err := b.parse("bundle")
	if err != nil {
		return nil, err
	}
	for name := range b.files() {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return nil, fmt.Errorf("write keys to %s: %w", dir, ErrExists)
		}
	}
	// Removes an empty directory, which the rename below cannot replace on every file
	// system; one with content stays and makes the rename fail.
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("write keys: the directory %s must be empty: %w", dir, err)
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, fmt.Errorf("write keys: %w", err)
	}
	stage, err := os.MkdirTemp(parent, "."+filepath.Base(dir)+".*")
	if err != nil {
		return nil, fmt.Errorf("write keys: %w", err)
	}
	defer func() { _ = os.RemoveAll(stage) }()
	for name, content := range b.files() {
		if err := WriteFile(filepath.Join(stage, name), []byte(*content), fileMode(name)); err != nil {
			return nil, err
		}
	}
	if err := os.Rename(stage, dir); err != nil {
		return nil, fmt.Errorf("write keys: %w", err)
	}
	if err := syncDir(parent); err != nil {
		return nil, fmt.Errorf("write keys: %w", err)
	}
	a.dir = dir
	return a, nil
}

// fileMode lets others read what is public, though the directory itself is private.
func fileMode(name string) os.FileMode {
	if strings.HasSuffix(name, ".key") {
		return 0o600
	}
	return 0o644
}

// parse checks every part. where is named in errors.
func (b *Bundle) parse(where string) (*Authorities, error) {
	var a Authorities
	for _, it := range []struct {
		certFile, keyFile string
		cert, key         string
		to                **Authority
	}{
		{ClusterCertFile, clusterKeyFile, b.ClusterCert, b.ClusterKey, &a.Cluster},
		{etcdCertFile, etcdKeyFile, b.EtcdCert, b.EtcdKey, &a.Etcd},
		{frontProxyCertFile, frontProxyKeyFile, b.FrontProxyCert, b.FrontProxyKey, &a.FrontProxy},
	} {
		cert, err := ParseCertificate([]byte(it.cert))
		if err != nil {
			return nil, fmt.Errorf("%s is damaged: %w", filepath.Join(where, it.certFile), err)
		}
		key, err := parseKey([]byte(it.key))
		if err != nil {
			return nil, fmt.Errorf("%s is damaged: %w", filepath.Join(where, it.keyFile), err)
		}
		authority, err := newAuthority(cert, key)
		if err != nil {
			return nil, fmt.Errorf("%s and %s do not match: %w", filepath.Join(where, it.certFile), it.keyFile, err)
		}
		*it.to = authority
	}
	key, err := parseKey([]byte(b.SigningKey))
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", filepath.Join(where, signingKeyFile), err)
	}
	public, err := parsePublicKeys([]byte(b.SigningPublic))
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", filepath.Join(where, signingPublicFile), err)
	}
	a.ServiceAccounts = &SigningKey{Key: key, Public: withKeyFirst(key.Public(), public)}
	return &a, nil
}

// withKeyFirst lists first and then the others, once each.
func withKeyFirst(first crypto.PublicKey, others []crypto.PublicKey) []crypto.PublicKey {
	keys := []crypto.PublicKey{first}
	for _, key := range others {
		if e, ok := key.(interface{ Equal(crypto.PublicKey) bool }); ok && e.Equal(first) {
			continue
		}
		keys = append(keys, key)
	}
	return keys
}
