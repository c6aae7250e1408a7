package pki

import (
	"bytes"
	"crypto"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func same(a, b crypto.PublicKey) bool {
	e, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && e.Equal(b)
}

func TestSigningKeyRotation(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	made, err := Create(dir)
	if err != nil {
		t.Fatal(err)
	}
	read := func(accepted int) *SigningKey {
		t.Helper()
		keys, err := ReadSigningKey(dir)
		if err != nil {
			t.Fatal(err)
		}
		if len(keys.Public) != accepted {
			t.Fatalf("%d keys are accepted, want %d", len(keys.Public), accepted)
		}
		if !same(keys.Public[0], keys.Key.Public()) {
			t.Fatal("the key that signs is not the first that is accepted")
		}
		if all, err := Open(dir); err != nil || len(all.ServiceAccounts.Public) != accepted {
			t.Fatalf("a start reads %v, %v", all, err)
		}
		return keys
	}
	first := made.ServiceAccounts.Key.Public()
	if keys := read(1); !same(keys.Key.Public(), first) {
		t.Fatal("another key signs")
	}
	if err := SwitchSigningKey(dir); !errors.Is(err, ErrNotPrepared) {
		t.Errorf("switched to nothing: %v", err)
	}
	before, err := SigningFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := PrepareSigningKey(dir); err != nil {
		t.Fatal(err)
	}
	if after, err := SigningFiles(dir); err != nil || bytes.Equal(before, after) {
		t.Errorf("the files that are followed did not change: %v", err)
	}
	if err := PrepareSigningKey(dir); !errors.Is(err, ErrPrepared) {
		t.Errorf("prepared twice: %v", err)
	}
	keys := read(2)
	if !same(keys.Key.Public(), first) {
		t.Error("a key that is only prepared signs")
	}
	second := keys.Public[1]
	if err := RetireSigningKeys(dir); err != nil { // nothing is old yet
		t.Fatal(err)
	}
	read(2)
	if err := SwitchSigningKey(dir); err != nil {
		t.Fatal(err)
	}
	if keys := read(2); !same(keys.Key.Public(), second) || !same(keys.Public[1], first) {
		t.Error("the prepared key does not sign, or the one before is not accepted")
	}
	if info, err := os.Stat(filepath.Join(dir, signingKeyFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key that signs: %v, %v", info, err)
	}
	if err := RetireSigningKeys(dir); err != nil {
		t.Fatal(err)
	}
	if keys := read(1); !same(keys.Key.Public(), second) {
		t.Error("the wrong key was retired")
	}
}

func TestDamagedSigningKeys(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	if _, err := Create(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, signingPublicFile), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(string) error{
		"read":    func(dir string) error { _, err := ReadSigningKey(dir); return err },
		"prepare": PrepareSigningKey, "retire": RetireSigningKeys,
	} {
		if f(dir) == nil {
			t.Errorf("%s: took a damaged file", name)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, nextKeyFile)); err == nil {
		t.Error("a key was made beside a damaged file")
	}
}
