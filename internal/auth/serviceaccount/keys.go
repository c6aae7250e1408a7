// Package serviceaccount issues and checks the tokens by which pods call the API: JWTs (RFC
// 7519) signed with the cluster's key, bound to an audience, a lifetime and, usually, to the
// pod, node or secret they were made for. A token dies with what it is bound to: each request
// looks that up in the shared image (KEP-1205, KEP-4193).
//
// Others can check tokens too: the package serves the OpenID discovery document and key set.
package serviceaccount

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"sync/atomic"

	"github.com/go-jose/go-jose/v4"
)

// Keys are the keys of service account tokens: one signs, and the tokens of several are
// accepted. They can be replaced while requests are served. It is safe for concurrent use.
type Keys struct {
	current atomic.Pointer[ring]
}

// A ring is the keys at one moment. It is immutable.
type ring struct {
	signer   jose.Signer
	accepted jose.JSONWebKeySet
}

// NewKeys signs with one key and accepts those whose public parts are given, the signing key's
// among them.
func NewKeys(signing crypto.Signer, public []crypto.PublicKey) (*Keys, error) {
	k := &Keys{}
	return k, k.Replace(signing, public)
}

// Replace uses these keys from now on. Tokens of keys that are not accepted any more are refused
// at once. With an error nothing changes.
func (k *Keys) Replace(signing crypto.Signer, public []crypto.PublicKey) error {
	id, err := keyID(signing.Public())
	if err != nil {
		return err
	}
	algorithm, err := algorithmOf(signing.Public())
	if err != nil {
		return err
	}
	next := &ring{}
	if next.accepted, err = keySet(public); err != nil {
		return err
	}
	if len(next.accepted.Key(id)) == 0 {
		return fmt.Errorf("the public part of the key that signs service account tokens (%s) is not among the accepted keys", id)
	}
	next.signer, err = jose.NewSigner(jose.SigningKey{
		Algorithm: algorithm,
		Key:       jose.JSONWebKey{Key: signing, KeyID: id, Algorithm: string(algorithm), Use: "sig"},
	}, nil)
	if err != nil {
		return fmt.Errorf("prepare service account signing: %w", err)
	}
	k.current.Store(next)
	return nil
}

// keyID derives a key's identifier from its public part, as stock Kubernetes does, so that
// tokens stay valid when a cluster moves to or from it.
func keyID(public crypto.PublicKey) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("encode service account public key: %w", err)
	}
	sum := sha256.Sum256(der)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}

// algorithmOf returns the JWS algorithm (RFC 7518) that fits a key.
func algorithmOf(public crypto.PublicKey) (jose.SignatureAlgorithm, error) {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return jose.RS256, nil
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			return jose.ES256, nil
		case elliptic.P384():
			return jose.ES384, nil
		case elliptic.P521():
			return jose.ES512, nil
		}
		return "", fmt.Errorf("service account key: the curve %s is not supported", key.Curve.Params().Name)
	}
	return "", fmt.Errorf("service account key: a %T is not supported", public)
}

// keySet is the public keys in the form that JOSE uses, each once.
func keySet(public []crypto.PublicKey) (jose.JSONWebKeySet, error) {
	var set jose.JSONWebKeySet
	for _, key := range public {
		id, err := keyID(key)
		if err != nil {
			return set, err
		}
		algorithm, err := algorithmOf(key)
		if err != nil {
			return set, err
		}
		if len(set.Key(id)) > 0 {
			continue
		}
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: key, KeyID: id, Algorithm: string(algorithm), Use: "sig"})
	}
	return set, nil
}
