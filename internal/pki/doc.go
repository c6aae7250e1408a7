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
// they expire and gives the new one to the next handshake, without a restart. They live short
// ([OwnValidity]): nobody has to do anything for the next one, and a server that was off for
// longer issues them anew as it starts, with the keys that it has.
package pki

import "time"

const (
	// AuthorityValidity is how long a certificate authority is valid.
	AuthorityValidity = 10 * 365 * 24 * time.Hour
	// Validity is how long an issued certificate is valid unless its request says otherwise.
	Validity = 365 * 24 * time.Hour
	// OwnValidity is how long one is valid that a server issues to itself.
	OwnValidity = 30 * 24 * time.Hour
	// MinValidity is the shortest that can be kept up: what is under way when a certificate is
	// renewed has the last third of its life to end.
	MinValidity = 30 * time.Second
	// maxBackdate is how far a certificate's validity starts before its issue, so that machines
	// whose clocks disagree a little trust it at once.
	maxBackdate = 10 * time.Minute
)

// backdate is that of a certificate with a validity: at most a tenth, since it counts as life that has passed.
func backdate(validity time.Duration) time.Duration { return min(maxBackdate, validity/10) }
