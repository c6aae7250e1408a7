package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// A Keeper holds one certificate of this machine on disk and in memory, and renews it when a
// third of its validity is left. It renews inside the TLS callbacks, so it needs no goroutine
// and an idle process does nothing. It is safe for concurrent use.
type Keeper struct {
	config  KeeperConfig
	current atomic.Pointer[tls.Certificate]
	// renewal is held by the one handshake that renews; the others go on with the old
	// certificate, which is still valid for a long time.
	renewal sync.Mutex
}

// KeeperConfig says which certificate to keep, and where.
type KeeperConfig struct {
	Authority *Authority
	Request   Request
	// CertFile and KeyFile are where it is kept; both empty keeps it in memory only.
	CertFile, KeyFile string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// NewKeeper loads the certificate from its files; it issues a new one when there is none, or
// when the one there is damaged, of another authority, due, or lacks something requested (such
// as the machine's new address).
func NewKeeper(config KeeperConfig) (*Keeper, error) {
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{config: config}
	cert, err := k.load()
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			config.Log.Info("issuing certificate anew", "certificate", config.Request.CommonName, "reason", err)
		}
		return k, k.renew()
	}
	k.current.Store(cert)
	return k, nil
}

// load reads the certificate and says why it cannot be used.
func (k *Keeper) load() (*tls.Certificate, error) {
	if k.config.CertFile == "" {
		return nil, fs.ErrNotExist
	}
	cert, err := tls.LoadX509KeyPair(k.config.CertFile, k.config.KeyFile)
	if err != nil {
		return nil, err
	}
	pool := k.config.Authority.Pool()
	now := k.config.Now()
	_, err = cert.Leaf.Verify(x509.VerifyOptions{
		Roots: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	if err != nil {
		return nil, err
	}
	if due(cert.Leaf, now) {
		return nil, fmt.Errorf("it expires at %s", cert.Leaf.NotAfter.Format(time.RFC3339))
	}
	return &cert, mismatch(cert.Leaf, k.config.Request)
}

// renew issues a certificate, writes it and makes it current.
func (k *Keeper) renew() error {
	pair, err := k.config.Authority.Issue(k.config.Request, k.config.Now())
	if err != nil {
		return err
	}
	cert, err := pair.TLS()
	if err != nil {
		return err
	}
	if k.config.CertFile != "" {
		// The certificate last: a pair torn by a crash does not load and is issued anew.
		if err := WriteFile(k.config.KeyFile, pair.Key, 0o600); err != nil {
			return err
		}
		if err := WriteFile(k.config.CertFile, pair.Certificate, 0o644); err != nil {
			return err
		}
	}
	k.current.Store(&cert)
	return nil
}

// Certificate returns the current certificate, renewed if due. A failed renewal is logged and
// the old certificate returned as long as it is valid. The result must not be changed.
func (k *Keeper) Certificate() (*tls.Certificate, error) {
	cert := k.current.Load()
	now := k.config.Now()
	if !due(cert.Leaf, now) {
		return cert, nil
	}
	if now.Before(cert.Leaf.NotAfter) {
		if !k.renewal.TryLock() {
			return cert, nil
		}
	} else {
		k.renewal.Lock()
	}
	defer k.renewal.Unlock()
	if cert = k.current.Load(); !due(cert.Leaf, now) {
		return cert, nil
	}
	err := k.renew()
	if err == nil {
		k.config.Log.Info("certificate renewed", "certificate", k.config.Request.CommonName)
		return k.current.Load(), nil
	}
	if now.Before(cert.Leaf.NotAfter) {
		k.config.Log.Error("renewing certificate", "certificate", k.config.Request.CommonName,
			"expires", cert.Leaf.NotAfter, "error", err)
		return cert, nil
	}
	return nil, fmt.Errorf("renew certificate %s: %w", k.config.Request.CommonName, err)
}

// GetCertificate is for tls.Config of a server.
func (k *Keeper) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return k.Certificate()
}

// GetClientCertificate is for tls.Config of a client.
func (k *Keeper) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return k.Certificate()
}

// due tells whether less than a third of the certificate's validity is left, or it is not yet
// valid because the clock went back.
func due(cert *x509.Certificate, now time.Time) bool {
	life := cert.NotAfter.Sub(cert.NotBefore)
	return now.Before(cert.NotBefore) || now.After(cert.NotAfter.Add(-life/3))
}

// A Reloader gives a pair of files that somebody else writes (an operator's own certificate, a
// kubelet's that a controller signed), read again when they change. It is safe for concurrent
// use.
type Reloader struct {
	certFile, keyFile string

	mu      sync.Mutex
	stamp   [2]fileStamp
	current *tls.Certificate
}

type fileStamp struct {
	modified time.Time
	size     int64
}

// NewReloader reads the pair for the first time.
func NewReloader(certFile, keyFile string) (*Reloader, error) {
	r := &Reloader{certFile: certFile, keyFile: keyFile}
	_, err := r.Certificate()
	return r, err
}

// Certificate returns the pair as it is now. When the files are damaged or half replaced, the
// last good pair is returned until it expires.
func (r *Reloader) Certificate() (*tls.Certificate, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	stamp, err := r.stat()
	if err == nil && r.current != nil && stamp == r.stamp {
		return r.current, nil
	}
	var cert tls.Certificate
	if err == nil {
		cert, err = tls.LoadX509KeyPair(r.certFile, r.keyFile)
	}
	switch {
	case err == nil:
		r.current, r.stamp = &cert, stamp
		return r.current, nil
	case r.current != nil && time.Now().Before(r.current.Leaf.NotAfter):
		return r.current, nil
	}
	return nil, fmt.Errorf("load certificate %s with key %s: %w", r.certFile, r.keyFile, err)
}

func (r *Reloader) stat() (out [2]fileStamp, err error) {
	for i, name := range []string{r.certFile, r.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return out, err
		}
		out[i] = fileStamp{modified: info.ModTime(), size: info.Size()}
	}
	return out, nil
}

// GetCertificate is for tls.Config of a server.
func (r *Reloader) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return r.Certificate()
}

// GetClientCertificate is for tls.Config of a client.
func (r *Reloader) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return r.Certificate()
}
