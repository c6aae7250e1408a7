package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/client-go/tools/clientcmd"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func TestCreateOpen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if _, err := Open(dir); !errors.Is(err, ErrNotFound) {
		t.Fatalf("Open of nothing: %v", err)
	}
	made, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Fatalf("directory: %v, %v", info, err)
	}
	for _, name := range []string{clusterKeyFile, etcdKeyFile, frontProxyKeyFile, signingKeyFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	opened, err := OpenOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	if opened.Cluster.Hash() != made.Cluster.Hash() || opened.Etcd.Hash() == opened.Cluster.Hash() {
		t.Error("another authority was read than was made")
	}
	if _, err := Create(dir); !errors.Is(err, ErrExists) {
		t.Errorf("Create over keys: %v", err)
	}
	leftovers, err := filepath.Glob(filepath.Join(filepath.Dir(dir), ".pki.*"))
	if err != nil || len(leftovers) > 0 {
		t.Errorf("left over: %v, %v", leftovers, err)
	}
}

func TestOpenDamaged(t *testing.T) {
	tests := map[string]struct {
		damage func(dir string) error
		want   string
	}{
		"missing": {
			func(dir string) error { return os.Remove(filepath.Join(dir, etcdKeyFile)) },
			"etcd-ca.key is missing",
		},
		"empty certificate": {
			func(dir string) error { return os.WriteFile(filepath.Join(dir, ClusterCertFile), nil, 0o600) },
			"ca.crt is damaged: it holds no certificate",
		},
		"key cut off": {
			func(dir string) error { return os.Truncate(filepath.Join(dir, clusterKeyFile), 60) },
			"ca.key is damaged: it holds no private key",
		},
		"another's key": {
			func(dir string) error {
				return os.Rename(filepath.Join(dir, etcdKeyFile), filepath.Join(dir, clusterKeyFile))
			},
			"is missing",
		},
		"swapped keys": {
			func(dir string) error {
				b, err := os.ReadFile(filepath.Join(dir, etcdKeyFile))
				if err != nil {
					return err
				}
				return os.WriteFile(filepath.Join(dir, clusterKeyFile), b, 0o600)
			},
			"do not match: the key does not belong to the certificate",
		},
		"garbage public key": {
			func(dir string) error {
				return os.WriteFile(filepath.Join(dir, signingPublicFile),
					[]byte("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"), 0o600)
			},
			"sa.pub is damaged",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "pki")
			if _, err := Create(dir); err != nil {
				t.Fatal(err)
			}
			if err := tt.damage(dir); err != nil {
				t.Fatal(err)
			}
			_, err := Open(dir)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if _, again := OpenOrCreate(dir); again == nil {
				t.Error("OpenOrCreate replaced damaged keys")
			}
		})
	}
}

func TestBundleRoundTrip(t *testing.T) {
	a, err := New(start)
	if err != nil {
		t.Fatal(err)
	}
	b, err := a.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprintf("%v %+v %#v", b, b, b); strings.Contains(s, "PRIVATE") {
		t.Error("printing a bundle shows keys")
	}
	got, err := Import(filepath.Join(t.TempDir(), "x", "pki"), b)
	if err != nil {
		t.Fatal(err)
	}
	again, err := got.Bundle()
	if err != nil {
		t.Fatal(err)
	}
	if again != b {
		t.Error("bundle changed on its way")
	}
	b.EtcdKey = b.ClusterKey
	if _, err := Import(filepath.Join(t.TempDir(), "pki"), b); err == nil {
		t.Error("a bundle with a wrong key was imported")
	}
}

func TestIssueAndHandshake(t *testing.T) {
	a, err := New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	vip := netip.MustParseAddr("10.0.0.9")
	server, err := NewKeeper(KeeperConfig{Authority: a.Cluster, Request: APIServer(ServerNames{
		Host: "one", Addresses: []netip.Addr{vip, netip.MustParseAddr("10.43.0.1"), netip.IPv4Unspecified(), {}}, Names: []string{"k8s.example"},
	})})
	if err != nil {
		t.Fatal(err)
	}
	client, err := NewKeeper(KeeperConfig{Authority: a.Cluster, Request: Node("n1")})
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"10.0.0.9", "10.43.0.1", "127.0.0.1", "::1", "localhost", "one", "k8s.example", "kubernetes.default.svc.cluster.local"}
	for _, name := range names {
		state, err := handshake(server, client, name, a.Cluster.Pool())
		if err != nil {
			t.Errorf("as %s: %v", name, err)
			continue
		}
		if s := state.PeerCertificates[0].Subject; s.CommonName != "system:node:n1" || s.Organization[0] != GroupNodes {
			t.Errorf("client is %v", s)
		}
	}
	if _, err := handshake(server, client, "10.0.0.10", a.Cluster.Pool()); err == nil {
		t.Error("an unknown address was accepted")
	}
	if _, err := handshake(server, client, "one", a.Etcd.Pool()); err == nil {
		t.Error("a certificate of another authority was accepted")
	}
	if _, err := handshake(client, client, "localhost", a.Cluster.Pool()); err == nil {
		t.Error("a client certificate served")
	}
}

func handshake(server, client *Keeper, name string, roots *x509.CertPool) (tls.ConnectionState, error) {
	left, right := net.Pipe()
	s := tls.Server(left, &tls.Config{
		GetCertificate: server.GetCertificate, ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs: client.config.Authority.Pool(),
	})
	c := tls.Client(right, &tls.Config{RootCAs: roots, ServerName: name, GetClientCertificate: client.GetClientCertificate})
	done := make(chan error, 1)
	go func() {
		err := s.Handshake()
		if err != nil {
			_ = left.Close()
		}
		done <- err
	}()
	err := c.Handshake()
	if err != nil {
		_ = right.Close()
	}
	if serr := <-done; err == nil {
		err = serr
	}
	return s.ConnectionState(), err
}

func TestKeeperRenewal(t *testing.T) {
	dir := t.TempDir()
	a, err := New(start)
	if err != nil {
		t.Fatal(err)
	}
	now := start
	config := KeeperConfig{
		Authority: a.Cluster, Request: EtcdPeer("m1", nil),
		CertFile: filepath.Join(dir, "peer.crt"), KeyFile: filepath.Join(dir, "peer.key"),
		Now: func() time.Time { return now },
	}
	serial := func(k *Keeper) string {
		t.Helper()
		c, err := k.Certificate()
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.SerialNumber.String()
	}
	k, err := NewKeeper(config)
	if err != nil {
		t.Fatal(err)
	}
	first := serial(k)
	again, err := NewKeeper(config)
	if err != nil {
		t.Fatal(err)
	}
	if serial(again) != first {
		t.Error("a good certificate was issued anew")
	}
	now = start.Add(Validity / 2)
	if serial(k) != first {
		t.Error("renewed too early")
	}
	now = start.Add(Validity * 7 / 10)
	second := serial(k)
	if second == first {
		t.Error("not renewed when due")
	}
	// What can't be written is used all the same, and written once that goes.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	now = k.Due().Add(time.Minute)
	third := serial(k)
	if third == second {
		t.Error("not renewed when its directory was gone")
	}
	if err := k.Renew(); err == nil || serial(k) != third {
		t.Errorf("a certificate that is not in its file: %v", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := k.Renew(); err != nil {
		t.Fatal(err)
	}
	again, err = NewKeeper(config)
	if err != nil {
		t.Fatal(err)
	}
	if serial(again) != third {
		t.Error("the disk came back, and holds another certificate")
	}
	// Without anybody who shakes hands it is renewed too.
	now = k.Due().Add(time.Minute)
	if err := k.Renew(); err != nil {
		t.Fatal(err)
	}
	fourth := k.current.Load().Leaf.SerialNumber.String()
	again, err = NewKeeper(config)
	if err != nil || fourth == third || serial(again) != fourth {
		t.Errorf("its file was not renewed: %v", err)
	}
	// When its authority has expired, so has it.
	now = start.Add(AuthorityValidity)
	if _, err := k.Certificate(); err == nil {
		t.Error("an expired certificate was returned")
	}
}

// A certificate is renewed as long before its end as its life is short.
func TestShortLives(t *testing.T) {
	for _, validity := range []time.Duration{MinValidity, time.Minute, time.Hour, OwnValidity, Validity} {
		a, err := NewAuthority("ca", start)
		if err != nil {
			t.Fatal(err)
		}
		request := Node("n1")
		request.Validity = validity
		now := start
		k, err := NewKeeper(KeeperConfig{Authority: a, Request: request, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		leaf := k.current.Load().Leaf
		left, lived := leaf.NotAfter.Sub(k.Due()), k.Due().Sub(start)
		if left < validity/4 || lived < validity/2 || !start.After(leaf.NotBefore) {
			t.Errorf("valid for %v: renewed after %v, when %v is left, valid from %v", validity, lived, left, leaf.NotBefore)
		}
		now = k.Due().Add(time.Second)
		if next, err := k.Certificate(); err != nil || next.Leaf == leaf {
			t.Errorf("valid for %v: not renewed: %v", validity, err)
		}
	}
}

func TestKeeperReissues(t *testing.T) {
	a, err := New(start)
	if err != nil {
		t.Fatal(err)
	}
	other, err := New(start)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]func(*KeeperConfig){
		"new address":       func(c *KeeperConfig) { c.Request = EtcdPeer("m1", []netip.Addr{netip.MustParseAddr("10.1.1.1")}) },
		"new name":          func(c *KeeperConfig) { c.Request = EtcdPeer("m2", nil) },
		"another authority": func(c *KeeperConfig) { c.Authority = other.Etcd },
		"nearly expired":    func(c *KeeperConfig) { c.Now = func() time.Time { return start.Add(Validity - time.Hour) } },
		"shorter life":      func(c *KeeperConfig) { c.Request.Validity = OwnValidity },
		"damaged file":      func(c *KeeperConfig) { _ = os.Truncate(c.CertFile, 100) },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			config := KeeperConfig{
				Authority: a.Etcd, Request: EtcdPeer("m1", nil),
				CertFile: filepath.Join(dir, "c"), KeyFile: filepath.Join(dir, "k"),
				Now: func() time.Time { return start },
			}
			before, err := NewKeeper(config)
			if err != nil {
				t.Fatal(err)
			}
			change(&config)
			after, err := NewKeeper(config)
			if err != nil {
				t.Fatal(err)
			}
			c, err := after.Certificate()
			if err != nil {
				t.Fatal(err)
			}
			if c.Leaf.Equal(before.current.Load().Leaf) {
				t.Error("the certificate was kept")
			}
			if err := mismatch(c.Leaf, config.Request); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestReloader(t *testing.T) {
	a, err := New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "c"), filepath.Join(dir, "k")
	if _, err := NewReloader(certFile, keyFile); err == nil {
		t.Fatal("no error without files")
	}
	write := func(stamp time.Time) string {
		t.Helper()
		p, err := a.Cluster.Issue(Client("u"), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string][]byte{certFile: p.Certificate, keyFile: p.Key} {
			if err := WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(name, stamp, stamp); err != nil {
				t.Fatal(err)
			}
		}
		c, err := p.TLS()
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.SerialNumber.String()
	}
	serial := func(r *Reloader) string {
		t.Helper()
		c, err := r.Certificate()
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.SerialNumber.String()
	}
	first := write(start)
	r, err := NewReloader(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if serial(r) != first {
		t.Error("another certificate")
	}
	second := write(start.Add(time.Hour))
	if serial(r) != second {
		t.Error("the new certificate was not read")
	}
	if err := os.WriteFile(certFile, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if serial(r) != second {
		t.Error("a torn file lost the good certificate")
	}
}

func TestAdminKubeconfig(t *testing.T) {
	a, err := New(start)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	read := func() string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	validity := Validity
	write := func(server string, now time.Time) string {
		if err := a.WriteAdminKubeconfig(path, "barque", server, validity, now); err != nil {
			t.Fatal(err)
		}
		return read()
	}
	first := write("https://10.0.0.1:6443", start)
	if write("https://10.0.0.1:6443", start.Add(time.Hour)) != first {
		t.Error("a good kubeconfig was replaced")
	}
	if write("https://10.0.0.2:6443", start) == first {
		t.Error("another server did not change it")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode: %v, %v", info, err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ParseCertificate(config.CertData)
	if err != nil || cert.Subject.CommonName != UserAdmin || cert.Subject.Organization[0] != GroupMasters {
		t.Errorf("user is %v, %v", cert.Subject, err)
	}
	second := write("https://10.0.0.2:6443", start.Add(Validity))
	if second == first {
		t.Error("not renewed")
	}
	validity = OwnValidity
	third := write("https://10.0.0.2:6443", start.Add(Validity))
	if third == second || write("https://10.0.0.2:6443", start.Add(Validity)) != third {
		t.Error("a shorter life is not kept to")
	}

	mine := filepath.Join(t.TempDir(), "mine")
	loaded, err := clientcmd.LoadFromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := loaded.DeepCopy()
	other.Contexts["other"] = other.Contexts["barque"]
	other.CurrentContext = "other"
	if err := clientcmd.WriteToFile(*other, mine); err != nil {
		t.Fatal(err)
	}
	if err := Merge(mine, loaded); err != nil {
		t.Fatal(err)
	}
	merged, err := clientcmd.LoadFromFile(mine)
	if err != nil || merged.CurrentContext != "barque" || merged.Contexts["other"] == nil {
		t.Errorf("merged: %v, %v", merged, err)
	}
}

func TestSignCSR(t *testing.T) {
	a, err := NewAuthority("ca", start)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "system:node:a", Organization: []string{GroupNodes}},
		DNSNames:    []string{"a"},
		IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)},
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	day, second := int32(86400), int32(1)
	tests := map[string]struct {
		usages  []certificatesv1.KeyUsage
		seconds *int32
		request []byte
		want    time.Duration
		fails   string
	}{
		"kubelet":       {[]certificatesv1.KeyUsage{"digital signature", "client auth"}, nil, csr, Validity, ""},
		"a day":         {[]certificatesv1.KeyUsage{"server auth"}, &day, csr, 24 * time.Hour, ""},
		"too short":     {[]certificatesv1.KeyUsage{"server auth"}, &second, csr, MinCSRValidity, ""},
		"cert sign":     {[]certificatesv1.KeyUsage{"cert sign"}, nil, csr, 0, `the usage "cert sign" is not supported`},
		"damaged":       {[]certificatesv1.KeyUsage{"server auth"}, nil, csr[:80], 0, "CERTIFICATE REQUEST"},
		"bad signature": {[]certificatesv1.KeyUsage{"server auth"}, nil, flip(der), 0, "certificate request"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			text, err := a.SignCSR(&certificatesv1.CertificateSigningRequestSpec{
				Request: tt.request, Usages: tt.usages, ExpirationSeconds: tt.seconds,
			}, 0, start)
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) {
					t.Fatalf("got %v, want %q", err, tt.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			cert, err := ParseCertificate(text)
			if err != nil {
				t.Fatal(err)
			}
			if got := cert.NotAfter.Sub(start); got != tt.want {
				t.Errorf("valid for %v, want %v", got, tt.want)
			}
			if cert.IsCA || cert.Subject.CommonName != "system:node:a" || len(cert.IPAddresses) != 1 || cert.DNSNames[0] != "a" {
				t.Errorf("certificate %+v", cert.Subject)
			}
		})
	}
}

func flip(der []byte) []byte {
	c := append([]byte(nil), der...)
	c[len(c)-1] ^= 1
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: c})
}

// The secrets of an authority are its key's: they outlive the certificate, differ by purpose, and are nobody
// else's. That they never change is a promise: what they seal must open after every upgrade.
func TestSecret(t *testing.T) {
	block := "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIIrYSSNQFaA2Hwf1duRSxKtLYX5CB04fSeQ6tF1aY/PuoAoGCCqGSM49\nAwEHoUQDQgAEPR3tU2Fta9ktY+6P9G0cWO+0kETA6SFs38GecTyudlHz6xvCdz8q\nEKTcWGekdmdDPsHloRNtsiCa697B2O9IFA==\n-----END EC PRIVATE KEY-----\n"
	key, err := parseKey([]byte(block))
	if err != nil {
		t.Fatal(err)
	}
	renewed := func(name string) *Authority {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(int64(len(name))), Subject: pkix.Name{CommonName: name}, NotBefore: start, NotAfter: start.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true,
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return &Authority{cert: cert, key: key}
	}
	secret := func(a *Authority, purpose string) (string, string) {
		s, id, err := a.Secret(purpose)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%x", s), id
	}
	first, id := secret(renewed("a"), "purpose")
	if again, sameID := secret(renewed("renewed"), "purpose"); again != first || sameID != id {
		t.Error("a renewed certificate changes the secret")
	}
	if other, _ := secret(renewed("a"), "other"); other == first {
		t.Error("two purposes share a secret")
	}
	const promised = "1e982d43bb7fd03368ec10cc68dd5dc80dec83e9456f7ae3af6f979765316cb4"
	if first != promised {
		t.Errorf("the secret is %s, it was %s", first, promised)
	}
	another, err := NewAuthority("another", start)
	if err != nil {
		t.Fatal(err)
	}
	if s, otherID := secret(another, "purpose"); s == first || otherID == id {
		t.Error("two authorities share a secret")
	}
	for _, generate := range []func() (crypto.Signer, error){
		func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) },
		func() (crypto.Signer, error) { _, k, err := ed25519.GenerateKey(rand.Reader); return k, err },
	} {
		k, err := generate()
		if err != nil {
			t.Fatal(err)
		}
		a, b := &Authority{cert: another.cert, key: k}, &Authority{cert: another.cert, key: k}
		x, _ := secret(a, "purpose")
		if y, _ := secret(b, "purpose"); x != y || x == first {
			t.Errorf("the secret of a %T is not its own", k)
		}
	}
}
