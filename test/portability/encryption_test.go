package portability

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"
	kms "k8s.io/apiserver/pkg/storage/value/encrypt/envelope/testing/v2"
)

// ownPrefix stands before what is encrypted with the cluster's own keys.
const ownPrefix = "k8s:enc:secretbox:v1:barque-"

// configuration is what `barque encryption config` prints on a server, in a file.
func configuration(t *testing.T, p *portal) string {
	t.Helper()
	eventuallyEncrypts(t, p)
	file := filepath.Join(t.TempDir(), "encryption.yaml")
	write(t, file, command(t, "encryption", "config", "--data-dir="+p.dir))
	return file
}

// command runs barque and returns what it prints.
func command(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), barqueProgram, args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("barque %v: %v %s", args, err, errs.Bytes())
	}
	return out
}

// status is the part of what a server says about encryption that the tests look at.
type status struct {
	Writes, Next string
	Waits        []string
	Keys         []struct {
		Name    string
		Objects int
	}
	Resources []struct {
		Prefix string
		Values map[string]int
	}
}

func statusOf(ctx context.Context, p *portal) (s status, err error) {
	data, err := p.rest.Get().AbsPath("/barque/v1/encryption").Do(ctx).Raw()
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(data, &s)
}

// eventuallyEncrypts waits until a key is in use, everything that the cluster's own keys decide on stands
// under it, and the server's copy has it.
func eventuallyEncrypts(t *testing.T, p *portal) status {
	t.Helper()
	var s status
	eventually(t, settle, p.name+" encrypts", func(ctx context.Context) (err error) {
		if s, err = statusOf(ctx, p); err != nil {
			return err
		}
		for _, r := range s.Resources {
			for under, n := range r.Values {
				if r.Prefix == "/registry/secrets/" && under != "secretbox:v1:"+s.Writes {
					return fmt.Errorf("%d Secrets stand under %q: %+v", n, under, s)
				}
			}
		}
		copied, err := os.ReadFile(filepath.Join(p.dir, "encryption", "keyring.json"))
		if s.Writes == "" || !bytes.Contains(copied, []byte(`"writes":"`+s.Writes)) {
			return fmt.Errorf("the copy of the keys is not there yet: %+v %w", s, err)
		}
		return nil
	})
	return s
}

// decrypter decrypts Secrets as kube-apiserver does with a configuration.
func decrypter(t *testing.T, config string) func(*mvccpb.KeyValue) {
	t.Helper()
	loaded, err := encryptionconfig.LoadEncryptionConfig(t.Context(), config, false, "test")
	if err != nil {
		t.Fatalf("kube-apiserver's own code refuses what barque printed: %v", err)
	}
	transformer := loaded.Transformers[schema.GroupResource{Resource: "secrets"}]
	return func(kv *mvccpb.KeyValue) {
		if !bytes.HasPrefix(kv.Value, []byte("k8s:enc:")) {
			return
		}
		plain, _, err := transformer.TransformFromStorage(t.Context(), kv.Value, value.DefaultContext(kv.Key))
		if err != nil {
			t.Fatalf("decrypt %s: %v", kv.Key, err)
		}
		kv.Value = plain
	}
}

// raw is what stands in etcd.
func raw(t *testing.T, e endpoint, key string) []byte {
	t.Helper()
	resp, err := e.client(t).Get(t.Context(), key)
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatalf("read %s: %v %v", key, resp, err)
	}
	return resp.Kvs[0].Value
}

// sealed: nothing in etcd, its files and its snapshots shows what is in a Secret, while other objects stand
// there as they are.
func sealed(t *testing.T, e endpoint, p *portal) {
	t.Helper()
	const hidden, open = "what nobody may see 7d1c", "what everybody may see 7d1c"
	for kind, text := range map[string]string{"Secret": hidden, "ConfigMap": open} {
		create(t, p, kind, "default", "seen", text)
	}
	all, err := e.client(t).Get(t.Context(), "/registry/secrets/", clientv3.WithPrefix())
	if err != nil || len(all.Kvs) < 2 {
		t.Fatalf("secrets in etcd: %v %v", all, err)
	}
	for _, kv := range all.Kvs {
		if !bytes.HasPrefix(kv.Value, []byte(ownPrefix)) {
			t.Errorf("%s is not encrypted: %.60q", kv.Key, kv.Value)
		}
	}
	reader, err := e.client(t).Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	snapshot, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{hidden: bytes.Contains(snapshot, []byte(hidden)), open: bytes.Contains(snapshot, []byte(open))}
	err = filepath.WalkDir(p.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		for text := range found {
			found[text] = found[text] || bytes.Contains(data, []byte(text))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if found[hidden] || !found[open] {
		t.Errorf("in a snapshot and in the files of the server, found: %v", found)
	}
}

// create makes an object that holds a text.
func create(t *testing.T, p *portal, kind, ns, name, text string) {
	t.Helper()
	object := &unstructured.Unstructured{Object: map[string]any{}}
	object.SetAPIVersion("v1")
	object.SetKind(kind)
	object.SetName(name)
	resource := configMaps
	if kind == "Secret" {
		resource = secrets
		text = base64.StdEncoding.EncodeToString([]byte(text))
	}
	if err := unstructured.SetNestedField(object.Object, text, "data", "text"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.dynamic.Resource(resource).Namespace(ns).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatalf("create %s %s through %s: %v", kind, name, p.name, err)
	}
}

// reads waits until an object says a text.
func reads(t *testing.T, p *portal, resource schema.GroupVersionResource, name, want string) {
	t.Helper()
	if resource == secrets {
		want = base64.StdEncoding.EncodeToString([]byte(want))
	}
	eventually(t, settle, fmt.Sprintf("%s reads %s %s", p.name, resource.Resource, name), func(ctx context.Context) error {
		o, err := p.dynamic.Resource(resource).Namespace("default").Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if text, _, _ := unstructured.NestedString(o.Object, "data", "text"); text != want {
			return fmt.Errorf("it says %q", text)
		}
		return nil
	})
}

// A machine that has etcd's data alone can't read the Secrets in it; it says what is missing, and with that
// it can. Keys are rotated before, so that it needs all of them.
func TestRestoreElsewhere(t *testing.T) {
	user := startEtcd(t)
	first := startBarque(t, "first", user.flags("--etcd-endpoints")...)
	create(t, first, "Secret", "default", "old", "old text")
	was := eventuallyEncrypts(t, first).Writes
	command(t, "encryption", "rotate", "--kubeconfig="+filepath.Join(first.dir, "kubeconfig"))
	eventually(t, settle, "the new key is in use", func(ctx context.Context) error {
		s, err := statusOf(ctx, first)
		if err != nil || s.Writes == was {
			return fmt.Errorf("%+v %w", s, err)
		}
		return nil
	})
	create(t, first, "Secret", "default", "new", "new text")
	now := eventuallyEncrypts(t, first).Writes
	for _, name := range []string{"old", "new"} {
		if v := raw(t, user, "/registry/secrets/default/"+name); !bytes.HasPrefix(v, []byte("k8s:enc:secretbox:v1:"+now+":")) {
			t.Errorf("%s is %.60q", name, v)
		}
	}
	if out := string(command(t, "encryption", "status", "--kubeconfig="+filepath.Join(first.dir, "kubeconfig"))); !strings.Contains(out, now) || !strings.Contains(out, "/registry/secrets/") {
		t.Errorf("barque encryption status says\n%s", out)
	}
	first.process.kill()

	dir := filepath.Join(t.TempDir(), "data")
	args := append([]string{
		"server", "--data-dir=" + dir, "--node-name=second", "--disable=agent", "--bind-address=127.0.0.1", fmt.Sprint("--https-port=", freePorts(t, 1)[0]),
	}, user.flags("--etcd-endpoints")...)
	stranger := start(t, barqueProgram, args...)
	eventually(t, startTimeout, "it refuses", func(context.Context) error {
		if !stranger.ended() {
			return fmt.Errorf("it runs")
		}
		return nil
	})
	if log := stranger.log(); !strings.Contains(log, "ca.key") || !strings.Contains(log, filepath.Join(dir, "pki")) {
		t.Errorf("it does not say what is missing, and where to bring it: %s", log)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("it left something in %s: %v", dir, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(filepath.Join(dir, "pki"), os.DirFS(filepath.Join(first.dir, "pki"))); err != nil {
		t.Fatal(err)
	}
	second := startBarqueIn(t, "second", dir, user.flags("--etcd-endpoints")...)
	reads(t, second, secrets, "old", "old text")
	reads(t, second, secrets, "new", "new text")
}

// Beside a stock server that knows of no keys nothing is encrypted.
func waitsForStock(t *testing.T, p *portal, e endpoint) {
	t.Helper()
	s, err := statusOf(t.Context(), p)
	if err != nil || s.Writes != "" || len(s.Waits) == 0 {
		t.Errorf("beside a stock server: %+v %v", s, err)
	}
	create(t, p, "Secret", "default", "beside", "open text")
	if v := raw(t, e, "/registry/secrets/default/beside"); !bytes.HasPrefix(v, protobufPrefix) {
		t.Errorf("it is %.60q, which the stock server can't read", v)
	}
}

// One file, two servers on one etcd: each reads what the other writes, with every provider, for kinds that
// wildcards name too; also while a key service is away for a time.
func TestConfiguration(t *testing.T) {
	dir, err := os.MkdirTemp("/tmp", "bq-kms-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	plugin := kms.NewBase64Plugin(t, socket)
	key := func(name string, c byte) string {
		return fmt.Sprintf("{keys: [{name: %s, secret: '%s'}]}", name, base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{c}, 32)))
	}
	file := filepath.Join(dir, "config.yaml")
	write(t, file, []byte(`apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers: [{kms: {apiVersion: v2, name: vault, timeout: 1s, endpoint: 'unix://`+socket+`'}}, {identity: {}}]
- resources: ['*.']
  providers: [{aescbc: `+key("core", 1)+`}, {identity: {}}]
- resources: ['*.coordination.k8s.io']
  providers: [{aesgcm: `+key("coordination", 2)+`}, {identity: {}}]
- resources: ['*.*']
  providers: [{secretbox: `+key("all", 3)+`}, {identity: {}}]
`))
	user := startEtcd(t)
	flags := append(user.flags("--etcd-endpoints"), "--encryption-provider-config="+file)
	barque := startBarque(t, "file", flags...)
	eventuallyLeads(t, barque, "file")
	stock := startStock(t, user, barque, "--encryption-provider-config="+file)
	for writer, reader := range map[*portal]*portal{barque: stock, stock: barque} {
		by := strings.Fields(writer.name)[0]
		create(t, writer, "Secret", "default", by, "secret by "+by)
		create(t, writer, "ConfigMap", "default", by, "open by "+by)
		reads(t, reader, secrets, by, "secret by "+by)
		reads(t, reader, configMaps, by, "open by "+by)
		for resource, want := range map[string]string{"secrets": "k8s:enc:kms:v2:vault:", "configmaps": "k8s:enc:aescbc:v1:core:"} {
			if v := raw(t, user, "/registry/"+resource+"/default/"+by); !bytes.HasPrefix(v, []byte(want)) {
				t.Errorf("%s of %s: %.60q, want %s", resource, by, v, want)
			}
		}
	}
	for key, want := range map[string]string{
		"/registry/leases/kube-system/kube-scheduler":    "k8s:enc:aesgcm:v1:coordination:",
		"/registry/priorityclasses/system-node-critical": "k8s:enc:secretbox:v1:all:",
	} {
		if v := raw(t, user, key); !bytes.HasPrefix(v, []byte(want)) {
			t.Errorf("%s: %.60q, want %s", key, v, want)
		}
	}
	customEncrypted(t, barque, stock, user)
	health(t, barque, http.StatusOK)
	stock.process.stop()

	// The key service is away while the server starts.
	plugin.CleanUp()
	barque.process.stop()
	again := startBarqueUnready(t, "file", barque.dir, flags...)
	health(t, again, http.StatusInternalServerError)
	reads(t, again, configMaps, "stock", "open by stock")
	if o, err := again.dynamic.Resource(secrets).Namespace("default").Get(t.Context(), "stock", metav1.GetOptions{}); err == nil {
		t.Errorf("a Secret is read without the key service: %v", o)
	}
	kms.NewBase64Plugin(t, socket)
	again.waitReady(t)
	health(t, again, http.StatusOK)
	reads(t, again, secrets, "stock", "secret by stock")
	create(t, again, "Secret", "default", "afterwards", "x")
	metrics, err := again.rest.Get().AbsPath("/metrics").Do(t.Context()).Raw()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"apiserver_storage_transformation_operations_total", "apiserver_envelope_encryption_key_id_hash_total"} {
		if !bytes.Contains(metrics, []byte(name)) {
			t.Errorf("/metrics lacks %s", name)
		}
	}
}

// customEncrypted: a wildcard names kinds that are defined later, too.
func customEncrypted(t *testing.T, a, b *portal, e endpoint) {
	t.Helper()
	const group, kind, plural = "sealed.example.com", "Letter", "letters"
	definition := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": map[string]any{"name": plural + "." + group},
		"spec": map[string]any{
			"group": group, "scope": "Namespaced", "names": map[string]any{"kind": kind, "plural": plural, "singular": "letter", "listKind": kind + "List"},
			"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true, "schema": map[string]any{
				"openAPIV3Schema": map[string]any{"type": "object", "properties": map[string]any{"text": map[string]any{"type": "string"}}},
			}}},
		},
	}}
	definitions := schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	if _, err := a.dynamic.Resource(definitions).Create(t.Context(), definition, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	letters := schema.GroupVersionResource{Group: group, Version: "v1", Resource: plural}
	for writer, reader := range map[*portal]*portal{a: b, b: a} {
		name := strings.Fields(writer.name)[0]
		letter := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": group + "/v1", "kind": kind, "metadata": map[string]any{"name": name}, "text": "by " + name,
		}}
		eventually(t, settle, writer.name+" serves letters", func(ctx context.Context) error {
			_, err := writer.dynamic.Resource(letters).Namespace("default").Create(ctx, letter, metav1.CreateOptions{})
			return err
		})
		eventually(t, settle, reader.name+" reads the letter", func(ctx context.Context) error {
			got, err := reader.dynamic.Resource(letters).Namespace("default").Get(ctx, name, metav1.GetOptions{})
			if err != nil || got.Object["text"] != "by "+name {
				return fmt.Errorf("%v %w", got, err)
			}
			return nil
		})
		if v := raw(t, e, "/registry/"+group+"/"+plural+"/default/"+name); !bytes.HasPrefix(v, []byte("k8s:enc:secretbox:v1:all:")) {
			t.Errorf("it is %.60q", v)
		}
	}
}

// health is what the check of key services comes to.
func health(t *testing.T, p *portal, want int) {
	t.Helper()
	for _, endpoint := range []string{"/healthz", "/readyz"} {
		var code int
		p.rest.Get().AbsPath(endpoint + "/kms-providers").Do(t.Context()).StatusCode(&code)
		if code != want {
			t.Errorf("%s/kms-providers is %d, want %d", endpoint, code, want)
		}
	}
}
