package agent_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/agent/podspec"
)

func amounts(cpu, memory string) corev1.ResourceRequirements {
	list := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	return corev1.ResourceRequirements{Requests: list, Limits: list.DeepCopy()}
}

// resize asks for other resources of the pod's container as the API server lets users do.
func (c *cluster) resize(name, container string, r corev1.ResourceRequirements) {
	c.Helper()
	p := c.pod(name)
	p.Generation++
	podspec.Container(p, container).Resources = r
	if _, err := c.client.CoreV1().Pods("default").Update(c.Context(), p, metav1.UpdateOptions{}); err != nil {
		c.Fatal(err)
	}
}

// has tells whether the pod's container has got the resources, and whether that is all there is to tell.
func (c *cluster) has(name, container string, r corev1.ResourceRequirements) func() bool {
	return func() bool {
		p := c.pod(name)
		for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			if s.Name == container {
				return p.Status.ObservedGeneration == p.Generation && s.Resources != nil && s.State.Running != nil &&
					s.Resources.Limits.Cpu().Cmp(*r.Limits.Cpu()) == 0 && s.Resources.Limits.Memory().Cmp(*r.Limits.Memory()) == 0 &&
					s.AllocatedResources.Memory().Cmp(*r.Requests.Memory()) == 0 &&
					condition(p, corev1.PodResizePending) == "" && condition(p, corev1.PodResizeInProgress) == ""
			}
		}
		return false
	}
}

func (c *cluster) events(reason string) []string {
	list, err := c.client.CoreV1().Events("").List(c.Context(), metav1.ListOptions{})
	if err != nil {
		c.Fatal(err)
	}
	var out []string
	for _, e := range list.Items {
		if e.Reason == reason {
			out = append(out, e.Message)
		}
	}
	return out
}

func find(p *corev1.Pod, t corev1.PodConditionType) corev1.PodCondition {
	for _, c := range p.Status.Conditions {
		if c.Type == t {
			return c
		}
	}
	return corev1.PodCondition{}
}

// TestResize: a running container gets other resources in place, one whose policy says so by a restart,
// sidecars too; an agent that takes over knows what was allocated.
func TestResize(t *testing.T) {
	c := newCluster(t)
	stop := c.start()
	p := newPod("web", "a", "b")
	always := corev1.ContainerRestartPolicyAlways
	side := *p.Spec.Containers[0].DeepCopy()
	side.Name, side.RestartPolicy = "side", &always
	p.Spec.InitContainers = []corev1.Container{side}
	p.Spec.Containers[1].ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer}}
	for _, list := range [][]corev1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			list[i].Resources = amounts("10m", "16Mi")
		}
	}
	p.Generation = 1
	c.create(p)
	c.eventually("ready", c.isReady("web"))

	c.resize("web", "a", amounts("20m", "32Mi"))
	c.eventually("a is resized", c.has("web", "a", amounts("20m", "32Mi")))
	c.resize("web", "side", amounts("20m", "8Mi"))
	c.eventually("the sidecar is resized", c.has("web", "side", amounts("20m", "8Mi")))
	if got := c.runtime.Config("a").GetLinux().GetResources(); got.GetMemoryLimitInBytes() != 32<<20 || got.GetCpuQuota() != 2000 {
		t.Errorf("the runtime was told %v", got)
	}
	c.eventually("events", func() bool { return len(c.events("ResizeStarted")) == 2 && len(c.events("ResizeCompleted")) == 2 })
	if got := c.events("ResizeCompleted")[0]; !strings.HasPrefix(got, `Pod resize completed: {"initContainers":[{"name":"side",`) || !strings.Contains(got, `"generation":`) {
		t.Errorf("event %q", got)
	}
	c.resize("web", "b", amounts("20m", "16Mi"))
	c.eventually("b has more CPU", c.has("web", "b", amounts("20m", "16Mi")))
	c.resize("web", "b", amounts("20m", "20Mi"))
	c.eventually("b has more memory", c.has("web", "b", amounts("20m", "20Mi")))
	for _, s := range c.pod("web").Status.ContainerStatuses {
		if want := map[string]int32{"a": 0, "b": 1}[s.Name]; s.RestartCount != want {
			t.Errorf("container %s was restarted %d times, not %d", s.Name, s.RestartCount, want)
		}
	}

	stop()
	before := len(c.runtime.Calls())
	c.start()
	c.resize("web", "a", amounts("10m", "16Mi"))
	c.eventually("a is resized by the next agent", c.has("web", "a", amounts("10m", "16Mi")))
	if calls := c.runtime.Calls()[before:]; !slices.Equal(calls, []string{"UpdateContainerResources a"}) {
		t.Errorf("the next agent called %q", calls)
	}
}

// TestResizeWaits: a resize for which there is no room waits, over the agent's restart too, until another
// pod ends.
func TestResizeWaits(t *testing.T) {
	c := newCluster(t)
	stop := c.start()
	node, err := c.client.CoreV1().Nodes().Get(t.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	share := func(percent int64) corev1.ResourceRequirements {
		r := amounts("10m", "16Mi")
		r.Requests[corev1.ResourceMemory] = *resource.NewQuantity(node.Status.Allocatable.Memory().Value()/100*percent, resource.BinarySI)
		r.Limits[corev1.ResourceMemory] = r.Requests[corev1.ResourceMemory]
		return r
	}
	for _, name := range []string{"one", "two"} {
		p := newPod(name, name)
		p.Spec.Containers[0].Resources, p.Generation = share(40), 1
		c.create(p)
		c.eventually("ready", c.isReady(name))
	}
	pending := func(reason string, generation int64) func() bool {
		return func() bool {
			got := find(c.pod("one"), corev1.PodResizePending)
			return got.Reason == reason && got.ObservedGeneration == generation && condition(c.pod("one"), corev1.PodResizeInProgress) == ""
		}
	}
	c.resize("one", "one", share(101))
	c.eventually("infeasible", pending(corev1.PodReasonInfeasible, 2))
	c.resize("one", "one", share(70))
	c.eventually("deferred", pending(corev1.PodReasonDeferred, 3))
	if got := find(c.pod("one"), corev1.PodResizePending).Message; !strings.HasPrefix(got, "Node didn't have enough resource: memory, requested: ") {
		t.Errorf("message %q", got)
	}
	stop()
	c.start()
	c.delete("two", 0)
	c.eventually("there is room", c.has("one", "one", share(70)))
	for _, call := range c.runtime.Calls() {
		if strings.HasPrefix(call, "StopContainer one") {
			t.Errorf("the container was stopped")
		}
	}
}

// TestResizeFails: what the runtime refuses is told, and tried again.
func TestResizeFails(t *testing.T) {
	c := newCluster(t)
	c.start()
	p := newPod("web", "a")
	p.Spec.Containers[0].Resources, p.Generation = amounts("10m", "16Mi"), 1
	c.create(p)
	c.eventually("ready", c.isReady("web"))
	c.runtime.Fail("UpdateContainerResources", errors.New("device or resource busy"))
	c.resize("web", "a", amounts("20m", "32Mi"))
	c.eventually("error", func() bool {
		got := find(c.pod("web"), corev1.PodResizeInProgress)
		return got.Reason == corev1.PodReasonError && strings.Contains(got.Message, "device or resource busy") && len(c.events("ResizeError")) == 1
	})
	if s := c.pod("web").Status.ContainerStatuses[0]; s.Resources.Limits.Memory().Value() != 16<<20 || s.AllocatedResources.Memory().Value() != 32<<20 {
		t.Errorf("status %+v", s)
	}
	c.runtime.Fail("UpdateContainerResources", nil)
	c.eventually("resized", c.has("web", "a", amounts("20m", "32Mi")))
}

// TestRoomOfPodsThatAreGone: a pod that was deleted for good, and whose containers take a moment to end,
// does not cost the next one its place.
func TestRoomOfPodsThatAreGone(t *testing.T) {
	c := newCluster(t)
	c.start()
	node, err := c.client.CoreV1().Nodes().Get(t.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	large := amounts("10m", "16Mi")
	large.Requests[corev1.ResourceMemory] = *resource.NewQuantity(node.Status.Allocatable.Memory().Value()/10*6, resource.BinarySI)
	large.Limits = nil
	one, two := newPod("one", "one"), newPod("two", "two")
	one.Spec.Containers[0].Resources, two.Spec.Containers[0].Resources = large, large
	c.create(one)
	c.eventually("ready", c.isReady("one"))
	c.runtime.OnSignal(func(string) (int32, bool) { return 0, false })
	if err := c.client.CoreV1().Pods("default").Delete(t.Context(), "one", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.create(two)
	c.eventually("the next one runs or is refused", func() bool {
		p := c.pod("two")
		return p.Status.Phase == corev1.PodFailed || c.isReady("two")()
	})
	if p := c.pod("two"); p.Status.Phase == corev1.PodFailed {
		t.Errorf("refused: %s", p.Status.Message)
	}
}
