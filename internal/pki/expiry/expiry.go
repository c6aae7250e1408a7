// Package expiry tells which certificates a cluster has, and when they expire.
//
// Each server tells of those that are in its data directory, and of the nodes' that it has seen as they called it. The server
// that an administrator asks has the others tell as well, looks at what agents serve with, and makes one [Report] of all that. It
// is a look at certificates, which are public: no key is read.
package expiry

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"barque.dev/internal/pki"
)

// Everywhere is the machine of what all servers share: the authorities.
const Everywhere = "every server"

// What a certificate is.
const (
	// Authority signs others. Nobody renews it by itself.
	Authority = "authority"
	// Leaf is what a machine shows to others, and renews.
	Leaf = "certificate"
	// Kubeconfig is the one in a kubeconfig: a server renews the file in its data directory, nobody renews copies.
	Kubeconfig = "kubeconfig"
)

// A Certificate is one that somebody will miss once it has expired.
type Certificate struct {
	// Machine is the name of the server or node that has it, or Everywhere.
	Machine string `json:"machine"`
	// Name is what it is for: that of its file, without what a file's name ends in.
	Name string `json:"name"`
	// Kind is Authority, Leaf or Kubeconfig.
	Kind string `json:"kind"`
	// Renewed tells whether its machine renews it by itself.
	Renewed bool `json:"renewed"`

	Subject     string    `json:"subject,omitempty"`
	Issuer      string    `json:"issuer,omitempty"`
	Fingerprint string    `json:"fingerprint,omitempty"` // SHA-256 of the DER, in lower-case hex
	NotBefore   time.Time `json:"notBefore,omitzero"`
	NotAfter    time.Time `json:"notAfter,omitzero"`

	// Problem says why it can't be read; then the five above are empty.
	Problem string `json:"problem,omitempty"`
	// Attention says why somebody should look after it; set by Judge.
	Attention string `json:"attention,omitempty"`
}

// A Report is what is known of a cluster's certificates.
type Report struct {
	Certificates []Certificate `json:"certificates"`
	// Silent are the machines that did not tell of all theirs.
	Silent []string `json:"silent,omitempty"`
}

// Of describes a certificate.
func Of(machine, name, kind string, cert *x509.Certificate) Certificate {
	sum := sha256.Sum256(cert.Raw)
	return Certificate{
		Machine: machine, Name: name, Kind: kind, Renewed: kind != Authority,
		Subject: cert.Subject.String(), Issuer: cert.Issuer.String(), Fingerprint: hex.EncodeToString(sum[:]),
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
	}
}

// FromFile describes the first certificate of a PEM file; what is wrong with the file is the Problem.
func FromFile(machine, path, kind string) Certificate {
	name := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
	text, err := os.ReadFile(path)
	if err == nil {
		var cert *x509.Certificate
		if cert, err = pki.ParseCertificate(text); err == nil {
			return Of(machine, name, kind, cert)
		}
		err = fmt.Errorf("%s: %w", path, err)
	}
	return Certificate{Machine: machine, Name: name, Kind: kind, Renewed: kind != Authority, Problem: err.Error()}
}

// FromKubeconfig describes the certificate of the user that a kubeconfig is for. There is none, and ok is false, when the user
// shows something else.
func FromKubeconfig(machine, name, path string) (c Certificate, ok bool) {
	c = Certificate{Machine: machine, Name: name, Kind: Kubeconfig}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		c.Problem = fmt.Sprintf("read kubeconfig %s: %v", path, err)
		return c, true
	}
	text := config.CertData
	if len(text) == 0 && config.CertFile != "" {
		if text, err = os.ReadFile(config.CertFile); err != nil {
			c.Problem = err.Error()
			return c, true
		}
	}
	if len(text) == 0 {
		return c, false
	}
	cert, err := pki.ParseCertificate(text)
	if err != nil {
		c.Problem = fmt.Sprintf("the certificate in kubeconfig %s: %v", path, err)
		return c, true
	}
	c = Of(machine, name, Kubeconfig, cert)
	c.Renewed = false
	return c, true
}

// maxNotice is how long before its end a certificate wants attention at most.
const maxNotice = 30 * 24 * time.Hour

// Judge says of each certificate whether somebody should look after it, and returns how many of them there are. within is how long
// before their end they count; 0 is when less than a sixth of its life is left, and less than 30 days: what renews itself has done so at a third.
func (r *Report) Judge(now time.Time, within time.Duration) (count int) {
	for i := range r.Certificates {
		c := &r.Certificates[i]
		c.Attention = c.attention(now, within)
		if c.Attention != "" {
			count++
		}
	}
	return count
}

func (c *Certificate) attention(now time.Time, within time.Duration) string {
	if c.Problem != "" {
		return c.Problem
	}
	notice := min(maxNotice, c.NotAfter.Sub(c.NotBefore)/6)
	if within == 0 {
		within = notice
	}
	switch left := c.NotAfter.Sub(now); {
	case now.Before(c.NotBefore):
		return "not valid yet: the clocks disagree"
	case left <= 0:
		return "expired"
	case left < min(notice, within) && c.Renewed:
		return "not renewed in time: see its machine's log"
	case left < within:
		return "expires soon"
	}
	return ""
}

// Combine makes one report of those of all servers: an authority that they share is listed once, and of what several tell the newest.
func Combine(reports ...Report) Report {
	var all Report
	type id struct{ machine, name string }
	at := map[id]int{}
	shared := sharedAuthorities(reports)
	for _, r := range reports {
		all.Silent = append(all.Silent, r.Silent...)
		for _, c := range r.Certificates {
			if c.Kind == Authority && c.Fingerprint != "" && shared[c.Name] == c.Fingerprint {
				c.Machine = Everywhere
			}
			key := id{c.Machine, c.Name}
			i, known := at[key]
			switch {
			case !known:
				at[key] = len(all.Certificates)
				all.Certificates = append(all.Certificates, c)
			case c.NotBefore.After(all.Certificates[i].NotBefore):
				all.Certificates[i] = c
			}
		}
	}
	slices.SortStableFunc(all.Certificates, func(a, b Certificate) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Machine, b.Machine), cmp.Compare(a.Name, b.Name))
	})
	slices.Sort(all.Silent)
	all.Silent = slices.Compact(all.Silent)
	return all
}

// rank puts the authorities first.
func rank(c Certificate) int {
	if c.Machine == Everywhere {
		return 0
	}
	return 1
}

// sharedAuthorities are the fingerprints, by name, of authorities that every report which tells of the name has.
func sharedAuthorities(reports []Report) map[string]string {
	shared := map[string]string{}
	for _, r := range reports {
		for _, c := range r.Certificates {
			if c.Kind != Authority {
				continue
			}
			if have, ok := shared[c.Name]; ok && have != c.Fingerprint {
				shared[c.Name] = ""
				continue
			}
			shared[c.Name] = c.Fingerprint
		}
	}
	return shared
}
