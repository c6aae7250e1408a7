package portability

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
)

// startEtcd runs an etcd as a user has it: with TLS, apart from any server.
func startEtcd(t *testing.T) endpoint {
	t.Helper()
	dir := t.TempDir()
	ports := freePorts(t, 2)
	at := func(port int) []url.URL {
		return []url.URL{{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", port)}}
	}
	cfg := embed.NewConfig()
	cfg.Dir, cfg.Name, cfg.LogLevel, cfg.LogOutputs = filepath.Join(dir, "etcd"), "user", "error", []string{filepath.Join(dir, "log")}
	cfg.UnsafeNoFsync = true
	cfg.ClientAutoTLS, cfg.PeerAutoTLS = true, true
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = at(ports[0]), at(ports[0])
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = at(ports[1]), at(ports[1])
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatalf("start etcd: %v", err)
	}
	t.Cleanup(server.Close)
	select {
	case <-server.Server.ReadyNotify():
	case <-time.After(startTimeout):
		t.Fatal("etcd did not get ready")
	}
	return endpoint{url: at(ports[0])[0].String(), ca: filepath.Join(cfg.Dir, "fixtures", "client", "cert.pem")}
}

// client is etcd's own client, as etcdctl uses it.
func (e endpoint) client(t *testing.T) *clientv3.Client {
	t.Helper()
	tls, err := transport.TLSInfo{CertFile: e.cert, KeyFile: e.key, TrustedCAFile: e.ca}.ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{e.url}, TLS: tls, DialTimeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// access: etcd's tools work at the client port: they see the members, and save a snapshot that
// holds the state. Nobody gets in without a certificate.
func access(t *testing.T, e endpoint) {
	c := e.client(t)
	status, err := c.Status(t.Context(), e.url)
	if err != nil || status.Leader == 0 {
		t.Fatalf("status: %v %v", status, err)
	}
	members, err := c.MemberList(t.Context())
	if err != nil || len(members.Members) != 1 || members.Members[0].Name != "embedded" {
		t.Errorf("members: %v %v", members, err)
	}
	stranger := endpoint{url: e.url, ca: e.ca}.client(t)
	// The client tries until its time is up.
	short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := stranger.Get(short, "/registry/secrets/"+namespace+"/credentials"); err == nil {
		t.Error("a client without a certificate reads secrets")
	}
	reader, err := c.Snapshot(t.Context())
	if err != nil {
		t.Fatalf("snapshot: %v", err)
	}
	defer func() { _ = reader.Close() }()
	data, err := io.ReadAll(reader)
	if err != nil || len(data) < sha256.Size {
		t.Fatalf("read the snapshot: %d bytes, %v", len(data), err)
	}
	body, sum := data[:len(data)-sha256.Size], data[len(data)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		t.Error("the snapshot's hash is wrong")
	}
	file := filepath.Join(t.TempDir(), "snapshot.db")
	write(t, file, body)
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatalf("open the snapshot: %v", err)
	}
	defer func() { _ = db.Close() }()
	found := false
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("key")).ForEach(func(_, v []byte) error {
			found = found || bytes.Contains(v, []byte("/registry/configmaps/"+namespace+"/settings"))
			return nil
		})
	})
	if err != nil || !found {
		t.Errorf("the snapshot lacks an object that was written: %v", err)
	}
}

// sameBytes compares what two servers made of the same objects: the keys, and the values as
// they were first written, but for what differs from one creation to the next. Those of a are
// decrypted first.
func sameBytes(t *testing.T, a, b endpoint, decrypt func(*mvccpb.KeyValue), items []item) {
	left, right := created(t, a), created(t, b)
	for _, kv := range left {
		decrypt(kv)
	}
	for _, i := range items {
		t.Run(i.String(), func(t *testing.T) {
			x, y := pick(left, i), pick(right, i)
			if x == nil || y == nil {
				t.Fatalf("no key ends in the object's name: Barque %v, stock %v", x, y)
			}
			if string(x.Key) != string(y.Key) {
				t.Errorf("key: Barque %s, stock %s", x.Key, y.Key)
			}
			if (x.Lease != 0) != (y.Lease != 0) {
				t.Errorf("lease: Barque %d, stock %d", x.Lease, y.Lease)
			}
			p, q := open(t, x.Value), open(t, y.Value)
			if p.TypeMeta != q.TypeMeta || p.ContentEncoding != q.ContentEncoding || p.ContentType != q.ContentType {
				t.Errorf("envelope: Barque %v %q %q, stock %v %q %q", p.TypeMeta, p.ContentEncoding, p.ContentType, q.TypeMeta, q.ContentEncoding, q.ContentType)
			}
			m, n := normal(t, x.Value, p), normal(t, y.Value, q)
			if !reflect.DeepEqual(m, n) {
				t.Errorf("value:\nBarque %s\nstock  %s", compact(m), compact(n))
			}
		})
	}
}

// created returns every object below /registry as it was first written, by key.
func created(t *testing.T, e endpoint) map[string]*mvccpb.KeyValue {
	t.Helper()
	c := e.client(t)
	now, err := c.Get(t.Context(), "/registry/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*mvccpb.KeyValue{}
	for _, kv := range now.Kvs {
		first, err := c.Get(t.Context(), string(kv.Key), clientv3.WithRev(kv.CreateRevision))
		if err != nil || len(first.Kvs) != 1 {
			t.Fatalf("%s at its creation: %v", kv.Key, err)
		}
		all[string(kv.Key)] = first.Kvs[0]
	}
	return all
}

// pick finds an item by what its value says, so that the key itself can be compared.
func pick(all map[string]*mvccpb.KeyValue, i item) *mvccpb.KeyValue {
	var found *mvccpb.KeyValue
	for key, kv := range all {
		rest, ok := strings.CutSuffix(key, "/"+i.object.GetName())
		if !ok || i.object.GetNamespace() != "" && !strings.HasSuffix(rest, "/"+i.object.GetNamespace()) {
			continue
		}
		unknown, err := envelope(kv.Value)
		if err == nil && unknown.Kind == i.object.GetKind() {
			found = kv
		}
	}
	return found
}

// protobufPrefix stands in front of every built-in kind's value.
var protobufPrefix = []byte("k8s\x00")

// envelope opens a stored value. What comes from CustomResourceDefinitions, they included, is kept as JSON.
func envelope(value []byte) (*runtime.Unknown, error) {
	if bytes.HasPrefix(value, []byte("{")) {
		unknown := &runtime.Unknown{Raw: value, ContentType: runtime.ContentTypeJSON}
		return unknown, json.Unmarshal(value, &unknown.TypeMeta)
	}
	raw, ok := bytes.CutPrefix(value, protobufPrefix)
	if !ok {
		return nil, fmt.Errorf("it begins with %q", value[:min(len(value), 8)])
	}
	var unknown runtime.Unknown
	return &unknown, unknown.Unmarshal(raw)
}

func open(t *testing.T, value []byte) *runtime.Unknown {
	t.Helper()
	unknown, err := envelope(value)
	if err != nil {
		t.Fatal(err)
	}
	return unknown
}

// decoded decodes a stored value, and checks that one in protobuf has nothing beside what is decoded.
func decoded(t *testing.T, value []byte, unknown *runtime.Unknown) runtime.Object {
	t.Helper()
	if unknown.ContentType == runtime.ContentTypeJSON {
		object := &unstructured.Unstructured{}
		if err := object.UnmarshalJSON(value); err != nil {
			t.Fatal(err)
		}
		return object
	}
	object, _, err := scheme.Codecs.UniversalDeserializer().Decode(value, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	again, err := object.(interface{ Marshal() ([]byte, error) }).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again, unknown.Raw) {
		t.Errorf("the stored bytes of %v are not what its type encodes to", unknown.TypeMeta)
	}
	return object
}

// normal decodes a stored value without what differs from one creation to the next.
func normal(t *testing.T, value []byte, unknown *runtime.Unknown) map[string]any {
	t.Helper()
	object := decoded(t, value, unknown)
	meta := object.(metav1.Object)
	if meta.GetResourceVersion() != "" {
		t.Errorf("the value holds its resource version %s", meta.GetResourceVersion())
	}
	if meta.GetUID() == "" || meta.GetCreationTimestamp() == (metav1.Time{}) {
		t.Errorf("the value lacks uid or time of creation: %s", compact(object))
	}
	meta.SetUID(types.UID(""))
	meta.SetCreationTimestamp(metav1.Time{})
	fields := meta.GetManagedFields()
	for n := range fields {
		fields[n].Time = nil
	}
	meta.SetManagedFields(fields)
	if volume, ok := object.(*corev1.PersistentVolume); ok {
		volume.Status.LastPhaseTransitionTime = nil
	}
	if raw, ok := object.(*unstructured.Unstructured); ok && raw.GetKind() == "APIService" {
		conditions, _, err := unstructured.NestedSlice(raw.Object, "status", "conditions")
		if err != nil || len(conditions) != 1 {
			t.Fatalf("a local APIService is not available at once: %v, %v", conditions, err)
		}
		delete(conditions[0].(map[string]any), "lastTransitionTime")
		if err := unstructured.SetNestedSlice(raw.Object, conditions, "status", "conditions"); err != nil {
			t.Fatal(err)
		}
	}
	data, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}
