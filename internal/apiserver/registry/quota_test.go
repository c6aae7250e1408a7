package registry_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/utils/clock"
	"pgregory.net/rapid"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/admission"
	"barque.dev/internal/api/quota"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/client"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

// charging is a server that charges quotas, and its client.
type charging struct {
	*server
	client *client.InProcess
}

func chargingOn(t testing.TB, member *etcd.Member) *charging {
	t.Helper()
	c := &charging{}
	c.server = on(t, member, func(cfg *registry.Config) { cfg.Quota = admission.NewResourceQuota(lateClient{c}) })
	c.client = client.NewInProcess(client.Config{Tables: c.Registry, Verbs: c.Verbs()})
	return c
}

// lateClient reads through a client that is made later: while the server starts there are no quotas.
type lateClient struct{ of *charging }

func (l lateClient) Get(ctx context.Context, key ctrlclient.ObjectKey, obj ctrlclient.Object, opts ...ctrlclient.GetOption) error {
	return l.of.client.Get(ctx, key, obj, opts...)
}

func (l lateClient) List(ctx context.Context, list ctrlclient.ObjectList, opts ...ctrlclient.ListOption) error {
	if l.of.client == nil {
		return nil
	}
	return l.of.client.List(ctx, list, opts...)
}

// recount does what the quota controller does once; a conflict means that somebody else wrote.
func (c *charging) recount(namespace string) error {
	ctx := c.tb.Context()
	measures := quota.Measures{Reader: c.client, Clock: clock.RealClock{}, Kind: func(gr schema.GroupResource) (schema.GroupVersionKind, bool) {
		res, ok := c.Lookup(gr.WithVersion(""))
		if !ok {
			return schema.GroupVersionKind{}, false
		}
		return res.Storage.WithKind(res.Kind), true
	}}
	var q corev1.ResourceQuota
	if err := c.client.Get(ctx, ctrlclient.ObjectKey{Namespace: namespace, Name: "q"}, &q); err != nil {
		return err
	}
	used, err := measures.Used(ctx, &q)
	if err != nil {
		return err
	}
	changed := q.DeepCopy()
	changed.Status = corev1.ResourceQuotaStatus{Hard: q.Spec.Hard, Used: used}
	return c.client.Status().Update(ctx, changed)
}

func limited(namespace string, pairs ...string) *corev1.ResourceQuota {
	q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{}}}
	for i := 0; i < len(pairs); i += 2 {
		q.Spec.Hard[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return q
}

// open makes a namespace with a quota that has been counted.
func (c *charging) open(q *corev1.ResourceQuota) {
	c.tb.Helper()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: q.Namespace}}
	for _, obj := range []ctrlclient.Object{ns, q} {
		if err := c.client.Create(c.tb.Context(), obj); err != nil {
			c.tb.Fatal(err)
		}
	}
	if err := c.recount(q.Namespace); err != nil {
		c.tb.Fatal(err)
	}
}

func asking(namespace, name, cpu string) *corev1.Pod {
	pod := newPod(name)
	pod.Namespace = namespace
	pod.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}
	return pod
}

func (c *charging) used(namespace string) corev1.ResourceList {
	c.tb.Helper()
	if _, err := c.store.ReadIndex(c.tb.Context()); err != nil {
		c.tb.Fatal(err)
	}
	var q corev1.ResourceQuota
	if err := c.client.Get(c.tb.Context(), ctrlclient.ObjectKey{Namespace: namespace, Name: "q"}, &q); err != nil {
		c.tb.Fatal(err)
	}
	return q.Status.Used
}

func TestQuotaIsCharged(t *testing.T) {
	c := chargingOn(t, etcdtest.New(t, 1, nil).Member(0))
	c.open(limited("team", "pods", "2", "requests.cpu", "1", "count/configmaps", "1", "services.nodeports", "1"))
	config := func(name string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: name}}
	}
	service := func(kind corev1.ServiceType) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "team", Name: "s"},
			Spec: corev1.ServiceSpec{Type: kind, Ports: []corev1.ServicePort{{Name: "a", Port: 1}, {Name: "b", Port: 2}}}}
	}
	dry := &ctrlclient.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	for _, step := range []struct {
		obj  ctrlclient.Object
		opts []ctrlclient.CreateOption
		want string
	}{
		{asking("team", "large", "1001m"), nil, "exceeded quota: q, requested: requests.cpu=1001m, used: requests.cpu=0, limited: requests.cpu=1"},
		{asking("team", "dry", "600m"), []ctrlclient.CreateOption{dry}, ""},
		{asking("team", "one", "600m"), nil, ""},
		{asking("team", "two", "600m"), []ctrlclient.CreateOption{dry}, "exceeded quota"},
		{asking("team", "two", "400m"), nil, ""},
		{asking("team", "two", "0"), nil, "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"},
		{newPodWithout("team"), nil, "must specify requests.cpu for: c"},
		{config("a"), nil, ""},
		{config("a"), nil, "exceeded quota: q, requested: count/configmaps=1"},
		{service(corev1.ServiceTypeNodePort), nil, "requested: services.nodeports=2"},
		{service(corev1.ServiceTypeClusterIP), nil, ""},
	} {
		err := c.client.Create(t.Context(), step.obj, step.opts...)
		if (err != nil) != (step.want != "") || err != nil && (!strings.Contains(err.Error(), step.want) || !apierrors.IsForbidden(err)) {
			t.Fatalf("%T %s: got %v, want %q", step.obj, step.obj.GetName(), err, step.want)
		}
	}
	used := c.used("team")
	if used.Pods().Value() != 2 || used.Name("requests.cpu", resource.DecimalSI).String() != "1" || used.Name("count/configmaps", resource.DecimalSI).Value() != 1 {
		t.Errorf("used: %v", used)
	}
	// A service that changes its type uses more, and asks.
	var s corev1.Service
	if err := c.client.Get(t.Context(), ctrlclient.ObjectKey{Namespace: "team", Name: "s"}, &s); err != nil {
		t.Fatal(err)
	}
	changed := s.DeepCopy()
	changed.Spec.Type = corev1.ServiceTypeNodePort
	if err := c.client.Update(t.Context(), changed); !apierrors.IsForbidden(err) {
		t.Errorf("two node ports of one: %v", err)
	}
	changed = s.DeepCopy()
	changed.Spec.Type, changed.Spec.Ports = corev1.ServiceTypeNodePort, s.DeepCopy().Spec.Ports[:1]
	if err := c.client.Update(t.Context(), changed); err != nil {
		t.Fatal(err)
	}
	if used := c.used("team"); used.Name("services.nodeports", resource.DecimalSI).Value() != 1 {
		t.Errorf("used: %v", used)
	}
}

func newPodWithout(namespace string) *corev1.Pod {
	pod := newPod("without")
	pod.Namespace = namespace
	return pod
}

// Three servers let pods in at once, some go again, and the controller counts all the while:
// nothing exceeds the quota, what fits is let in, and what is used is what there is.
func TestQuotasAreExact(t *testing.T) {
	member := etcdtest.New(t, 1, nil).Member(0)
	servers := []*charging{chargingOn(t, member), chargingOn(t, member), chargingOn(t, member)}
	var turn atomic.Int64
	rapid.Check(t, func(rt *rapid.T) {
		namespace := fmt.Sprintf("n%d", turn.Add(1))
		pods, cpu := rapid.IntRange(1, 6).Draw(rt, "pods"), rapid.IntRange(1, 20).Draw(rt, "cpu")
		asks := rapid.SliceOfN(rapid.IntRange(0, 6), 1, 14).Draw(rt, "asks")
		deletes := rapid.Bool().Draw(rt, "deletes")
		servers[0].open(limited(namespace, "pods", fmt.Sprint(pods), "requests.cpu", fmt.Sprint(cpu)))

		var working, counting sync.WaitGroup
		stop := make(chan struct{})
		counting.Go(func() { countUntil(rt, servers[1], namespace, stop) })
		var accepted atomic.Int64
		for i, ask := range asks {
			s := servers[i%len(servers)]
			working.Go(func() {
				// Other servers may not know the namespace yet, but they ask.
				pod := asking(namespace, fmt.Sprintf("p%d", i), fmt.Sprint(ask))
				switch err := s.client.Create(t.Context(), pod); {
				case apierrors.IsForbidden(err):
					return
				case err != nil:
					rt.Error(err)
					return
				}
				accepted.Add(1)
				if deletes && i%3 == 0 {
					if err := s.client.Delete(t.Context(), pod, ctrlclient.GracePeriodSeconds(0)); err != nil {
						rt.Error(err)
					}
				}
			})
		}
		working.Wait()
		close(stop)
		counting.Wait()
		check(rt, servers[2], namespace, pods, cpu, deletes)
		if sum := total(asks); len(asks) <= pods && sum <= cpu && accepted.Load() != int64(len(asks)) {
			rt.Errorf("%d of %d pods that fit were let in", accepted.Load(), len(asks))
		}
	})
}

func total(list []int) (sum int) {
	for _, n := range list {
		sum += n
	}
	return sum
}

// countUntil counts over and over.
func countUntil(rt *rapid.T, c *charging, namespace string, stop chan struct{}) {
	for {
		if err := c.recount(namespace); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			rt.Error(err)
			return
		}
		select {
		case <-stop:
			return
		default:
		}
	}
}

// check compares what a quota shows with what there is. After deletions it may show what was
// used until it is counted again.
func check(rt *rapid.T, c *charging, namespace string, pods, cpu int, deleted bool) {
	used := c.used(namespace)
	var list corev1.PodList
	if err := c.client.List(c.tb.Context(), &list, ctrlclient.InNamespace(namespace)); err != nil {
		rt.Fatal(err)
	}
	var asked resource.Quantity
	for i := range list.Items {
		asked.Add(*list.Items[i].Spec.Containers[0].Resources.Requests.Cpu())
	}
	shown := used.Name("requests.cpu", resource.DecimalSI)
	if len(list.Items) > pods || asked.CmpInt64(int64(cpu)) > 0 {
		rt.Fatalf("%d pods with %s of cpu exceed %d and %d", len(list.Items), asked.String(), pods, cpu)
	}
	if deleted {
		if used.Pods().Value() < int64(len(list.Items)) || shown.Cmp(asked) < 0 {
			rt.Fatalf("shown: %v, there are %d pods with %s of cpu", used, len(list.Items), asked.String())
		}
		return
	}
	if used.Pods().Value() != int64(len(list.Items)) || shown.Cmp(asked) != 0 {
		rt.Fatalf("shown: %v, there are %d pods with %s of cpu", used, len(list.Items), asked.String())
	}
}
