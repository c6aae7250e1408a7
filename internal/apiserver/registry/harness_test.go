package registry_test

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/registry/registrytest"
	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// klog's flusher starts with the process.
		goleak.IgnoreAnyFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// server is a registry on an etcd member of its own.
type server struct {
	*registrytest.Server
	tb     testing.TB
	store  *store.Store
	member *etcd.Member
}

// start starts a registry; tune may change its configuration.
func start(tb testing.TB, tune func(*registry.Config)) *server {
	tb.Helper()
	member := etcdtest.New(tb, 1, nil).Member(0)
	return on(tb, member, tune)
}

// on starts a registry on a member that others may use too.
func on(tb testing.TB, member *etcd.Member, tune func(*registry.Config)) *server {
	tb.Helper()
	s := registrytest.New(tb, member, tune)
	return &server{Server: s, tb: tb, store: s.Store, member: member}
}

// req makes a request of a resource such as "pods" or "deployments.apps".
func (s *server) req(resource, namespace, name string) registry.Request {
	s.tb.Helper()
	return s.Request(resource, namespace, name)
}

func (s *server) sub(resource, namespace, name, sub string) registry.Request {
	r := s.req(resource, namespace, name)
	r.Subresource = sub
	return r
}

// decode reads a manifest as the decoder of an HTTP request does.
func decode[T runtime.Object](tb testing.TB, manifest string) T {
	tb.Helper()
	codecs := api.Codecs()
	obj, _, err := codecs.UniversalDeserializer().Decode([]byte(manifest), nil, nil)
	if err != nil {
		tb.Fatal(err)
	}
	api.Scheme().Default(obj)
	return obj.(T)
}

// create creates and returns the object as it is kept.
func create[T runtime.Object](s *server, resource, namespace string, obj runtime.Object) T {
	s.tb.Helper()
	result, err := s.Create(s.tb.Context(), s.req(resource, namespace, ""), obj.DeepCopyObject(), &metav1.CreateOptions{FieldManager: "test"})
	if err != nil {
		s.tb.Fatalf("create %s: %v", resource, err)
	}
	return kept[T](s, result)
}

func kept[T runtime.Object](s *server, result registry.Result) T {
	s.tb.Helper()
	obj, err := result.Get()
	if err != nil {
		s.tb.Fatal(err)
	}
	return obj.DeepCopyObject().(T)
}

func get[T runtime.Object](s *server, resource, namespace, name string) T {
	s.tb.Helper()
	result, err := s.Get(s.tb.Context(), s.req(resource, namespace, name), nil)
	if err != nil {
		s.tb.Fatalf("get %s %s: %v", resource, name, err)
	}
	return kept[T](s, result)
}

func newPod(name string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example/web:1"}}},
	}
	pod.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	api.Scheme().Default(pod)
	return pod
}

func newConfigMap(name string, data map[string]string) *corev1.ConfigMap {
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Data: data}
	cm.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
	return cm
}

// soon bounds everything that a test waits for.
func soon(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(tb.Context(), 20*time.Second)
	tb.Cleanup(cancel)
	return ctx
}

func asJSON(tb testing.TB, v any) string {
	tb.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	return string(data)
}

// raw reads a key in etcd; nil if it is not there.
func (s *server) raw(key string) ([]byte, error) {
	resp, err := s.member.Range(s.tb.Context(), &etcdserverpb.RangeRequest{Key: []byte(key)})
	if err != nil || len(resp.Kvs) == 0 {
		return nil, err
	}
	return resp.Kvs[0].Value, nil
}
