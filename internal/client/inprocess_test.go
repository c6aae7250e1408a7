package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/apiserver/registry"
	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// start returns a client of a server of its own. cfg bounds its history.
func start(t *testing.T, cfg store.Config) *barqueclient.InProcess {
	t.Helper()
	return startOn(t, etcdtest.New(t, 1, nil).Member(0), cfg)
}

func startOn(t *testing.T, member *etcd.Member, cfg store.Config) *barqueclient.InProcess {
	t.Helper()
	cfg.Backend, cfg.CompactEvery = member, -1
	st, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- st.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	r, err := registry.New(registry.Config{Store: st})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	return barqueclient.NewInProcess(barqueclient.Config{Tables: r, Verbs: r.Verbs(), User: barqueclient.Controller("tester"), FieldManager: "tester"})
}

func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func configMap(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{"app": "x"}}, Data: data}
}

func deployment() *appsv1.Deployment {
	labels := map[string]string{"app": "web"}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default"},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "x"}}},
			},
		},
	}
}

func TestReadsAndWrites(t *testing.T) {
	c, ctx := start(t, store.Config{}), soon(t)
	obj := configMap("one", map[string]string{"a": "1"})
	if err := c.Create(ctx, obj); err != nil {
		t.Fatal(err)
	}
	if obj.UID == "" || obj.ManagedFields[0].Manager != "tester" {
		t.Errorf("created %+v", obj)
	}
	key := client.ObjectKeyFromObject(obj)
	var got corev1.ConfigMap
	if err := c.Get(ctx, key, &got); err != nil || got.Data["a"] != "1" || got.ResourceVersion != obj.ResourceVersion {
		t.Errorf("got %+v, %v", got, err)
	}
	before := obj.DeepCopy()
	obj.Data["b"] = "2"
	if err := c.Patch(ctx, obj, client.MergeFrom(before)); err != nil || obj.Data["b"] != "2" || obj.ResourceVersion == before.ResourceVersion {
		t.Errorf("patched %+v, %v", obj, err)
	}
	if err := c.Update(ctx, before); !apierrors.IsConflict(err) {
		t.Errorf("a stale update: %v", err)
	}
	apply := corev1apply.ConfigMap("one", "default").WithData(map[string]string{"c": "3"})
	if err := c.Apply(ctx, apply, client.FieldOwner("applier")); err != nil || apply.Data["c"] != "3" || apply.UID == nil {
		t.Errorf("applied %+v, %v", apply, err)
	}
	if err := c.Get(ctx, key, &got); err != nil || len(got.Data) != 3 {
		t.Errorf("got %+v, %v", got, err)
	}
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
	if err := c.Get(ctx, key, u); err != nil || u.GetUID() != got.UID {
		t.Errorf("unstructured: %v, %v", u, err)
	}
	partial := &metav1.PartialObjectMetadata{}
	partial.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
	if err := c.Get(ctx, key, partial); err != nil || partial.UID != got.UID || partial.Kind != "ConfigMap" {
		t.Errorf("metadata: %v, %v", partial, err)
	}
	if err := c.Delete(ctx, obj); err != nil {
		t.Error(err)
	}
	if err := c.Get(ctx, key, &got); !apierrors.IsNotFound(err) {
		t.Errorf("after deletion: %v", err)
	}
}

// TestWritesOwnTheirMemory: changing what a write returned must not change what others read.
func TestWritesOwnTheirMemory(t *testing.T) {
	c, ctx := start(t, store.Config{}), soon(t)
	obj := configMap("one", map[string]string{"a": "1"})
	if err := c.Create(ctx, obj); err != nil {
		t.Fatal(err)
	}
	obj.Data["a"], obj.Labels["app"] = "changed", "changed"
	var got corev1.ConfigMap
	if err := c.Get(ctx, client.ObjectKeyFromObject(obj), &got); err != nil || got.Data["a"] != "1" || got.Labels["app"] != "x" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestLists(t *testing.T) {
	c, ctx := start(t, store.Config{}), soon(t)
	for i := range 5 {
		obj := configMap(fmt.Sprintf("c%d", i), nil)
		obj.Labels["even"] = fmt.Sprint(i%2 == 0)
		if err := c.Create(ctx, obj); err != nil {
			t.Fatal(err)
		}
	}
	names := func(opts ...client.ListOption) string {
		var list corev1.ConfigMapList
		if err := c.List(ctx, &list, opts...); err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, item := range list.Items {
			out = append(out, item.Name)
		}
		return strings.Join(out, " ") + list.Continue
	}
	for _, tt := range []struct {
		opts []client.ListOption
		want string
	}{
		{[]client.ListOption{client.InNamespace("default")}, "c0 c1 c2 c3 c4"},
		{[]client.ListOption{client.MatchingLabels{"even": "true"}}, "c0 c2 c4"},
		{[]client.ListOption{client.MatchingFields{"metadata.name": "c3"}}, "c3"},
		{[]client.ListOption{client.InNamespace("kube-system")}, ""},
		{[]client.ListOption{client.Limit(2)}, "c0 c1default/c1"},
		{[]client.ListOption{client.Limit(2), client.Continue("default/c1")}, "c2 c3default/c3"},
		{[]client.ListOption{client.Limit(2), client.Continue("default/c3")}, "c4"},
	} {
		if got := names(tt.opts...); got != tt.want {
			t.Errorf("%v: %s", tt.opts, got)
		}
	}
	var list corev1.ConfigMapList
	if err := c.List(ctx, &list, client.MatchingFields{"data": "x"}); !apierrors.IsBadRequest(err) {
		t.Errorf("a field that cannot be selected: %v", err)
	}
	partial := &metav1.PartialObjectMetadataList{}
	partial.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMapList"))
	if err := c.List(ctx, partial); err != nil || len(partial.Items) != 5 || partial.Items[0].Kind != "ConfigMap" {
		t.Errorf("metadata: %+v, %v", partial, err)
	}
	if err := c.DeleteAllOf(ctx, &corev1.ConfigMap{}, client.InNamespace("default"), client.MatchingLabels{"even": "false"}); err != nil {
		t.Fatal(err)
	}
	if got := names(); got != "c0 c2 c4" {
		t.Errorf("left are %s", got)
	}
}

func TestSubresources(t *testing.T) {
	c, ctx := start(t, store.Config{}), soon(t)
	d := deployment()
	if err := c.Create(ctx, d); err != nil {
		t.Fatal(err)
	}
	if *d.Spec.Replicas != 1 || d.Spec.Strategy.Type == "" {
		t.Errorf("defaults are missing: %+v", d.Spec)
	}
	d.Status.Replicas, d.Status.ObservedGeneration = 1, d.Generation
	if err := c.Status().Update(ctx, d); err != nil || d.Status.Replicas != 1 {
		t.Fatalf("status: %+v, %v", d.Status, err)
	}
	before := d.DeepCopy()
	d.Status.ReadyReplicas = 1
	if err := c.Status().Patch(ctx, d, client.MergeFrom(before)); err != nil || d.Status.ReadyReplicas != 1 {
		t.Fatalf("status: %+v, %v", d.Status, err)
	}
	scale := &autoscalingv1.Scale{}
	if err := c.SubResource("scale").Get(ctx, d, scale); err != nil || scale.Spec.Replicas != 1 || scale.Status.Replicas != 1 {
		t.Fatalf("scale: %+v, %v", scale, err)
	}
	scale.Spec.Replicas = 3
	if err := c.SubResource("scale").Update(ctx, d, client.WithSubResourceBody(scale)); err != nil || scale.Spec.Replicas != 3 {
		t.Fatalf("scale: %+v, %v", scale, err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"}, Spec: d.Spec.Template.Spec}
	if err := c.Create(ctx, pod); err != nil {
		t.Fatal(err)
	}
	if err := c.SubResource("binding").Create(ctx, pod, &corev1.Binding{Target: corev1.ObjectReference{Kind: "Node", Name: "n"}}); err != nil {
		t.Fatal(err)
	}
	var on corev1.PodList
	if err := c.List(ctx, &on, client.MatchingFields{"spec.nodeName": "n"}); err != nil || len(on.Items) != 1 {
		t.Errorf("pods on the node: %+v, %v", on.Items, err)
	}
}

func TestMapperAndKinds(t *testing.T) {
	c := start(t, store.Config{})
	mapping, err := c.RESTMapper().RESTMapping(schema.GroupKind{Group: "apps", Kind: "Deployment"})
	if err != nil || mapping.Resource.Resource != "deployments" || mapping.Scope.Name() != "namespace" {
		t.Errorf("mapping is %+v, %v", mapping, err)
	}
	if namespaced, err := c.IsObjectNamespaced(&corev1.Node{}); err != nil || namespaced {
		t.Errorf("nodes: %v, %v", namespaced, err)
	}
}

// following collects what Follow hands over, as "+a", "~a" and "-a".
func following(t *testing.T, c *barqueclient.InProcess, kind client.Object) <-chan string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out := make(chan string, 1000)
	done := make(chan error, 1)
	go func() {
		done <- c.Follow(ctx, kind, func() { out <- "synced" }, func(e barqueclient.Event) {
			switch {
			case e.Old == nil:
				out <- "+" + e.New.GetName()
			case e.New == nil:
				out <- "-" + e.Old.GetName()
			default:
				out <- "~" + e.New.GetName()
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Follow: %v", err)
		}
	})
	return out
}

func await(t *testing.T, ctx context.Context, events <-chan string, want ...string) {
	t.Helper()
	for _, w := range want {
		select {
		case got := <-events:
			if got != w {
				t.Fatalf("got %s, want %s of %v", got, w, want)
			}
		case <-ctx.Done():
			t.Fatalf("waited for %s of %v", w, want)
		}
	}
}

func TestFollow(t *testing.T) {
	c, ctx := start(t, store.Config{}), soon(t)
	one := configMap("one", nil)
	if err := c.Create(ctx, one); err != nil {
		t.Fatal(err)
	}
	events := following(t, c, &corev1.ConfigMap{})
	await(t, ctx, events, "+one", "synced")
	one.Data = map[string]string{"a": "b"}
	if err := c.Update(ctx, one); err != nil {
		t.Fatal(err)
	}
	await(t, ctx, events, "~one")
	if err := c.Delete(ctx, one); err != nil {
		t.Fatal(err)
	}
	if err := c.Create(ctx, configMap("two", nil)); err != nil {
		t.Fatal(err)
	}
	await(t, ctx, events, "-one", "+two")
}

// TestFollowSurvivesALostLog: a follower that was too slow gets the difference.
func TestFollowSurvivesALostLog(t *testing.T) {
	c, ctx := start(t, store.Config{EventLimit: 4}), soon(t)
	if err := c.Create(ctx, configMap("gone", nil)); err != nil {
		t.Fatal(err)
	}
	if err := c.Create(ctx, configMap("stays", nil)); err != nil {
		t.Fatal(err)
	}
	resume := make(chan struct{})
	known := map[string]bool{}
	synced := make(chan struct{}, 1)
	fctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	settled := make(chan struct{})
	go func() {
		first := true
		done <- c.Follow(fctx, &corev1.ConfigMap{}, func() { synced <- struct{}{} }, func(e barqueclient.Event) {
			if first && len(known) == 2 {
				first = false
				<-resume // the log runs away meanwhile
			}
			if e.New == nil {
				delete(known, e.Old.GetName())
			} else {
				known[e.New.GetName()] = true
			}
			if len(known) == 52 && !known["gone"] {
				close(settled)
			}
		})
	}()
	<-synced
	if err := c.Delete(ctx, configMap("gone", nil)); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		if err := c.Create(ctx, configMap(fmt.Sprintf("n%d", i), nil)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Create(ctx, configMap("last", nil)); err != nil {
		t.Fatal(err)
	}
	close(resume)
	select {
	case <-settled:
	case <-ctx.Done():
		t.Fatalf("known are %v", known)
	}
	cancel()
	<-done
}

func TestRecorder(t *testing.T) {
	c, ctx := start(t, store.Config{}), soon(t)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "x"}}, TerminationGracePeriodSeconds: ptr.To[int64](1)},
	}
	if err := c.Create(ctx, pod); err != nil {
		t.Fatal(err)
	}
	r := barqueclient.NewRecorder(c, "kube-scheduler", nil)
	rctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	events := following(t, c, &corev1.Event{})
	await(t, ctx, events, "synced")
	next := func() {
		select {
		case <-events:
		case <-ctx.Done():
			t.Fatal("no event was written")
		}
	}
	r.Eventf(pod, corev1.EventTypeWarning, "FailedScheduling", "0/%d nodes", 3) // before Run
	go func() { done <- r.Run(rctx) }()
	next()
	r.Eventf(pod, corev1.EventTypeWarning, "FailedScheduling", "0/%d nodes", 3)
	next()
	var list corev1.EventList
	if err := c.List(ctx, &list, client.MatchingFields{"involvedObject.uid": string(pod.UID)}); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 1 || list.Items[0].Count != 2 || list.Items[0].Source.Component != "kube-scheduler" || list.Items[0].Message != "0/3 nodes" {
		t.Errorf("events are %+v", list.Items)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
