package encryption

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// keySize is that of secretbox's keys, in bytes.
const keySize = 32

// namePrefix begins the names of the cluster's own keys.
const namePrefix = "barque-"

// ErrSealed: the keys were sealed for another authority than this server's.
var ErrSealed = errors.New("the keys that encrypt this cluster's secrets are sealed for another authority")

// A Sealer seals keys with a secret that all servers share. It is safe for concurrent use.
type Sealer struct {
	id   string
	aead cipher.AEAD
}

// NewSealer makes a sealer of a secret; id tells sealers of other secrets apart, and is public.
func NewSealer(id string, secret [32]byte) (*Sealer, error) {
	block, err := aes.NewCipher(secret[:])
	if err != nil {
		return nil, fmt.Errorf("make sealer: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("make sealer: %w", err)
	}
	return &Sealer{id: id, aead: aead}, nil
}

// newKey makes a key of a random name, so that two are never taken for each other.
func (s *Sealer) newKey(now time.Time) (Key, error) {
	var random [5 + keySize]byte
	if _, err := rand.Read(random[:]); err != nil {
		return Key{}, fmt.Errorf("make key: %w", err)
	}
	name := namePrefix + hex.EncodeToString(random[:5])
	return Key{Name: name, Created: now.UTC().Truncate(time.Second), Sealed: s.aead.Seal(nil, nil, random[5:], []byte(name))}, nil
}

// open returns the key itself.
func (s *Sealer) open(k Key) ([keySize]byte, error) {
	var out [keySize]byte
	plain, err := s.aead.Open(nil, nil, k.Sealed, []byte(k.Name))
	if err != nil || len(plain) != keySize {
		return out, fmt.Errorf("open key %s: it is damaged", k.Name)
	}
	copy(out[:], plain)
	return out, nil
}

// Check tells whether the record of a cluster's keys, as it stands in etcd, can be opened. Its error wraps ErrSealed
// when another authority's key is needed.
func (s *Sealer) Check(record []byte) error {
	_, err := s.openRing(record)
	return err
}

// An openRing is a ring with its keys opened, by name.
type openRing struct {
	Ring
	secrets map[string][keySize]byte
}

// openRing reads the record of a ring. Its error wraps ErrSealed when another authority's key is needed.
func (s *Sealer) openRing(record []byte) (openRing, error) {
	var out openRing
	if err := json.Unmarshal(record, &out.Ring); err != nil {
		return out, fmt.Errorf("the record of keys can't be read: %w", err)
	}
	if err := out.check(); err != nil {
		return out, err
	}
	if out.SealedFor != s.id {
		return out, fmt.Errorf("%w (%s; this server's is %s): copy the directory pki, or ca.crt and ca.key in it, "+
			"from any server of the cluster that the data is from", ErrSealed, out.SealedFor, s.id)
	}
	out.secrets = make(map[string][keySize]byte, len(out.Keys))
	for _, k := range out.Keys {
		secret, err := s.open(k)
		if err != nil {
			return out, err
		}
		out.secrets[k.Name] = secret
	}
	return out, nil
}
