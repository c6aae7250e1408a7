// Package pki keeps the cluster's keys: three certificate authorities and the key that signs
// service account tokens, and it issues every certificate the cluster uses.
//
// The first server makes them ([Create]); a server that joins receives them over a pinned
// connection ([Bundle], [Import]); each later start reads them ([Open]). All of them live in
// one directory, which appears at once and complete or not at all:
//
//	ca.crt, ca.key                    the cluster: servers, clients, nodes
//	etcd-ca.crt, etcd-ca.key          etcd members among themselves
//	front-proxy-ca.crt, …key          the API server towards aggregated API servers
//	sa.key, sa.pub                    service account tokens; sa.pub may list other keys too
//	sa-next.key                       only while the key of those tokens is rotated
//
// The authorities are separate so that a client certificate of the cluster never opens etcd
// and one of the front proxy never names a user to the API server. Keys are ECDSA P-256: made
// in microseconds, and a TLS handshake costs a small machine a tenth of what RSA does.
//
// Certificates that a server uses itself come from a [Keeper], which renews them long before
// they expire and gives the new one to the next handshake, without a restart.
package pki

import "time"

const (
	// AuthorityValidity is how long a certificate authority is valid.
	AuthorityValidity = 10 * 365 * 24 * time.Hour
	// Validity is how long an issued certificate is valid unless its request says otherwise.
	Validity = 365 * 24 * time.Hour
	// backdate is how far a certificate's validity starts before its issue, so that machines
	// whose clocks disagree a little trust it at once.
	backdate = 10 * time.Minute
)
