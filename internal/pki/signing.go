package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The key of service account tokens is rotated in three steps, so that at every moment each
// server accepts what every other signs, whichever of them a file has reached:
//
//	prepare   sa-next.key is made, and sa.pub lists it: all servers accept it, none uses it
//	switch    sa-next.key becomes sa.key: it signs
//	retire    sa.pub lists nothing else: tokens of the keys before are refused
//
// Servers follow the files; between the steps the files are copied to the others.

// nextKeyFile holds the key that is to sign next.
const nextKeyFile = "sa-next.key"

// Errors of a rotation that callers tell apart with errors.Is.
var (
	// ErrPrepared: there is a key already that is to sign next.
	ErrPrepared = errors.New("a new key has been prepared already")
	// ErrNotPrepared: there is no key that is to sign next.
	ErrNotPrepared = errors.New("no new key has been prepared")
)

// SigningFiles is the content of the files that ReadSigningKey reads in dir, which is private.
func SigningFiles(dir string) ([]byte, error) {
	var all [][]byte
	for _, name := range []string{signingKeyFile, signingPublicFile} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, fmt.Errorf("read the keys of service account tokens: %w", err)
		}
		all = append(all, content)
	}
	return bytes.Join(all, []byte{0}), nil
}

// ReadSigningKey reads the keys of service account tokens as they are in dir now.
func ReadSigningKey(dir string) (*SigningKey, error) {
	key, err := readKey(dir, signingKeyFile)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, signingPublicFile)
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the keys of service account tokens: %w", err)
	}
	public, err := parsePublicKeys(content)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return &SigningKey{Key: key, Public: withKeyFirst(key.Public(), public)}, nil
}

func readKey(dir, name string) (crypto.Signer, error) {
	path := filepath.Join(dir, name)
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the keys of service account tokens: %w", err)
	}
	key, err := parseKey(content)
	if err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return key, nil
}

// PrepareSigningKey makes the key that is to sign next, and accepts it. It returns ErrPrepared
// when there is one.
func PrepareSigningKey(dir string) error {
	next := filepath.Join(dir, nextKeyFile)
	if _, err := os.Lstat(next); err == nil {
		return fmt.Errorf("%s: %w", next, ErrPrepared)
	}
	keys, err := ReadSigningKey(dir)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make service account key: %w", err)
	}
	keys.Public = append(keys.Public, key.Public())
	// First the public part: without the private one it does no harm.
	if err := keys.writePublic(dir); err != nil {
		return err
	}
	text, err := encodeKey(key)
	if err != nil {
		return fmt.Errorf("encode service account key: %w", err)
	}
	return WriteFile(next, text, fileMode(nextKeyFile))
}

// SwitchSigningKey signs with the prepared key from now on; what the key before has signed stays
// good. It returns ErrNotPrepared when there is none.
func SwitchSigningKey(dir string) error {
	key, err := readKey(dir, nextKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", filepath.Join(dir, nextKeyFile), ErrNotPrepared)
	}
	if err != nil {
		return err
	}
	keys, err := ReadSigningKey(dir)
	if err != nil {
		return err
	}
	keys.Public = withKeyFirst(key.Public(), keys.Public)
	if err := keys.writePublic(dir); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, nextKeyFile), filepath.Join(dir, signingKeyFile)); err != nil {
		return fmt.Errorf("switch service account key: %w", err)
	}
	return syncDir(dir)
}

// RetireSigningKeys accepts nothing any more but what the key that signs has signed, and the
// prepared key if there is one.
func RetireSigningKeys(dir string) error {
	keys, err := ReadSigningKey(dir)
	if err != nil {
		return err
	}
	keys.Public = keys.Public[:1]
	next, err := readKey(dir, nextKeyFile)
	switch {
	case err == nil:
		keys.Public = append(keys.Public, next.Public())
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return keys.writePublic(dir)
}

func (k *SigningKey) writePublic(dir string) error {
	text, err := k.publicPEM()
	if err != nil {
		return err
	}
	return WriteFile(filepath.Join(dir, signingPublicFile), text, fileMode(signingPublicFile))
}
