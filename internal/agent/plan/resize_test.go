package plan_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"pgregory.net/rapid"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/plan"
	"barque.dev/internal/agent/podspec"
)

func amounts(milli, mib int64) corev1.ResourceRequirements {
	list := corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewMilliQuantity(milli, resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(mib<<20, resource.BinarySI),
	}
	return corev1.ResourceRequirements{Requests: list, Limits: list}
}

func limits(milli, mib int64) podspec.Limits {
	return podspec.Limits{Shares: podspec.Shares(milli), Quota: podspec.Quota(milli), Memory: mib << 20}
}

func TestResize(t *testing.T) {
	restart := []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer}}
	for name, tt := range map[string]struct {
		want    [2]corev1.ResourceRequirements // of a and b
		have    [2]corev1.ResourceRequirements
		limits  podspec.Limits
		policy  []corev1.ContainerResizePolicy // of b
		busy    bool
		resize  string // "limits", or the containers to update
		bounds  podspec.Limits
		kills   int
		settled bool
	}{
		"nothing":                   {want: both(amounts(100, 10)), have: both(amounts(100, 10)), limits: limits(200, 20), settled: true},
		"more: the pod first":       {want: both(amounts(200, 20)), have: both(amounts(100, 10)), limits: limits(200, 20), resize: "limits", bounds: limits(400, 40)},
		"more: then its containers": {want: both(amounts(200, 20)), have: both(amounts(100, 10)), limits: limits(400, 40), resize: "a-0,b-1"},
		"less: containers first":    {want: both(amounts(50, 5)), have: both(amounts(100, 10)), limits: limits(200, 20), resize: "a-0,b-1"},
		"less: then the pod":        {want: both(amounts(50, 5)), have: both(amounts(50, 5)), limits: limits(200, 20), resize: "limits", bounds: limits(100, 10)},
		"those with less memory first": {
			want: [2]corev1.ResourceRequirements{amounts(100, 15), amounts(100, 5)}, have: both(amounts(100, 10)), limits: limits(200, 20), resize: "b-1,a-0",
		},
		"both ways: the pod has room for either": {
			want: [2]corev1.ResourceRequirements{amounts(300, 5), amounts(100, 10)}, have: both(amounts(100, 10)), limits: limits(200, 20), resize: "limits", bounds: limits(400, 20),
		},
		"a restart waits for the pod's room": {want: both(amounts(100, 20)), have: both(amounts(100, 10)), limits: limits(200, 20), policy: restart, resize: "limits", bounds: limits(200, 40)},
		"a restart":                          {want: both(amounts(100, 20)), have: both(amounts(100, 10)), limits: limits(200, 40), policy: restart, resize: "a-0", kills: 1},
		"the policy is of the other resource": {
			want: both(amounts(200, 10)), have: both(amounts(100, 10)), limits: limits(400, 20), policy: restart, resize: "a-0,b-1",
		},
		"under way": {want: both(amounts(50, 5)), have: both(amounts(100, 10)), limits: limits(200, 20), busy: true},
	} {
		t.Run(name, func(t *testing.T) {
			p := pod(corev1.RestartPolicyAlways, "a", "b")
			p.Spec.Containers[0].Resources, p.Spec.Containers[1].Resources = tt.want[0], tt.want[1]
			p.Spec.Containers[1].ResizePolicy = tt.policy
			in := plan.Input{Pod: p, Observed: observed("a:running", "b:running"), Limits: &tt.limits, Now: epoch, Busy: map[plan.Task]time.Time{}}
			in.Applied = map[string]corev1.ResourceRequirements{}
			for i, name := range []string{"a", "b"} {
				c, _ := in.Observed.Newest(name)
				in.Applied[c.ID] = tt.have[i]
				tt.resize = strings.ReplaceAll(tt.resize, name+"-"+string(rune('0'+i)), c.ID)
			}
			if tt.busy {
				in.Busy[plan.TaskResize] = time.Time{}
			}
			d := plan.Next(in)
			got := ""
			if r := d.Resize; r != nil && r.Limits != nil {
				got = "limits"
				if *r.Limits != tt.bounds {
					t.Errorf("limits %+v, want %+v", *r.Limits, tt.bounds)
				}
			} else if r != nil {
				got = strings.Join(r.Containers, ",")
			}
			if got != tt.resize || len(d.Kill) != tt.kills || d.Resizing == tt.settled {
				t.Errorf("resize %q, want %q; kill %+v; resizing %v", got, tt.resize, d.Kill, d.Resizing)
			}
		})
	}
}

func both(r corev1.ResourceRequirements) [2]corev1.ResourceRequirements {
	return [2]corev1.ResourceRequirements{r, r}
}

// TestResizedContainerStartsAgain: a container that was stopped to be resized starts again even if it
// ends well and policy would leave it at that.
func TestResizedContainerStartsAgain(t *testing.T) {
	p := pod(corev1.RestartPolicyOnFailure, "a")
	in := plan.Input{Pod: p, Observed: observed("a:exited:0"), Now: epoch.Add(time.Hour)}
	if d := plan.Next(in); !d.Ended {
		t.Fatalf("a container that ended well: %+v", d)
	}
	c, _ := in.Observed.Newest("a")
	in.Resized = map[string]bool{c.ID: true}
	if d := plan.Next(in); len(d.Start) != 1 {
		t.Errorf("a container that was stopped to be resized: %+v", d)
	}
}

// TestResizeProperty: whatever is asked for, steps lead there, and at none of them has a container more
// than its pod.
func TestResizeProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) corev1.ResourceRequirements {
			return amounts(rapid.Int64Range(10, 500).Draw(t, name+" cpu"), rapid.Int64Range(1, 100).Draw(t, name+" memory"))
		}
		names := []string{"a", "b", "c"}
		p := pod(corev1.RestartPolicyAlways, names...)
		state := observed("a:running", "b:running", "c:running")
		applied := map[string]corev1.ResourceRequirements{}
		for i, name := range names {
			c, _ := state.Newest(name)
			applied[c.ID] = draw("had " + name)
			p.Spec.Containers[i].Resources = applied[c.ID]
		}
		sum := podspec.LimitsOf(p)
		for i, name := range names {
			p.Spec.Containers[i].Resources = draw("wants " + name)
		}
		fits := func() {
			for id, r := range applied {
				if podspec.Quota(r.Limits.Cpu().MilliValue()) > sum.Quota || r.Limits.Memory().Value() > sum.Memory {
					t.Fatalf("container %s has %v, the pod %+v", id, r, sum)
				}
			}
		}
		for range 5 {
			d := plan.Next(plan.Input{Pod: p, Observed: state, Applied: applied, Limits: &sum, Now: epoch})
			if !d.Resizing {
				break
			}
			if d.Resize.Limits != nil {
				sum = *d.Resize.Limits
			}
			for _, id := range d.Resize.Containers {
				i := slices.IndexFunc(state.Containers, func(c cri.Container) bool { return c.ID == id })
				applied[id] = podspec.Container(p, state.Containers[i].Name).Resources
				fits()
			}
			fits()
		}
		if sum != podspec.LimitsOf(p) {
			t.Fatalf("the pod is left with %+v", sum)
		}
		for _, c := range state.Containers {
			if got := applied[c.ID]; podspec.Container(p, c.Name).Resources.Limits.Memory().Cmp(*got.Limits.Memory()) != 0 {
				t.Fatalf("container %s is left with %v", c.Name, applied[c.ID])
			}
		}
	})
}
