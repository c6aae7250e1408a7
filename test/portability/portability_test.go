package portability

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

var (
	configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	secrets    = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}
	leases     = schema.GroupVersionResource{Group: "coordination.k8s.io", Version: "v1", Resource: "leases"}
)

// TestPortability has both directions, and compares what each of the two left in etcd.
func TestPortability(t *testing.T) {
	barque, member := startMember(t)
	items := table(t, barque)
	fill(t, barque, items)
	if t.Failed() {
		return
	}
	user := startEtcd(t)
	stock := startStock(t, user, barque)
	fill(t, stock, items)
	if t.Failed() {
		return
	}
	config := configuration(t, barque)
	t.Run("encryption", func(t *testing.T) { sealed(t, member, barque) })
	t.Run("bytes", func(t *testing.T) { sameBytes(t, member, user, decrypter(t, config), items) })
	t.Run("access", func(t *testing.T) { access(t, member) })
	t.Run("stock on barque's etcd", func(t *testing.T) {
		exchange(t, barque, startStock(t, member, barque, "--encryption-provider-config="+config), items)
	})
	t.Run("barque on stock's etcd", func(t *testing.T) {
		keys := foreign(t, user)
		first := startBarque(t, "first", user.flags("--etcd-endpoints")...)
		exchange(t, stock, first, items)
		waitsForStock(t, first, user)
		tolerated(t, first, user, keys)
		failover(t, first, user)
	})
}

// foreign puts into etcd what Barque doesn't know: a custom resource whose definition is gone, resources that
// Barque doesn't serve, and things beside /registry.
func foreign(t *testing.T, e endpoint) map[string]string {
	t.Helper()
	keys := map[string]string{
		"/registry/example.com/widgets/" + namespace + "/w": `{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":"w","namespace":"portability"}}`,
		"/registry/unheard-of/" + namespace + "/x":          "\x00\x01 no object at all",
		"/registry/unheard-of":                              "a key without a name",
		"/calico/resources/v3/projectcalico.org/nodes/n1":   "{}",
		"zzz": "",
	}
	c := e.client(t)
	for key, value := range keys {
		if _, err := c.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
	}
	return keys
}

// tolerated: what Barque can't read stays as it is, and doesn't keep it from the rest.
func tolerated(t *testing.T, p *portal, e endpoint, keys map[string]string) {
	t.Helper()
	c := e.client(t)
	const key = "/registry/secrets/default/sealed"
	keys[key] = "k8s:enc:aescbc:v1:key1:\x01\x02\x03 sealed with a key that is not here"
	if _, err := c.Put(t.Context(), key, keys[key]); err != nil {
		t.Fatal(err)
	}
	sealed := p.dynamic.Resource(secrets).Namespace("default")
	if o, err := sealed.Get(t.Context(), "sealed", metav1.GetOptions{}); err == nil {
		t.Errorf("a sealed secret was read without its key: %v", o)
	}
	open := &unstructured.Unstructured{}
	open.SetAPIVersion("v1")
	open.SetKind("Secret")
	open.SetName("open")
	if _, err := sealed.Create(t.Context(), open, metav1.CreateOptions{}); err != nil {
		t.Errorf("create a secret beside a sealed one: %v", err)
	}
	if _, err := sealed.Get(t.Context(), "open", metav1.GetOptions{}); err != nil {
		t.Errorf("read a secret beside a sealed one: %v", err)
	}
	for key, value := range keys {
		resp, err := c.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.Kvs) != 1 || string(resp.Kvs[0].Value) != value || resp.Kvs[0].Version != 1 {
			t.Errorf("key %s was touched: %v", key, resp.Kvs)
		}
	}
	if err := p.rest.Get().AbsPath("/readyz").Do(t.Context()).Error(); err != nil {
		t.Errorf("not ready with unknown keys in etcd: %v", err)
	}
}

// failover: a second server joins on the same etcd, both answer, and the second leads when the
// first is killed.
func failover(t *testing.T, first *portal, e endpoint) {
	t.Helper()
	eventuallyLeads(t, first, "first")
	second := startBarque(t, "second", append(e.flags("--etcd-endpoints"), "--join="+first.config.Host, "--token="+token(t, first))...)
	eventually(t, settle, "both servers are known by their leases", func(ctx context.Context) error {
		list, err := second.dynamic.Resource(leases).Namespace("kube-system").List(ctx, metav1.ListOptions{LabelSelector: "apiserver.kubernetes.io/identity"})
		if err != nil || len(list.Items) < 2 {
			return fmt.Errorf("%v %v", list, err)
		}
		return nil
	})
	object := &unstructured.Unstructured{}
	object.SetAPIVersion("v1")
	object.SetKind("ConfigMap")
	object.SetName("from-second")
	made, err := second.dynamic.Resource(configMaps).Namespace("default").Create(t.Context(), object, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create through the second server: %v", err)
	}
	found, err := first.dynamic.Resource(configMaps).Namespace("default").Get(t.Context(), "from-second", metav1.GetOptions{})
	if err != nil || found.GetResourceVersion() != made.GetResourceVersion() {
		t.Fatalf("the first server does not see at once what the second wrote: %v %v", found, err)
	}
	first.process.kill()
	eventuallyLeads(t, second, "second")
	// Its controllers work: they delete a namespace.
	namespaces := second.dynamic.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"})
	if err := namespaces.Delete(t.Context(), namespace, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, settle, "the namespace is gone", func(ctx context.Context) error {
		o, err := namespaces.Get(ctx, namespace, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("%s %w", compact(o), err)
	})
	// One that started again comes back to the same cluster.
	second.process.stop()
	again := startBarqueIn(t, "second", second.dir, e.flags("--etcd-endpoints")...)
	eventuallyLeads(t, again, "second")
	if _, err := again.dynamic.Resource(configMaps).Namespace("default").Get(t.Context(), "from-second", metav1.GetOptions{}); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

// eventuallyLeads waits until the published leader is the server of that name.
func eventuallyLeads(t *testing.T, p *portal, name string) {
	t.Helper()
	eventually(t, settle, name+" leads", func(ctx context.Context) error {
		lease, err := p.dynamic.Resource(leases).Namespace("kube-system").Get(ctx, "kube-controller-manager", metav1.GetOptions{})
		if err != nil {
			return err
		}
		holder, _, _ := unstructured.NestedString(lease.Object, "spec", "holderIdentity")
		if holder != name {
			return fmt.Errorf("%q leads", holder)
		}
		renewed, _, _ := unstructured.NestedString(lease.Object, "spec", "renewTime")
		at, err := time.Parse(time.RFC3339Nano, renewed)
		if err != nil || at.Before(p.started) {
			return fmt.Errorf("not renewed since the server was started: %s %w", renewed, err)
		}
		return nil
	})
}

// token makes a token to join with.
func token(t *testing.T, p *portal) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), barqueProgram, "token", "create", "--kubeconfig", filepath.Join(p.dir, "kubeconfig"))
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("barque token create: %v %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func compact(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(data)
}
