package endpointslice

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"barque.dev/internal/controllers/backends"
)

func service() *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "s"}}
	s.Spec.Selector = map[string]string{"app": "web"}
	s.Spec.Ports = []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromString("http")}}
	return s
}

func pod(i int, ready bool, port int32) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("p%03d", i), UID: types.UID(fmt.Sprint(i)), Labels: map[string]string{"app": "web"}}}
	p.Spec.NodeName = "n" + fmt.Sprint(i%3)
	p.Spec.Containers = []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{Name: "http", Protocol: corev1.ProtocolTCP, ContainerPort: port}}}}
	p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.42.%d.%d", i/250, i%250)}}
	p.Status.Phase = corev1.PodRunning
	if ready {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	return p
}

// apply does to slices what the API would.
func apply(have []discoveryv1.EndpointSlice, p plan, serial *int) []discoveryv1.EndpointSlice {
	byName := map[string]discoveryv1.EndpointSlice{}
	var order []string
	for _, s := range have {
		byName[s.Name] = s
		order = append(order, s.Name)
	}
	for _, s := range p.update {
		byName[s.Name] = *s
	}
	for _, s := range p.remove {
		delete(byName, s.Name)
	}
	for _, s := range p.create {
		*serial++
		s.Name = fmt.Sprint(s.GenerateName, *serial)
		byName[s.Name] = *s
		order = append(order, s.Name)
	}
	var out []discoveryv1.EndpointSlice
	for _, name := range order {
		if s, ok := byName[name]; ok {
			out = append(out, s)
		}
	}
	return out
}

// Whatever pods come and go: every backend is in exactly one slice with its ports, no slice is
// over full, nothing is written twice, and one pod's change touches few slices.
func TestSlicesFollowPods(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := service()
		var have []discoveryv1.EndpointSlice
		serial := 0
		pods := map[int]corev1.Pod{}
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			for range rapid.IntRange(0, 150).Draw(t, "changes") {
				i := rapid.IntRange(0, 300).Draw(t, "pod")
				if rapid.Bool().Draw(t, "gone") {
					delete(pods, i)
				} else {
					pods[i] = pod(i, rapid.Bool().Draw(t, "ready"), rapid.SampledFrom([]int32{8080, 9090}).Draw(t, "port"))
				}
			}
			var list []corev1.Pod
			for _, p := range pods {
				list = append(list, p)
			}
			all := backends.Of(s, list, corev1.IPv4Protocol)
			have = apply(have, decide(s, corev1.IPv4Protocol, all, nil, have), &serial)
			check(t, have, pods)
			if again := decide(s, corev1.IPv4Protocol, all, nil, have); len(again.create)+len(again.update)+len(again.remove) > 0 {
				t.Fatalf("a second look wants more: %+v", again)
			}
		}
	})
}

func check(t *rapid.T, have []discoveryv1.EndpointSlice, pods map[int]corev1.Pod) {
	if len(have) == 0 {
		t.Fatal("a service has at least one slice")
	}
	seen := map[string]bool{}
	for _, slice := range have {
		if len(slice.Endpoints) > maxEndpoints {
			t.Fatalf("%s holds %d endpoints", slice.Name, len(slice.Endpoints))
		}
		for _, e := range slice.Endpoints {
			if seen[e.TargetRef.Name] {
				t.Fatalf("%s is there twice", e.TargetRef.Name)
			}
			seen[e.TargetRef.Name] = true
			var i int
			_, _ = fmt.Sscanf(e.TargetRef.Name, "p%d", &i)
			p := pods[i]
			if *slice.Ports[0].Port != p.Spec.Containers[0].Ports[0].ContainerPort {
				t.Fatalf("%s has the wrong port", e.TargetRef.Name)
			}
			if *e.Conditions.Ready != (len(p.Status.Conditions) > 0) {
				t.Fatalf("%s has the wrong readiness", e.TargetRef.Name)
			}
		}
	}
	if len(seen) != len(pods) {
		t.Fatalf("%d endpoints for %d pods", len(seen), len(pods))
	}
}

func TestEndpointStates(t *testing.T) {
	now := metav1.Now()
	tests := []struct {
		name                        string
		edit                        func(*corev1.Service, *corev1.Pod)
		none                        bool
		ready, serving, terminating bool
	}{
		{name: "ready", ready: true, serving: true},
		{name: "not ready", edit: func(_ *corev1.Service, p *corev1.Pod) { p.Status.Conditions = nil }},
		{name: "published though not ready", edit: func(s *corev1.Service, p *corev1.Pod) {
			s.Spec.PublishNotReadyAddresses, p.Status.Conditions = true, nil
		}, ready: true, serving: true},
		{name: "terminating", edit: func(_ *corev1.Service, p *corev1.Pod) { p.DeletionTimestamp = &now }, serving: true, terminating: true},
		{name: "ended", edit: func(_ *corev1.Service, p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, none: true},
		{name: "no address yet", edit: func(_ *corev1.Service, p *corev1.Pod) { p.Status.PodIPs = nil }, none: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, p := service(), pod(1, true, 80)
			if tt.edit != nil {
				tt.edit(s, &p)
			}
			plan := decide(s, corev1.IPv4Protocol, backends.Of(s, []corev1.Pod{p}, corev1.IPv4Protocol), map[string]string{"n1": "z"}, nil)
			if len(plan.create) != 1 {
				t.Fatalf("%d slices", len(plan.create))
			}
			got := plan.create[0].Endpoints
			if tt.none {
				if len(got) != 0 {
					t.Fatalf("got %+v, want none", got)
				}
				return
			}
			c := got[0].Conditions
			if *c.Ready != tt.ready || *c.Serving != tt.serving || *c.Terminating != tt.terminating {
				t.Errorf("ready %v serving %v terminating %v", *c.Ready, *c.Serving, *c.Terminating)
			}
			if *got[0].Zone != "z" || *got[0].NodeName != "n1" {
				t.Errorf("zone %v, node %v", *got[0].Zone, *got[0].NodeName)
			}
		})
	}
}
