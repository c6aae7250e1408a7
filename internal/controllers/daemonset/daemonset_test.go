package daemonset

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
)

// A revision that comes with its owner makes nobody look: a set would take one of the same content for a duplicate.
func TestNewRevisionIsLeftAlone(t *testing.T) {
	owned := &appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "r", OwnerReferences: []metav1.OwnerReference{
		{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "agent", UID: "1", Controller: ptr.To(true)}}}}
	orphan := &appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "r"}}
	adopter := func(client.Object) []reconcile.Request { return make([]reconcile.Request, 1) }
	changed := revisionChanged(kit.Owner(kind.Kind, adopter))
	for name, c := range map[string]struct {
		event barqueclient.Event
		want  int
	}{
		"new":            {barqueclient.Event{New: owned}, 0},
		"new and orphan": {barqueclient.Event{New: orphan}, 1},
		"changed":        {barqueclient.Event{Old: owned, New: owned}, 1},
		"deleted":        {barqueclient.Event{Old: owned}, 1},
	} {
		if got := changed(c.event); len(got) != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func newSet(surge, unavailable int32) *appsv1.DaemonSet {
	s, u := intstr.FromInt32(surge), intstr.FromInt32(unavailable)
	labels := map[string]string{"app": "agent"}
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "agent"},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "agent", Image: "agent:1"}}},
			},
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
				Type:          appsv1.RollingUpdateDaemonSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxSurge: &s, MaxUnavailable: &u},
			},
			RevisionHistoryLimit: ptr.To[int32](2),
		},
	}
}

func node(name string, taints ...corev1.Taint) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"disk": "ssd"}}, Spec: corev1.NodeSpec{Taints: taints}}
}

// run makes every pending pod run on its node, ready.
func run(w *controllertest.World) {
	for _, p := range w.Pods() {
		if p.Status.Phase == corev1.PodPending {
			on := target(&p)
			w.Run(&p, true)
			controllertest.Change(w, &p, func(p *corev1.Pod) { p.Spec.NodeName = on })
		}
	}
}

func TestPlacement(t *testing.T) {
	noSchedule := corev1.Taint{Key: "gpu", Effect: corev1.TaintEffectNoSchedule}
	noExecute := corev1.Taint{Key: "gpu", Effect: corev1.TaintEffectNoExecute}
	for name, c := range map[string]struct {
		change      func(*corev1.PodSpec)
		node        *corev1.Node
		start, stay bool
	}{
		"plain":          {nil, node("a"), true, true},
		"node name":      {func(s *corev1.PodSpec) { s.NodeName = "b" }, node("a"), false, false},
		"selector":       {func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{"disk": "hdd"} }, node("a"), false, false},
		"no schedule":    {nil, node("a", noSchedule), false, true},
		"no execute":     {nil, node("a", noExecute), false, false},
		"tolerated":      {func(s *corev1.PodSpec) { s.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}} }, node("a", noExecute), true, true},
		"unreachable":    {nil, node("a", corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}), true, true},
		"cordoned":       {nil, node("a", corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}), true, true},
		"no network":     {nil, node("a", corev1.Taint{Key: corev1.TaintNodeNetworkUnavailable, Effect: corev1.TaintEffectNoSchedule}), false, true},
		"host network":   {func(s *corev1.PodSpec) { s.HostNetwork = true }, node("a", corev1.Taint{Key: corev1.TaintNodeNetworkUnavailable, Effect: corev1.TaintEffectNoSchedule}), true, true},
		"out of service": {nil, node("a", corev1.Taint{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}), false, false},
	} {
		ds := newSet(0, 1)
		if c.change != nil {
			c.change(&ds.Spec.Template.Spec)
		}
		if start, stay := newPlacement(ds).fits(c.node); start != c.start || stay != c.stay {
			t.Errorf("%s: start %v, stay %v", name, start, stay)
		}
	}
}

func TestDaemonTolerationsReplaceTheirLike(t *testing.T) {
	own := []corev1.Toleration{{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: ptr.To[int64](5)}}
	all := withDaemonTolerations(own, false)
	if len(all) != 6 || all[0].TolerationSeconds != nil {
		t.Errorf("tolerations %+v", all)
	}
	if own[0].TolerationSeconds == nil {
		t.Error("the template's tolerations were changed")
	}
}

func TestRunsOnePodANode(t *testing.T) {
	ds := newSet(0, 1)
	ds.Spec.Template.Spec.NodeSelector = map[string]string{"disk": "ssd"}
	other := node("c")
	other.Labels = nil
	w := controllertest.New(t, ds, node("a"), node("b"), other)
	c := New(w.Deps())
	w.Settle(c)
	run(w)
	w.Settle(c)
	var on []string
	for _, p := range w.Pods() {
		on = append(on, target(&p))
		if p.Spec.Affinity == nil || len(p.Spec.Tolerations) != 6 || p.Labels["controller-revision-hash"] != pods.TemplateHash(&ds.Spec.Template, nil) {
			t.Errorf("pod %+v", p)
		}
	}
	slices.Sort(on)
	if fmt.Sprint(on) != "[a b]" {
		t.Errorf("pods on %v", on)
	}
	s := controllertest.Reload(w, ds).Status
	if s.DesiredNumberScheduled != 2 || s.CurrentNumberScheduled != 2 || s.NumberReady != 2 || s.NumberAvailable != 2 || s.UpdatedNumberScheduled != 2 || s.NumberUnavailable != 0 || s.NumberMisscheduled != 0 {
		t.Errorf("status %+v", s)
	}

	before := other.DeepCopy()
	controllertest.Change(w, other, func(n *corev1.Node) { n.Labels = map[string]string{"disk": "ssd"} })
	if requests := c.Watches[3].Requests(barqueclient.Event{Old: before, New: other}); len(requests) != 1 {
		t.Errorf("a node that fits now wakes %v", requests)
	}
	if requests := c.Watches[3].Requests(barqueclient.Event{Old: other, New: other}); len(requests) != 0 {
		t.Errorf("a node that stays wakes %v", requests)
	}
	controllertest.Change(w, node("a"), func(n *corev1.Node) { n.Labels = nil })
	w.Settle(c)
	on = nil
	for _, p := range w.Pods() {
		on = append(on, target(&p))
	}
	slices.Sort(on)
	if fmt.Sprint(on) != "[b c]" {
		t.Errorf("pods on %v", on)
	}
}

func TestReplacesFailedPodsWithBackoff(t *testing.T) {
	ds := newSet(0, 1)
	w := controllertest.New(t, ds, node("a"))
	c := New(w.Deps())
	fail := func() {
		w.Settle(c)
		list := w.Pods()
		if len(list) != 1 {
			t.Fatalf("%d pods", len(list))
		}
		w.End(&list[0], corev1.PodFailed)
	}
	fail()
	fail() // the first was replaced at once
	if r := w.Reconcile(c, ds); r.RequeueAfter != time.Second || w.Pods()[0].Status.Phase != corev1.PodFailed {
		t.Errorf("looks again after %v", r.RequeueAfter)
	}
	w.Clock.Step(time.Second)
	fail()
	if r := w.Reconcile(c, ds); r.RequeueAfter != 2*time.Second {
		t.Errorf("looks again after %v", r.RequeueAfter)
	}
	if !slices.ContainsFunc(w.Events(), func(e string) bool { return strings.HasPrefix(e, "Warning FailedDaemonPod ") }) {
		t.Errorf("events %q", w.Events())
	}
}

func TestRemovesPodsPinnedToNodesThatAreGone(t *testing.T) {
	ds := newSet(0, 1)
	a := node("a")
	w := controllertest.New(t, ds, a)
	c := New(w.Deps())
	w.Settle(c)
	if err := w.Delete(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	w.Settle(c)
	if list := w.Pods(); len(list) != 0 {
		t.Errorf("%d pods", len(list))
	}
}

// A node that can't be read keeps no other from getting its pod, and loses none itself.
func TestNodeThatCannotBeRead(t *testing.T) {
	ds := newSet(0, 1)
	w := controllertest.New(t, ds, node("a"), node("b"))
	c := New(w.Deps())
	w.Settle(c)
	w.Damaged = func(obj client.Object) bool { n, ok := obj.(*corev1.Node); return ok && n.Name == "a" }
	w.MustCreate(node("c"))
	w.Settle(c)
	var on []string
	for _, p := range w.Pods() {
		on = append(on, target(&p))
	}
	if slices.Sort(on); !slices.Equal(on, []string{"a", "b", "c"}) {
		t.Errorf("pods on %v", on)
	}
	controllertest.Change(w, ds, func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Containers[0].Image = "agent:2" })
	for range 3 {
		run(w)
		w.Settle(c)
	}
	images := map[string]string{}
	for _, p := range w.Pods() {
		images[target(&p)] = p.Spec.Containers[0].Image
	}
	if images["a"] != "agent:1" || images["b"] != "agent:2" || images["c"] != "agent:2" {
		t.Errorf("images %v", images)
	}
}

func TestRollsOutAndKeepsHistory(t *testing.T) {
	for _, surge := range []int32{0, 1} {
		ds := newSet(surge, 1-surge)
		w := controllertest.New(t, ds, node("a"), node("b"), node("c"))
		c := New(w.Deps())
		for image := 1; image <= 5; image++ {
			controllertest.Change(w, ds, func(ds *appsv1.DaemonSet) {
				ds.Spec.Template.Spec.Containers[0].Image = fmt.Sprint("agent:", image)
			})
			for range 10 {
				w.Settle(c)
				run(w)
			}
			w.Settle(c)
		}
		for _, p := range w.Pods() {
			if p.Spec.Containers[0].Image != "agent:5" {
				t.Errorf("surge %d: image %s", surge, p.Spec.Containers[0].Image)
			}
		}
		if n := len(w.Pods()); n != 3 {
			t.Errorf("surge %d: %d pods", surge, n)
		}
		var list appsv1.ControllerRevisionList
		if err := w.List(t.Context(), &list); err != nil {
			t.Fatal(err)
		}
		numbers := map[int64]bool{}
		for _, cr := range list.Items {
			numbers[cr.Revision] = true
		}
		if len(numbers) != 3 || !numbers[3] || !numbers[4] || !numbers[5] {
			t.Errorf("surge %d: revisions %v", surge, numbers)
		}
	}
}

func TestRollbackReusesItsRevision(t *testing.T) {
	ds := newSet(0, 1)
	w := controllertest.New(t, ds, node("a"))
	c := New(w.Deps())
	for _, image := range []string{"agent:1", "agent:2", "agent:1"} {
		controllertest.Change(w, ds, func(ds *appsv1.DaemonSet) { ds.Spec.Template.Spec.Containers[0].Image = image })
		for range 5 {
			w.Settle(c)
			run(w)
		}
	}
	var list appsv1.ControllerRevisionList
	if err := w.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	if len(list.Items) != 2 {
		t.Fatalf("%d revisions", len(list.Items))
	}
	for _, cr := range list.Items {
		if want := int64(2 + strings.Count(string(cr.Data.Raw), "agent:1")); cr.Revision != want {
			t.Errorf("revision %d of %s", cr.Revision, cr.Data.Raw)
		}
	}
}

// An update is played out with pods that become available in any order and deletions that take
// their time. Without surge no more than maxUnavailable nodes lack an available pod; with surge
// none ever does, and no more than maxSurge have a second pod.
func TestUpdateKeepsItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(t, "nodes")
		surge := rapid.Int32Range(0, 3).Draw(t, "surge")
		unavailable := rapid.Int32Range(1, 3).Draw(t, "unavailable")
		if surge > 0 {
			unavailable = 0
		}
		ds := newSet(surge, unavailable)
		now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
		var nodes []*corev1.Node
		var all []*corev1.Pod
		serial := 0
		start := func(node, hash string, ready bool) *corev1.Pod {
			serial++
			p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("p", serial), Labels: map[string]string{hashLabel: hash},
				CreationTimestamp: metav1.Time{Time: now.Add(time.Duration(serial) * time.Second)}}}
			p.Spec.NodeName, p.Status.Phase = node, corev1.PodRunning
			setReady(p, ready)
			return p
		}
		for i := range n {
			nodes = append(nodes, node(fmt.Sprint("n", i)))
			all = append(all, start(nodes[i].Name, "old", true))
		}
		for step := 0; ; step++ {
			s := newState(ds, nodes, all, "new", now)
			lacking, doubled := 0, 0
			for _, node := range nodes {
				here := alive(s.pods[node.Name])
				if !slices.ContainsFunc(here, s.available) {
					lacking++
				}
				if len(here) > 1 {
					doubled++
				}
			}
			if lacking > int(unavailable) || doubled > int(surge) {
				t.Fatalf("step %d: %d nodes without an available pod (allowed %d), %d with two (allowed %d)", step, lacking, unavailable, doubled, surge)
			}
			if st := s.status(); int(st.UpdatedNumberScheduled) == n && int(st.NumberAvailable) == n && len(all) == n {
				return
			}
			if step > 500 {
				t.Fatalf("stuck: %+v", s.status())
			}
			p := s.manage()
			if p.empty() {
				p = s.update()
			}
			for _, pod := range p.delete {
				pod.DeletionTimestamp = &metav1.Time{Time: now}
			}
			for _, node := range p.create {
				all = append(all, start(node, "new", false))
			}
			// Some time passes for some of the pods, at last for all.
			all = slices.DeleteFunc(all, func(p *corev1.Pod) bool {
				if step%5 != 4 && !rapid.Bool().Draw(t, "moves") {
					return false
				}
				setReady(p, true)
				return p.DeletionTimestamp != nil
			})
		}
	})
}

func setReady(p *corev1.Pod, ready bool) {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: status}}
}
