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
// third of its validity is left: inside the TLS callbacks, and when [Keeper.Renew] is called,
// which has to be done now and then for those that somebody reads from their files. It is safe
// for concurrent use.
type Keeper struct {
	config  KeeperConfig
	current atomic.Pointer[tls.Certificate]
	// failed is when a renewal failed last, in nanoseconds since 1970; 0 for never.
	failed atomic.Int64
	// renewal is held by the one who renews; handshakes go on with the old certificate, which
	// is still valid for a long time. It guards unwritten, which is current if that is not in
	// its files yet.
	renewal   sync.Mutex
	unwritten *Pair
}

// retry is how long after a renewal that failed handshakes try again.
const retry = 10 * time.Second

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
	if err == nil {
		k.current.Store(cert)
		return k, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		config.Log.Info("issuing certificate anew", "certificate", config.Request.CommonName, "reason", err)
	}
	if err := k.issue(); err != nil {
		return nil, err
	}
	return k, k.write()
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
	if outlives(cert.Leaf, k.config.Request, now) {
		return nil, fmt.Errorf("it is valid until %s, longer than certificates are to be now", cert.Leaf.NotAfter.Format(time.RFC3339))
	}
	return &cert, mismatch(cert.Leaf, k.config.Request)
}

// issue makes a new certificate the current one. The caller holds renewal, or is alone.
func (k *Keeper) issue() error {
	pair, err := k.config.Authority.Issue(k.config.Request, k.config.Now())
	if err != nil {
		return err
	}
	cert, err := pair.TLS()
	if err != nil {
		return err
	}
	k.current.Store(&cert)
	k.unwritten = pair
	return nil
}

// write writes the current certificate to its files, if it is not there yet. The caller holds renewal, or is alone.
func (k *Keeper) write() error {
	if k.config.CertFile == "" || k.unwritten == nil {
		k.unwritten = nil
		return nil
	}
	if err := WritePair(k.config.CertFile, k.config.KeyFile, k.unwritten); err != nil {
		return err
	}
	k.unwritten = nil
	return nil
}

// Renew renews the certificate if it is due, and writes it if it could not be written before: one that is
// due and can't be renewed, or is not in its files, is an error, and should be tried again soon.
func (k *Keeper) Renew() error {
	k.renewal.Lock()
	defer k.renewal.Unlock()
	return k.renew()
}

// renew is Renew for who holds renewal. What can't be written is used nevertheless.
func (k *Keeper) renew() error {
	name := k.config.Request.CommonName
	if now := k.config.Now(); due(k.current.Load().Leaf, now) {
		if err := k.issue(); err != nil {
			k.failed.Store(now.UnixNano())
			return fmt.Errorf("renew certificate %s: %w", name, err)
		}
		k.config.Log.Info("certificate renewed", "certificate", name, "expires", k.current.Load().Leaf.NotAfter)
	}
	if err := k.write(); err != nil {
		return fmt.Errorf("keep the renewed certificate %s: %w", name, err)
	}
	return nil
}

// Due is when the certificate is to be renewed.
func (k *Keeper) Due() time.Time { return RenewAt(k.current.Load().Leaf) }

// Certificate returns the current certificate, renewed if due. A failed renewal is logged and
// the old certificate returned as long as it is valid. The result must not be changed.
func (k *Keeper) Certificate() (*tls.Certificate, error) {
	cert := k.current.Load()
	now := k.config.Now()
	if !due(cert.Leaf, now) {
		return cert, nil
	}
	expired := !now.Before(cert.Leaf.NotAfter)
	switch since := now.Sub(time.Unix(0, k.failed.Load())); {
	case expired:
		k.renewal.Lock()
	case since >= 0 && since < retry || !k.renewal.TryLock():
		return cert, nil
	}
	defer k.renewal.Unlock()
	err := k.renew()
	cert = k.current.Load()
	if err != nil {
		k.config.Log.Error("renewing certificate", "certificate", k.config.Request.CommonName, "expires", cert.Leaf.NotAfter, "error", err)
		if !now.Before(cert.Leaf.NotAfter) {
			return nil, err
		}
	}
	return cert, nil
}

// GetCertificate is for tls.Config of a server.
func (k *Keeper) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return k.Certificate()
}

// GetClientCertificate is for tls.Config of a client.
func (k *Keeper) GetClientCertificate(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return k.Certificate()
}

// RenewAt is when a certificate is to be renewed: when a third of its life is left.
func RenewAt(cert *x509.Certificate) time.Time {
	return cert.NotAfter.Add(-cert.NotAfter.Sub(cert.NotBefore) / 3)
}

// due tells whether the certificate is to be renewed, or is not yet valid because the clock went back.
func due(cert *x509.Certificate, now time.Time) bool {
	return now.Before(cert.NotBefore) || now.After(RenewAt(cert))
}

// outlives tells whether the certificate is valid for longer than one that would be issued now, by more than clocks
// and encodings differ.
func outlives(cert *x509.Certificate, request Request, now time.Time) bool {
	validity := request.Validity
	if validity == 0 {
		validity = Validity
	}
	return cert.NotAfter.Sub(now) > validity+maxBackdate
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
