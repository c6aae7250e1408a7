package drain_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clientgotesting "k8s.io/client-go/testing"

	"barque.dev/internal/cluster/drain"
)

// a pod of the node n that belongs to an owner of a kind; "" is nobody.
func pod(name, owner string, tune ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)},
		Spec:       corev1.PodSpec{NodeName: "n"},
	}
	if owner != "" {
		yes := true
		p.OwnerReferences = []metav1.OwnerReference{{Kind: owner, Name: "o", Controller: &yes}}
	}
	for _, f := range tune {
		f(p)
	}
	return p
}

// cluster answers evictions: a pod that is refused so many times, and then goes.
func cluster(refuse map[string]int, pods ...runtime.Object) *fake.Clientset {
	c := fake.NewClientset(append(pods, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}})...)
	c.PrependReactor("create", "pods", func(a clientgotesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "eviction" {
			return false, nil, nil
		}
		name := a.(clientgotesting.CreateAction).GetObject().(metav1.Object).GetName()
		if refuse[name] > 0 {
			refuse[name]--
			return true, nil, apierrors.NewTooManyRequests("the budget of "+name, 0)
		}
		return true, nil, c.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("pods"), "ns", name)
	})
	return c
}

func TestDrain(t *testing.T) {
	static := func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: "x"} }
	done := func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }
	for name, tt := range map[string]struct {
		pods   []runtime.Object
		bare   bool
		refuse map[string]int
		left   []string
		want   string // in the error; "" is none
	}{
		"nothing":                    {},
		"of controllers":             {pods: []runtime.Object{pod("a", "ReplicaSet"), pod("b", "StatefulSet"), pod("c", "Job")}},
		"the machine's own":          {pods: []runtime.Object{pod("a", "DaemonSet"), pod("b", "", static), pod("c", "ReplicaSet")}, left: []string{"a", "b"}},
		"a bare one":                 {pods: []runtime.Object{pod("a", ""), pod("b", "ReplicaSet")}, left: []string{"a", "b"}, want: "pods ns/a belong to no controller"},
		"a bare one, all the same":   {pods: []runtime.Object{pod("a", ""), pod("b", "ReplicaSet")}, bare: true},
		"a bare one that is done":    {pods: []runtime.Object{pod("a", "", done)}},
		"a budget that gives way":    {pods: []runtime.Object{pod("a", "ReplicaSet")}, refuse: map[string]int{"a": 5}},
		"a budget that never does":   {pods: []runtime.Object{pod("a", "ReplicaSet"), pod("b", "ReplicaSet")}, refuse: map[string]int{"a": 1000}, left: []string{"a"}, want: "ns/a (the budget of a)"},
		"many budgets that never do": {pods: many(8), refuse: all(8), left: names(8), want: "and 3 more"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := cluster(tt.refuse, tt.pods...)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				err := drain.Drain(ctx, drain.Config{Client: c, Node: "n", Bare: tt.bare, Say: t.Logf})
				if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want %q", err, tt.want)
				}
				if left := remaining(t, c); !slices.Equal(left, tt.left) {
					t.Errorf("left are %v, want %v", left, tt.left)
				}
				node, err := c.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
				if refused := strings.Contains(tt.want, "belong to"); err != nil || node.Spec.Unschedulable == refused {
					t.Errorf("cordoned: %v, %v", node.Spec.Unschedulable, err)
				}
			})
		})
	}
}

// A node that never registered has nothing to drain.
func TestDrainNobody(t *testing.T) {
	if err := drain.Drain(t.Context(), drain.Config{Client: fake.NewClientset(), Node: "n", Say: t.Logf}); err != nil {
		t.Error(err)
	}
}

func remaining(t *testing.T, c *fake.Clientset) (names []string) {
	t.Helper()
	list, err := c.CoreV1().Pods("ns").List(context.WithoutCancel(t.Context()), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	return names
}

func names(n int, list ...string) []string {
	for i := range n {
		list = append(list, fmt.Sprintf("p%d", i))
	}
	return list
}

func many(n int) (pods []runtime.Object) {
	for _, name := range names(n) {
		pods = append(pods, pod(name, "ReplicaSet"))
	}
	return pods
}

func all(n int) map[string]int {
	refuse := map[string]int{}
	for _, name := range names(n) {
		refuse[name] = 1000
	}
	return refuse
}
