package apiserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/pki"
)

// clients speak to one server, in each encoding.
func clients(t *testing.T, c *cluster) map[string]kubernetes.Interface {
	t.Helper()
	out := map[string]kubernetes.Interface{}
	for _, contentType := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		config := c.config(t, pki.UserAdmin, pki.GroupMasters)
		config.ContentType = contentType
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		out[contentType] = client
	}
	return out
}

func TestTypedClient(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	for name, client := range clients(t, c) {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			maps := client.CoreV1().ConfigMaps("default")
			created, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "typed-", Labels: map[string]string{"a": "b"}}}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			created.Data = map[string]string{"k": "v"}
			updated, err := maps.Update(ctx, created, metav1.UpdateOptions{})
			if err != nil || updated.Data["k"] != "v" || updated.ResourceVersion == created.ResourceVersion {
				t.Errorf("update: %v %v", err, updated)
			}
			if _, err := maps.Update(ctx, created, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
				t.Errorf("update of an old version: %v", err)
			}
			patched, err := maps.Patch(ctx, created.Name, types.StrategicMergePatchType, []byte(`{"data":{"k":null,"l":"w"}}`), metav1.PatchOptions{})
			if err != nil || patched.Data["l"] != "w" || len(patched.Data) != 1 {
				t.Errorf("patch: %v %v", err, patched)
			}
			applied, err := maps.Apply(ctx, applycorev1.ConfigMap(created.Name, "default").WithData(map[string]string{"m": "x"}), metav1.ApplyOptions{FieldManager: "test"})
			if err != nil || applied.Data["m"] != "x" || applied.Data["l"] != "w" {
				t.Errorf("apply: %v %v", err, applied)
			}
			dry, err := maps.Patch(ctx, created.Name, types.MergePatchType, []byte(`{"data":{"dry":"run"}}`), metav1.PatchOptions{DryRun: []string{"All"}})
			if err != nil || dry.Data["dry"] != "run" {
				t.Errorf("dry run: %v %v", err, dry)
			}
			got, err := maps.Get(ctx, created.Name, metav1.GetOptions{})
			if err != nil || len(got.Data) != 2 {
				t.Errorf("get: %v %v", err, got)
			}
			list, err := maps.List(ctx, metav1.ListOptions{LabelSelector: "a=b", FieldSelector: "metadata.name=" + created.Name})
			if err != nil || len(list.Items) != 1 || list.Items[0].UID != created.UID || list.ResourceVersion == "" {
				t.Errorf("list: %v %v", err, list)
			}
			wrong := types.UID("wrong")
			if err := maps.Delete(ctx, created.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &wrong}}); !apierrors.IsConflict(err) {
				t.Errorf("delete of another: %v", err)
			}
			if err := maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "a=b"}); err != nil {
				t.Errorf("delete collection: %v", err)
			}
			if _, err := maps.Get(ctx, created.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("get after deletion: %v", err)
			}
		})
	}
}

// Subresources whose kind is not their parent's.
func TestActions(t *testing.T) {
	c, client := withNode(t)
	ctx := t.Context()
	for name, client := range clients(t, c) {
		pod, err := client.CoreV1().Pods("default").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "x-"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Image: "a"}}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(name, err)
		}
		binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: pod.Name, UID: pod.UID}, Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}
		if err := client.CoreV1().Pods("default").Bind(ctx, binding, metav1.CreateOptions{}); err != nil {
			t.Errorf("%s: bind: %v", name, err)
		}
		if pod, err = client.CoreV1().Pods("default").Get(ctx, pod.Name, metav1.GetOptions{}); err != nil || pod.Spec.NodeName != "n" {
			t.Errorf("%s: bound: %v %s", name, err, pod.Spec.NodeName)
		}
		if err := client.PolicyV1().Evictions("default").Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Namespace: "default"}}); err != nil {
			t.Errorf("%s: evict: %v", name, err)
		}
		if pod, err = client.CoreV1().Pods("default").Get(ctx, pod.Name, metav1.GetOptions{}); err != nil || pod.DeletionTimestamp == nil {
			t.Errorf("%s: evicted: %v", name, err)
		}
	}
	if _, err := client.Discovery().ServerVersion(); err != nil {
		t.Error(err)
	}
}

func TestDynamicAndMetadataClients(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	ctx := t.Context()
	config := c.config(t, pki.UserAdmin, pki.GroupMasters)
	gvr := schema.GroupVersionResource{Group: "apps", Version: "v1", Resource: "deployments"}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	obj := &unstructured.Unstructured{}
	if err := json.Unmarshal([]byte(`{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"selector":{"matchLabels":{"a":"b"}},
		"template":{"metadata":{"labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}]}}}}`), obj); err != nil {
		t.Fatal(err)
	}
	created, err := dyn.Resource(gvr).Namespace("default").Create(ctx, obj, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if replicas, _, _ := unstructured.NestedInt64(created.Object, "spec", "replicas"); replicas != 1 {
		t.Errorf("not defaulted: %v", created.Object["spec"])
	}
	list, err := dyn.Resource(gvr).List(ctx, metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].GetKind() != "Deployment" {
		t.Errorf("list: %v %v", err, list)
	}
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	partial, err := meta.Resource(gvr).Namespace("default").Get(ctx, "d", metav1.GetOptions{})
	if err != nil || partial.UID != created.GetUID() || partial.ResourceVersion == "" {
		t.Errorf("metadata: %v %v", err, partial)
	}
	watching, err := meta.Resource(gvr).Watch(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		t.Fatal(err)
	}
	defer watching.Stop()
	if event := <-watching.ResultChan(); event.Type != watch.Added || event.Object.(*metav1.PartialObjectMetadata).Name != "d" {
		t.Errorf("metadata watch: %v", event)
	}
}

// Informers see everything, in both ways of starting, and end where the server's state is.
func TestInformers(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	for name, client := range clients(t, c) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			namespace := strings.NewReplacer("/", "-", ".", "-").Replace(name)
			if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			maps := client.CoreV1().ConfigMaps(namespace)
			const writers, each = 8, 40
			factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace))
			defer factory.Shutdown()
			defer cancel()
			informer := factory.Core().V1().ConfigMaps()
			var mu sync.Mutex
			seen := map[string]string{} // what events alone tell
			note := func(obj any) {
				m := obj.(*corev1.ConfigMap)
				mu.Lock()
				defer mu.Unlock()
				seen[m.Name] = m.ResourceVersion
			}
			if _, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
				AddFunc: note, UpdateFunc: func(_, obj any) { note(obj) },
				DeleteFunc: func(obj any) {
					mu.Lock()
					defer mu.Unlock()
					delete(seen, obj.(*corev1.ConfigMap).Name)
				},
			}); err != nil {
				t.Fatal(err)
			}
			factory.Start(ctx.Done())
			if !cache.WaitForCacheSync(ctx.Done(), informer.Informer().HasSynced) {
				t.Fatal("not synced")
			}
			var group sync.WaitGroup
			for w := range writers {
				group.Go(func() {
					for i := range each {
						name := fmt.Sprintf("m-%d-%d", w, i)
						m, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
						if err != nil {
							t.Error(err)
							return
						}
						m.Data = map[string]string{"i": name}
						if _, err := maps.Update(ctx, m, metav1.UpdateOptions{}); err != nil {
							t.Error(err)
						}
						if i%4 == 0 {
							if err := maps.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
								t.Error(err)
							}
						}
					}
				})
			}
			group.Wait()
			eventually(t, "the informer has caught up", func() error {
				list, err := maps.List(ctx, metav1.ListOptions{})
				if err != nil {
					return err
				}
				if len(list.Items) != writers*each*3/4 {
					t.Fatalf("%d objects", len(list.Items))
				}
				mu.Lock()
				defer mu.Unlock()
				if len(seen) != len(list.Items) {
					return fmt.Errorf("informer has %d of %d", len(seen), len(list.Items))
				}
				for i := range list.Items {
					if m := &list.Items[i]; seen[m.Name] != m.ResourceVersion {
						return fmt.Errorf("%s is at %s, not %s", m.Name, seen[m.Name], m.ResourceVersion)
					}
				}
				return nil
			})
		})
	}
}

func TestListInChunks(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	for name, client := range clients(t, c) {
		maps := client.CoreV1().ConfigMaps("kube-public")
		for i := range 7 {
			if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c%d", i)}}, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
				t.Fatal(err)
			}
		}
		var names []string
		opts := metav1.ListOptions{Limit: 3}
		for {
			list, err := maps.List(t.Context(), opts)
			if err != nil {
				t.Fatal(name, err)
			}
			for i := range list.Items {
				names = append(names, list.Items[i].Name)
			}
			if opts.Continue = list.Continue; opts.Continue == "" {
				break
			}
		}
		if got := strings.Join(names, " "); got != "c0 c1 c2 c3 c4 c5 c6" {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// The version that we say is that of the module whose types we serve.
func TestKubernetesVersion(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got != apiserver.KubernetesVersion {
		t.Errorf("the module is %s, we say %s", got, apiserver.KubernetesVersion)
	}
}
