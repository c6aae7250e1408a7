package encryption

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"
	kms "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/testing/v2"

	"barque.dev/internal/store"
)

func fileKey(c byte) string {
	return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{c}, keySize))
}

// config is an EncryptionConfiguration; each rule is resources, a space, and providers in YAML's flow style.
func config(rules ...string) string {
	var b strings.Builder
	b.WriteString("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n")
	for _, rule := range rules {
		resources, providers, _ := strings.Cut(rule, " ")
		fmt.Fprintf(&b, "- resources: ['%s']\n  providers: [%s]\n", strings.ReplaceAll(resources, ",", "','"), providers)
	}
	return b.String()
}

func keyed(provider, name string, c byte) string {
	return fmt.Sprintf("{%s: {keys: [{name: %s, secret: '%s'}]}}", provider, name, fileKey(c))
}

const identity = "{identity: {}}"

func writeConfig(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func openConfig(t *testing.T, text string, cfg FileConfig) (*File, error) {
	t.Helper()
	if cfg.Path == "" {
		cfg.Path = filepath.Join(t.TempDir(), "config.yaml")
	}
	writeConfig(t, cfg.Path, text)
	cfg.Server = "test"
	f, err := OpenFile(t.Context(), cfg)
	if err == nil {
		t.Cleanup(f.Close)
	}
	return f, err
}

func mustOpenConfig(t *testing.T, text string) *File {
	t.Helper()
	f, err := openConfig(t, text, FileConfig{})
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return f
}

// Every provider writes what kube-apiserver reads, given the same file, and the other way round.
func TestProviders(t *testing.T) {
	fx := newFixture(t)
	a := fx.start(t, "a", false)
	a.settled(t, "")
	for provider, want := range map[string]string{
		keyed("aescbc", "k", 1):    "k8s:enc:aescbc:v1:k:",
		keyed("aesgcm", "k", 1):    "k8s:enc:aesgcm:v1:k:",
		keyed("secretbox", "k", 1): "k8s:enc:secretbox:v1:k:",
		identity:                   secret,
	} {
		text := config("secrets " + provider)
		f := mustOpenConfig(t, text)
		upstream, err := encryptionconfig.LoadEncryptionConfig(t.Context(), f.cfg.Path, false, "stock")
		if err != nil {
			t.Fatal(err)
		}
		theirs := upstream.Transformers[secretsResource]
		ours := Transformers(a.keyring, f)(secretsResource)
		const at = "/registry/secrets/ns/s"
		stored, err := ours.ToStorage(t.Context(), []byte(secret), at)
		if err != nil || !bytes.HasPrefix(stored, []byte(want)) {
			t.Errorf("%s writes %q, %v", provider, stored, err)
			continue
		}
		if plain, stale, err := theirs.TransformFromStorage(t.Context(), stored, value.DefaultContext(at)); err != nil || stale || string(plain) != secret {
			t.Errorf("%s: kube-apiserver reads %q, %v %v", provider, plain, stale, err)
		}
		if stored, err = theirs.TransformToStorage(t.Context(), []byte(secret), value.DefaultContext(at)); err != nil {
			t.Fatal(err)
		}
		if plain, err := ours.FromStorage(t.Context(), stored, at); err != nil || string(plain) != secret {
			t.Errorf("%s: of what kube-apiserver writes is read %q, %v", provider, plain, err)
		}
		if ours.(store.Staler).Stale(stored, at) {
			t.Errorf("%s: what kube-apiserver writes is stale", provider)
		}
		if _, err := ours.FromStorage(t.Context(), stored, "/registry/secrets/ns/other"); (err != nil) != strings.Contains(provider, "aesgcm") {
			t.Errorf("%s, at another key: %v", provider, err)
		}
		// The cluster's own keys are read whatever the file says, and replaced.
		own, err := Transformers(a.keyring, nil)(secretsResource).ToStorage(t.Context(), []byte(secret), at)
		if err != nil || keyOf(own) == "" {
			t.Fatal(err)
		}
		if plain, err := ours.FromStorage(t.Context(), own, at); err != nil || string(plain) != secret {
			t.Errorf("%s: of what is under the cluster's own key is read %q, %v", provider, plain, err)
		}
		if !ours.(store.Staler).Stale(own, at) {
			t.Errorf("%s: what is under the cluster's own key is not stale", provider)
		}
	}
}

// Which resources a file speaks of, those that come later included, and in which order.
func TestRules(t *testing.T) {
	fx := newFixture(t)
	a := fx.start(t, "a", false)
	a.settled(t, "")
	f := mustOpenConfig(t, config(
		"configmaps,widgets.example.com "+keyed("aescbc", "named", 1)+","+identity,
		"*.apps "+keyed("aescbc", "apps", 2)+","+identity,
		"*. "+keyed("aescbc", "core", 3)+","+identity,
	))
	for resource, want := range map[string]string{
		"configmaps": "named", "widgets.example.com": "named", "deployments.apps": "apps", "pods": "core", "secrets": "core",
		"gadgets.example.com": "", "jobs.batch": "",
	} {
		transform := Transformers(a.keyring, f)(schema.ParseGroupResource(resource))
		if transform == nil {
			if want != "" {
				t.Errorf("%s is not encrypted", resource)
			}
			continue
		}
		stored, err := transform.ToStorage(t.Context(), []byte("x"), "k")
		if err != nil || want == "" || labelOf(stored) != "aescbc:v1:"+want {
			t.Errorf("%s: %q %v, want the key %q", resource, stored, err, want)
		}
	}
	all := mustOpenConfig(t, config("*.* "+keyed("aesgcm", "all", 1)+","+identity))
	for _, resource := range []string{"secrets", "whatevers.comes.later", "leases.coordination.k8s.io"} {
		stored, err := Transformers(a.keyring, all)(schema.ParseGroupResource(resource)).ToStorage(t.Context(), []byte("x"), "k")
		if err != nil || labelOf(stored) != "aesgcm:v1:all" {
			t.Errorf("*.*: %s: %q %v", resource, stored, err)
		}
	}
	// Secrets that a file does not name stay under the cluster's own keys.
	other := mustOpenConfig(t, config("configmaps "+keyed("aescbc", "k", 1)))
	if _, ok := Transformers(a.keyring, other)(secretsResource).(byRing); !ok {
		t.Error("a file about config maps changes what Secrets are encrypted with")
	}
	// Several keys and providers: the first writes, all read.
	two := mustOpenConfig(t, config("configmaps "+keyed("aesgcm", "new", 2)+","+keyed("aescbc", "k", 1)+","+identity))
	gr := schema.GroupResource{Resource: "configmaps"}
	first, second := Transformers(a.keyring, other)(gr), Transformers(a.keyring, two)(gr)
	stored, err := first.ToStorage(t.Context(), []byte("x"), "k")
	if err != nil {
		t.Fatal(err)
	}
	for _, old := range [][]byte{stored, []byte("x")} {
		if plain, err := second.FromStorage(t.Context(), old, "k"); err != nil || string(plain) != "x" || !second.(store.Staler).Stale(old, "k") {
			t.Errorf("%q: %q %v, stale %v", old, plain, err, second.(store.Staler).Stale(old, "k"))
		}
	}
	if _, err := first.FromStorage(t.Context(), []byte("x"), "k"); err == nil {
		t.Error("plain text is read though the file has no identity provider")
	}
}

func TestBadFiles(t *testing.T) {
	for what, c := range map[string]struct{ text, want string }{
		"empty":          {"", "empty"},
		"no YAML":        {"{", "decoding"},
		"unknown field":  {config("secrets "+identity) + "more: 1\n", "more"},
		"masked":         {config("*.* "+identity, "secrets "+identity), "secrets"},
		"short key":      {config("secrets {secretbox: {keys: [{name: k, secret: YWJj}]}}"), "32"},
		"KMS v1":         {config("secrets {kms: {apiVersion: v1, name: k, endpoint: 'unix:///nowhere.sock'}}"), "KMSv1 is deprecated"},
		"no such socket": {config("secrets {kms: {apiVersion: v2, name: k, endpoint: 'tcp://nowhere'}}"), "unix"},
	} {
		if _, err := openConfig(t, c.text, FileConfig{}); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "--encryption-provider-config") {
			t.Errorf("%s: %v, want a word about %q", what, err, c.want)
		}
	}
}

// A changed file is used without a restart; a wrong one is not.
func TestReload(t *testing.T) {
	fx := newFixture(t)
	a := fx.start(t, "a", false)
	a.settled(t, "")
	path := filepath.Join(t.TempDir(), "config.yaml")
	var logged lines
	f, err := openConfig(t, config("configmaps "+keyed("aescbc", "one", 1)+","+identity), FileConfig{Path: path, Reload: true, Every: time.Millisecond, Log: slog.New(slog.NewTextHandler(&logged, nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	transformers := Transformers(a.keyring, f)
	maps, secrets, pods := transformers(schema.GroupResource{Resource: "configmaps"}), transformers(secretsResource), transformers(schema.GroupResource{Resource: "pods"})
	label := func(tr store.Transformer) string {
		stored, err := tr.ToStorage(t.Context(), []byte("x"), "k")
		if err != nil {
			t.Fatal(err)
		}
		if plain, err := tr.FromStorage(t.Context(), stored, "k"); err != nil || string(plain) != "x" {
			t.Errorf("%q is read as %q %v", stored, plain, err)
		}
		return labelOf(stored)
	}
	own := "secretbox:v1:" + a.keyring.view().ring.Writes
	if m, s, p := label(maps), label(secrets), label(pods); m != "aescbc:v1:one" || s != own || p != Plain {
		t.Errorf("at first: %s, %s, %s", m, s, p)
	}
	if guard, revision := secrets.(store.Guarder).Guard([]byte("x")); guard == "" || revision >= 0 {
		t.Errorf("a plain Secret would be written: %q %d", guard, revision)
	}
	old, err := maps.ToStorage(t.Context(), []byte("x"), "k")
	if err != nil {
		t.Fatal(err)
	}
	writeConfig(t, path, "nonsense")
	eventually(t, "the wrong file is looked at", func() error {
		if !logged.contain("is not used") {
			return errors.New("not yet")
		}
		return nil
	})
	if m := label(maps); m != "aescbc:v1:one" {
		t.Errorf("a wrong file is used: %s", m)
	}
	writeConfig(t, path, config("configmaps,secrets "+keyed("secretbox", "two", 2)+","+keyed("aescbc", "one", 1)))
	eventually(t, "the new file is in use", func() error {
		if m, s := label(maps), label(secrets); m != "secretbox:v1:two" || s != m {
			return fmt.Errorf("%s, %s", m, s)
		}
		return nil
	})
	if !maps.(store.Staler).Stale(old, "k") {
		t.Error("what is under the old key is not stale")
	}
	if guard, _ := secrets.(store.Guarder).Guard([]byte("k8s:enc:secretbox:v1:two:x")); guard != "" {
		t.Errorf("the file's keys are guarded by %q", guard)
	}
	checks := f.Checks()
	if len(checks) != 1 || checks[0].Name() != "kms-providers" || checks[0].Check(httptest.NewRequest(http.MethodGet, "/", http.NoBody)) != nil {
		t.Errorf("checks: %v", checks)
	}
}

// lines collects what is logged.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) contain(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), text)
}

// startKMS runs a key service until it is cleaned up.
func startKMS(t *testing.T) (socket string, plugin *kms.Base64Plugin) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "bq-kms-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket = filepath.Join(dir, "s")
	return socket, kms.NewBase64Plugin(t, socket)
}

// A key service dies and comes back: what was read goes on, what could not be read is read, and health tells.
func TestKMS(t *testing.T) {
	fx := newFixture(t)
	socket, plugin := startKMS(t)
	text := config("secrets {kms: {apiVersion: v2, name: vault, timeout: 500ms, endpoint: 'unix://" + socket + "'}}," + identity)
	f := mustOpenConfig(t, text)
	a, err := fx.opened(t, "a", t.TempDir(), f)
	if err != nil {
		t.Fatal(err)
	}
	a.run(t, true)
	a.create(t, "s", secret)
	if raw := fx.raw(t, "/registry/secrets/ns/s"); labelOf(raw) != "kms:v2:vault" || bytes.Contains(raw, []byte(secret)) {
		t.Fatalf("in etcd stands %q", raw)
	}
	request := httptest.NewRequest(http.MethodGet, "/healthz", http.NoBody)
	if checks := f.Checks(); len(checks) != 1 || checks[0].Check(request) != nil {
		t.Errorf("health: %v", checks)
	}
	plugin.CleanUp()
	a.create(t, "meanwhile", secret) // with the key that it has
	// Another server comes while the service is away.
	b, err := fx.opened(t, "b", t.TempDir(), mustOpenConfig(t, text))
	if err != nil {
		t.Fatal(err)
	}
	b.run(t, false)
	started := time.Now()
	if _, err := b.text("s"); err == nil {
		t.Error("a Secret is read without the key service")
	}
	if _, err := b.secrets.Create(t.Context(), store.Key{Namespace: "ns", Name: "no"}, []byte(secret), store.WriteOptions{}); err == nil {
		t.Error("a Secret is written without the key service")
	}
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("the errors took %v", took)
	}
	bChecks := b.control.cfg.File.Checks()
	if err := bChecks[0].Check(request); err == nil {
		t.Error("health says that all is well")
	}
	if found := b.secrets.Snapshot().ByIndex("text", secret); len(found) != 2 {
		t.Errorf("the index hides what can't be read now: %v", found)
	}
	kms.NewBase64Plugin(t, socket)
	eventually(t, "the service is back", func() error { return bChecks[0].Check(request) })
	for _, name := range []string{"s", "meanwhile"} {
		if text, err := b.text(name); err != nil || text != secret {
			t.Errorf("%s: %q %v", name, text, err)
		}
	}
	if found := b.secrets.Snapshot().ByIndex("text", secret); len(found) != 2 {
		t.Errorf("the index finds %v", found)
	}
	b.create(t, "afterwards", secret)
}

// What stands under the cluster's own keys is moved to the file's when somebody asks for it, and not before.
func TestRewriteByFile(t *testing.T) {
	fx := newFixture(t)
	a := fx.start(t, "a", false)
	a.settled(t, "")
	a.create(t, "s", secret)
	b, err := fx.opened(t, "b", t.TempDir(), mustOpenConfig(t, config("secrets "+keyed("aesgcm", "k", 1))))
	if err != nil {
		t.Fatal(err)
	}
	b.run(t, false)
	b.create(t, "t", secret)
	if text, err := b.text("s"); err != nil || text != secret {
		t.Errorf("%q %v", text, err)
	}
	a.stop()
	r := NewRewriter(RewriterConfig{Keyring: b.keyring, Store: b.store, Tables: b.tables, Rate: 1000})
	if err := (&term{Rewriter: r, limiter: rate.NewLimiter(r.cfg.Rate, 1), clean: history{}}).round(t.Context()); err != nil {
		t.Error(err)
	}
	if raw := fx.raw(t, "/registry/secrets/ns/s"); keyOf(raw) == "" {
		t.Errorf("it was moved though nobody asked: %q", raw)
	}
	if err := b.keyring.Rewrite(t.Context()); err != nil {
		t.Fatal(err)
	}
	term, end := context.WithCancel(t.Context())
	led := make(chan struct{})
	go func() { defer close(led); b.lead(term, t) }()
	defer func() { end(); <-led }()
	eventually(t, "all is under the file's key", func() error {
		s, err := b.control.Status(t.Context())
		if err != nil || s.Rewriting || len(s.Resources) != 1 || s.Resources[0].Values["aesgcm:v1:k"] != 2 {
			return fmt.Errorf("%+v %w", s, err)
		}
		return nil
	})
}
