package encryption

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"

	"barque.dev/internal/store"
)

// stock is kube-apiserver's view of Secrets, given the configuration that a server's copy of the keys makes.
func stock(t *testing.T, v *server) value.Transformer {
	t.Helper()
	v.copied(t)
	text, err := Export(sealerOf(t, caID, 1), v.keyring.cfg.File)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	config, err := encryptionconfig.LoadEncryptionConfig(t.Context(), file, false, "stock")
	if err != nil {
		t.Fatalf("kube-apiserver refuses the configuration: %v\n%s", err, text)
	}
	return config.Transformers[secretsResource]
}

// From the first on, a Secret does not stand in etcd as it is; kube-apiserver reads it, and is read.
func TestSecretsAreEncrypted(t *testing.T) {
	f := newFixture(t)
	a := f.start(t, "a", true)
	a.create(t, "s", secret)
	const key = "/registry/secrets/ns/s"
	raw := f.raw(t, key)
	name := a.keyring.view().ring.Writes
	if !bytes.HasPrefix(raw, []byte("k8s:enc:secretbox:v1:"+name+":")) || bytes.Contains(raw, []byte(secret)) {
		t.Fatalf("in etcd stands %q", raw)
	}
	upstream := stock(t, a)
	plain, stale, err := upstream.TransformFromStorage(t.Context(), raw, value.DefaultContext(key))
	if err != nil || stale || string(plain) != secret {
		t.Errorf("kube-apiserver reads %q, stale %v, %v", plain, stale, err)
	}
	theirs, err := upstream.TransformToStorage(t.Context(), []byte("by stock"), value.DefaultContext("/registry/secrets/ns/theirs"))
	if err != nil {
		t.Fatal(err)
	}
	f.put(t, "/registry/secrets/ns/theirs", string(theirs))
	eventually(t, "what kube-apiserver wrote is read", func() error {
		text, err := a.text("theirs")
		if err == nil && text != "by stock" {
			err = fmt.Errorf("it says %q", text)
		}
		return err
	})
	// Nothing else in etcd gives it away: neither the Secret nor the key.
	opened, err := a.keyring.cfg.Sealer.openRing(f.raw(t, prefix+ringName))
	if err != nil {
		t.Fatal(err)
	}
	all, err := f.member.Range(t.Context(), &etcdserverpb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if err != nil || len(all.Kvs) == 0 {
		t.Fatal(err)
	}
	for _, kv := range all.Kvs {
		k := opened.secrets[name]
		if bytes.Contains(kv.Value, []byte(secret)) || bytes.Contains(kv.Value, k[:]) {
			t.Errorf("%s gives it away", kv.Key)
		}
	}
	if info, err := os.Stat(a.keyring.cfg.File); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the copy of the keys: %v %v", info, err)
	}
}

// As long as a server does not know of encryption nothing is encrypted; then everything is.
func TestUpgrade(t *testing.T) {
	f := newFixture(t, Server{Name: "a", Alive: true}, Server{Name: "old"})
	f.put(t, "/registry/secrets/ns/before", secret)
	a := f.start(t, "a", true)
	a.create(t, "during", secret)
	for _, name := range []string{"before", "during"} {
		if raw := f.raw(t, "/registry/secrets/ns/"+name); string(raw) != secret {
			t.Errorf("%s is %q though a server can't read that", name, raw)
		}
	}
	a.hasNoted(t)
	status, err := a.control.Status(t.Context())
	if err != nil || status.Writes != "" || fmt.Sprint(status.Waits) != "[old]" {
		t.Errorf("status %+v, %v", status, err)
	}
	old := f.start(t, "old", false) // it is upgraded
	a.settled(t, "")
	for _, name := range []string{"before", "during"} {
		if raw := f.raw(t, "/registry/secrets/ns/"+name); !encrypted(raw) {
			t.Errorf("%s still is %q", name, raw)
		}
		for _, v := range []*server{a, old} {
			eventually(t, v.name+" reads "+name, func() error {
				if text, err := v.text(name); err != nil || text != secret {
					return fmt.Errorf("%q %w", text, err)
				}
				return nil
			})
		}
	}
}

// The keys are rotated while all write, and the leader dies at some moment of it: when the key was just added,
// when it is in use, when some is written again, and when all is.
func TestRotate(t *testing.T) {
	for moment, reached := range map[string]func(b *server, first, second string) bool{
		"at once":               func(*server, string, string) bool { return true },
		"the key is in use":     func(b *server, _, second string) bool { return b.keyring.view().ring.Writes == second },
		"some is written again": func(b *server, _, second string) bool { return b.under(second) > 1 },
		"all is written again":  func(b *server, first, _ string) bool { return b.keyring.view().ring.Next == "" && b.under(first) == 0 },
	} {
		t.Run(moment, func(t *testing.T) { rotate(t, reached) })
	}
}

// under counts the objects that stand under a key.
func (v *server) under(name string) int {
	s, _ := resourceStatus(v.secrets)
	return s.Values[label(name)]
}

// objects is how many there are while keys are rotated.
const objects = 30

func rotate(t *testing.T, reached func(b *server, first, second string) bool) {
	f := newFixture(t, Server{Name: "a", Alive: true}, Server{Name: "b", Alive: true})
	a, b := f.start(t, "a", true), f.start(t, "b", false)
	first := b.settled(t, "")
	for i := range objects {
		b.create(t, fmt.Sprint(i), fmt.Sprint("text ", i))
	}
	stop := b.keepWriting(t, "0")
	second, err := b.keyring.Rotate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the moment has come", func() error {
		if !reached(b, first, second) {
			return errors.New("not yet")
		}
		return nil
	})
	a.stop()
	// It may have died before it had the key; who is known to be away holds up nobody.
	f.set(Server{Name: "a"}, Server{Name: "b", Alive: true})
	term, end := context.WithCancel(context.Background())
	led := make(chan struct{})
	go func() { defer close(led); b.lead(term, t) }()
	defer func() { end(); <-led }()
	if now := b.settled(t, first); now != second {
		t.Errorf("%s is in use, not %s", now, second)
	}
	eventually(t, "the old key is dropped", func() error {
		if names := b.keyring.view().ring.Names(); len(names) != 1 {
			return fmt.Errorf("there are %v", names)
		}
		return nil
	})
	stop()
	// The dead one comes back, and reads all, as a new one does.
	back, err := f.opened(t, "a", a.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	back.run(t, false)
	for _, v := range []*server{back, b} {
		for i := 1; i < objects; i++ {
			if text, err := v.text(fmt.Sprint(i)); err != nil || text != fmt.Sprint("text ", i) {
				t.Errorf("%s reads %d: %q %v", v.name, i, text, err)
			}
		}
	}
	if strings.Contains(string(f.raw(t, prefix+ringName)), first) {
		t.Error("the old key is still in etcd")
	}
}

// keepWriting changes an object over and over until stop is called; no write may fail.
func (v *server) keepWriting(t *testing.T, name string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	begun, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ctx.Err() == nil; i++ {
			_, err := v.secrets.Update(t.Context(), store.Key{Namespace: "ns", Name: name}, fmt.Appendf(nil, "change %d", i), 0, store.WriteOptions{})
			if err != nil {
				done <- err
				return
			}
			if i == 0 {
				close(begun)
			}
		}
		done <- nil
	}()
	select {
	case <-begun:
	case err := <-done:
		t.Fatal(err)
	}
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("a write failed meanwhile: %v", err)
		}
	}
}

// Encryption can be turned off, and on again.
func TestDisable(t *testing.T) {
	f := newFixture(t)
	a := f.start(t, "a", true)
	a.create(t, "s", secret)
	if err := a.keyring.Disable(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it stands there as it is", func() error {
		if raw := f.raw(t, "/registry/secrets/ns/s"); string(raw) != secret {
			return fmt.Errorf("%q", raw)
		}
		return nil
	})
	config := stock(t, a)
	if out, err := config.TransformToStorage(t.Context(), []byte("x"), value.DefaultContext("k")); err != nil || string(out) != "x" {
		t.Errorf("kube-apiserver would write %q, %v", out, err)
	}
	if _, err := a.keyring.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.settled(t, "")
	if raw := f.raw(t, "/registry/secrets/ns/s"); !encrypted(raw) {
		t.Errorf("it is %q again", raw)
	}
}

// A server of another cluster says whose keys it lacks, and touches nothing.
func TestSealedForAnother(t *testing.T) {
	f := newFixture(t)
	a := f.start(t, "a", true)
	a.create(t, "s", secret)
	for what, sealer := range map[string]*Sealer{"another authority": sealerOf(t, "sha256:other", 2), "a forged id": sealerOf(t, caID, 2)} {
		s, err := store.Open(t.Context(), store.Config{Backend: f.member, CompactEvery: -1})
		if err != nil {
			t.Fatal(err)
		}
		_, err = NewKeyring(KeyringConfig{Store: s, Etcd: f.member, Sealer: sealer, Server: "x"})
		if err == nil || errors.Is(err, ErrSealed) != (what == "another authority") {
			t.Errorf("%s: %v", what, err)
		}
		if what == "another authority" && (!strings.Contains(err.Error(), caID) || !strings.Contains(err.Error(), "ca.key")) {
			t.Errorf("it does not say what to bring: %v", err)
		}
	}
}

// Somebody removes the record of the keys: nothing stops working, and it comes back, also when all servers
// were down.
func TestRecordRemoved(t *testing.T) {
	f := newFixture(t)
	a := f.start(t, "a", true)
	a.create(t, "s", secret)
	name := a.keyring.view().ring.Writes
	remove := func() {
		if _, err := f.member.Server().DeleteRange(t.Context(), &etcdserverpb.DeleteRangeRequest{Key: []byte(prefix + ringName)}); err != nil {
			t.Fatal(err)
		}
	}
	restored := func() error {
		if raw := f.raw(t, prefix+ringName); !bytes.Contains(raw, []byte(name)) {
			return fmt.Errorf("%q", raw)
		}
		return nil
	}
	a.copied(t)
	remove()
	a.create(t, "t", secret)
	eventually(t, "the record is put back", restored)
	a.stop()
	remove()
	again, err := f.opened(t, "a", a.dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	again.run(t, true)
	eventually(t, "the record is put back from the copy", restored)
	for _, object := range []string{"s", "t"} {
		if text, err := again.text(object); err != nil || text != secret {
			t.Errorf("%s: %q %v", object, text, err)
		}
	}
}

// What was encrypted while this server started is read, though its image of the keys is older.
func TestKeyThatTheImageLacks(t *testing.T) {
	f := newFixture(t)
	a := f.start(t, "a", false)
	a.settled(t, "")
	late, err := f.opened(t, "late", t.TempDir(), nil) // its image does not move
	if err != nil {
		t.Fatal(err)
	}
	f.set(Server{Name: "a", Alive: true})
	name, err := a.keyring.Rotate(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a.settled(t, late.keyring.view().ring.Writes)
	a.create(t, "s", secret)
	raw := f.raw(t, "/registry/secrets/ns/s")
	if keyOf(raw) != name || late.keyring.view().ring.Has(name) {
		t.Fatalf("the case is not there: %q, %v", raw, late.keyring.view().ring.Names())
	}
	if plain, err := late.secrets.Schema().Transform.FromStorage(t.Context(), raw, ""); err != nil || string(plain) != secret {
		t.Errorf("%q %v", plain, err)
	}
	unknown := bytes.Replace(raw, []byte(name), []byte(namePrefix+"nobody"), 1)
	if _, err := late.secrets.Schema().Transform.FromStorage(t.Context(), unknown, ""); err == nil || !strings.Contains(err.Error(), namePrefix+"nobody") {
		t.Errorf("with an unknown key: %v", err)
	}
}

func TestLabels(t *testing.T) {
	for stored, want := range map[string]struct{ label, key string }{
		"":                                     {Plain, ""},
		"k8s\x00protobuf":                      {Plain, ""},
		`{"kind":"Widget"}`:                    {Plain, ""},
		"k8s:enc:secretbox:v1:barque-1:x:y":    {"secretbox:v1:barque-1", "barque-1"},
		"k8s:enc:secretbox:v1:mine:x":          {"secretbox:v1:mine", ""},
		"k8s:enc:aescbc:v1:barque-1:x":         {"aescbc:v1:barque-1", ""},
		"k8s:enc:kms:v2:vault:x":               {"kms:v2:vault", ""},
		"k8s:enc:secretbox:v1:barque-no-colon": {"unknown", ""},
		"k8s:enc:":                             {"unknown", ""},
		"k8s:enc:secretbox:v1:\xff:x":          {"secretbox:v1:?", ""},
		"k8s:enc:secretbox:v1:" + strings.Repeat("a", 200) + ":x": {"unknown", ""},
	} {
		if got := labelOf([]byte(stored)); got != want.label {
			t.Errorf("%q: label %q, want %q", stored, got, want.label)
		}
		if got := keyOf([]byte(stored)); got != want.key {
			t.Errorf("%q: key %q, want %q", stored, got, want.key)
		}
	}
}

func FuzzOpenRing(f *testing.F) {
	s, err := NewSealer(caID, [32]byte{1})
	if err != nil {
		f.Fatal(err)
	}
	k, err := s.newKey(time.Unix(0, 0))
	if err != nil {
		f.Fatal(err)
	}
	record, err := json.Marshal(newRing(caID, k))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(record)
	f.Add([]byte(`{"version":1,"sealedFor":"` + caID + `","keys":[{"name":"x","sealed":""}]}`))
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, record []byte) {
		open, err := s.openRing(record)
		if err == nil && len(open.secrets) == 0 {
			t.Errorf("%q opens a ring without keys", record)
		}
	})
}
