package relay

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestAddress(t *testing.T) {
	r := New(Config{}, nil)
	defer r.Close()
	node := func(addresses ...corev1.NodeAddress) *corev1.Node {
		return &corev1.Node{Status: corev1.NodeStatus{Addresses: addresses}}
	}
	for _, test := range []struct {
		node *corev1.Node
		want string
	}{
		{node(corev1.NodeAddress{Type: "Hostname", Address: "h"}, corev1.NodeAddress{Type: "InternalIP", Address: "10.0.0.1"}), "10.0.0.1"},
		{node(corev1.NodeAddress{Type: "ExternalIP", Address: "1.2.3.4"}, corev1.NodeAddress{Type: "Hostname", Address: "h"}), "h"},
		{node(corev1.NodeAddress{Type: "InternalIP", Address: ""}), ""},
		{node(), ""},
	} {
		got, err := address(test.node, r.cfg.Addresses)
		if got != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%v: %q, %v", test.node.Status.Addresses, got, err)
		}
	}
}

func TestChooseContainer(t *testing.T) {
	pod := func(annotation string, initial []string, plain ...string) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
		if annotation != "" {
			p.Annotations = map[string]string{defaultContainerAnnotation: annotation}
		}
		for _, name := range initial {
			p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: name})
		}
		for _, name := range plain {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: name})
		}
		p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "debug"}}}
		return p
	}
	for _, test := range []struct {
		pod             *corev1.Pod
		name, want, err string
	}{
		{pod("", nil, "a"), "", "a", ""},
		{pod("", []string{"i"}, "a"), "i", "i", ""},
		{pod("", nil, "a"), "debug", "debug", ""},
		{pod("", nil, "a"), "b", "", "container b is not valid for pod p"},
		{pod("b", nil, "a", "b"), "", "b", ""},
		{pod("gone", nil, "a", "b"), "", "", "a container name must be specified for pod p, choose one of: [a b]"},
		{pod("", []string{"i"}, "a", "b"), "", "", "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"},
	} {
		got, err := chooseContainer(test.pod, test.name)
		if got != test.want || (err == nil) != (test.err == "") || (err != nil && err.Error() != test.err) {
			t.Errorf("%q: %q, %v; want %q, %s", test.name, got, err, test.want, test.err)
		}
	}
}

func TestReadyHosts(t *testing.T) {
	slice := &discoveryv1.EndpointSlice{
		Ports: []discoveryv1.EndpointPort{{Name: ptr.To("web"), Port: ptr.To(int32(80))}, {Name: ptr.To("admin"), Port: ptr.To(int32(81))}, {Name: ptr.To("none")}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.0.0.1"}},
			{Addresses: []string{"10.0.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}},
			{Addresses: []string{"fd00::3"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}},
			{},
		},
	}
	for port, want := range map[string]string{
		"web": "10.0.0.1:80 [fd00::3]:80", "admin": "10.0.0.1:81 [fd00::3]:81", "none": "", "other": "",
	} {
		var got []string
		for _, h := range readyHosts([]*discoveryv1.EndpointSlice{slice}, port) {
			got = append(got, h.hostPort())
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", port, got, want)
		}
	}
}

func TestLogOptions(t *testing.T) {
	since := metav1.NewTime(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC))
	params := logParams(&corev1.PodLogOptions{Previous: true, SinceTime: &since, LimitBytes: ptr.To(int64(9)), Stream: ptr.To("Stdout")})
	if got := params.Encode(); got != "limitBytes=9&previous=true&sinceTime=2030-01-02T03%3A04%3A05Z&stream=Stdout" {
		t.Error(got)
	}
	for name, opts := range map[string]*corev1.PodLogOptions{
		"tailLines: Invalid":                                {TailLines: ptr.To(int64(-1))},
		"limitBytes: Invalid":                               {LimitBytes: ptr.To(int64(0))},
		"sinceSeconds: Invalid":                             {SinceSeconds: ptr.To(int64(0))},
		"at most one of `sinceTime` or `sinceSeconds`":      {SinceSeconds: ptr.To(int64(1)), SinceTime: &since},
		"stream: Unsupported value":                         {Stream: ptr.To("Both")},
		"`tailLines` and specific `stream` are mutually ex": {Stream: ptr.To("Stderr"), TailLines: ptr.To(int64(1))},
	} {
		if errs := validateLogOptions(opts); len(errs) != 1 || !strings.Contains(errs[0].Error(), name) {
			t.Errorf("%s: %v", name, errs)
		}
	}
	if errs := validateLogOptions(&corev1.PodLogOptions{TailLines: ptr.To(int64(0)), Stream: ptr.To("All")}); len(errs) != 0 {
		t.Error(errs)
	}
}
