//lint:file-ignore SA1019 Endpoints is deprecated by upstream, and served all the same.

//nolint:staticcheck // Endpoints is deprecated by upstream, and served all the same.
package endpoints

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/backends"
	"barque.dev/internal/controllers/controllertest"
)

func service() *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Labels: map[string]string{"team": "a"}}}
	s.Spec.Selector = map[string]string{"app": "web"}
	s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	s.Spec.ClusterIP = "10.43.0.9"
	s.Spec.Ports = []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, TargetPort: intstr.FromString("http")}}
	return s
}

func pod(i int, ready bool, port int32) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("p%04d", i), UID: types.UID(fmt.Sprint(i)), Labels: map[string]string{"app": "web"}}}
	p.Spec.NodeName = "n"
	p.Spec.Containers = []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{Name: "http", Protocol: corev1.ProtocolTCP, ContainerPort: port}}}}
	p.Status.Phase = corev1.PodRunning
	p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.42.%d.%d", i/250, i%250)}}
	if ready {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	}
	return p
}

// describe writes subsets as "port: ready | not ready".
func describe(e *corev1.Endpoints) string {
	var parts []string
	for _, s := range e.Subsets {
		var port int32
		if len(s.Ports) > 0 {
			port = s.Ports[0].Port
		}
		ips := func(list []corev1.EndpointAddress) string {
			var out []string
			for _, a := range list {
				out = append(out, a.IP)
			}
			return strings.Join(out, " ")
		}
		parts = append(parts, fmt.Sprintf("%d: %s | %s", port, ips(s.Addresses), ips(s.NotReadyAddresses)))
	}
	slices.Sort(parts)
	return strings.Join(parts, "; ")
}

func TestDesired(t *testing.T) {
	now := metav1.Now()
	terminating := pod(3, true, 8080)
	terminating.DeletionTimestamp = &now
	nameless := pod(4, true, 8080)
	nameless.Spec.Containers[0].Ports = nil
	tests := []struct {
		name string
		edit func(*corev1.Service)
		pods []corev1.Pod
		want string
	}{
		{name: "none"},
		{name: "ready and not", pods: []corev1.Pod{pod(2, true, 8080), pod(1, true, 8080), pod(3, false, 8080)}, want: "8080: 10.42.0.1 10.42.0.2 | 10.42.0.3"},
		{name: "not ready, but published", edit: func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true },
			pods: []corev1.Pod{pod(1, false, 8080)}, want: "8080: 10.42.0.1 | "},
		{name: "different ports", pods: []corev1.Pod{pod(1, true, 8080), pod(2, true, 9090)}, want: "8080: 10.42.0.1 | ; 9090: 10.42.0.2 | "},
		{name: "terminating", pods: []corev1.Pod{terminating}},
		{name: "terminating, but published", edit: func(s *corev1.Service) { s.Spec.PublishNotReadyAddresses = true },
			pods: []corev1.Pod{terminating}, want: "8080: 10.42.0.3 | "},
		{name: "without the port", pods: []corev1.Pod{nameless}},
		{name: "headless without ports", edit: func(s *corev1.Service) { s.Spec.ClusterIP, s.Spec.Ports = corev1.ClusterIPNone, nil },
			pods: []corev1.Pod{nameless}, want: "0: 10.42.0.4 | "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := service()
			if tt.edit != nil {
				tt.edit(s)
			}
			got := desired(s, backends.Of(s, tt.pods, corev1.IPv4Protocol))
			if d := describe(got); d != tt.want {
				t.Errorf("%q, want %q", d, tt.want)
			}
			if got.Labels["team"] != "a" || got.Labels[managedByLabel] != managedBy {
				t.Errorf("labels %v", got.Labels)
			}
			if _, headless := got.Labels[corev1.IsHeadlessService]; headless != (s.Spec.ClusterIP == corev1.ClusterIPNone) {
				t.Errorf("labels %v", got.Labels)
			}
		})
	}
}

// An object over its bound is cut, and says so.
func TestCapacity(t *testing.T) {
	s := service()
	var pods []corev1.Pod
	for i := range capacity + 10 {
		pods = append(pods, pod(i, true, 8080))
	}
	got := desired(s, backends.Of(s, pods, corev1.IPv4Protocol))
	if n := len(got.Subsets[0].Addresses); n != capacity || got.Annotations[corev1.EndpointsOverCapacity] != "truncated" {
		t.Errorf("%d addresses, annotations %v", n, got.Annotations)
	}
}

// The object follows the pods and goes with the service; one without selector is not touched.
func TestReconcile(t *testing.T) {
	p, s := pod(1, true, 8080), service()
	w := controllertest.New(t, &p, s)
	c := New(w.Deps())
	req := reconcile.Request{NamespacedName: client.ObjectKeyFromObject(s)}
	look := func() (*corev1.Endpoints, error) {
		t.Helper()
		if _, err := c.Reconcile(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		var e corev1.Endpoints
		err := w.Get(t.Context(), req.NamespacedName, &e)
		return &e, err
	}
	e, err := look()
	if err != nil || describe(e) != "8080: 10.42.0.1 | " {
		t.Fatalf("%q, %v", describe(e), err)
	}
	if again, err := look(); err != nil || again.ResourceVersion != e.ResourceVersion {
		t.Errorf("written without reason (%v)", err)
	}
	if err := w.Delete(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if _, err := look(); !apierrors.IsNotFound(err) {
		t.Errorf("after the service: %v", err)
	}
	manual := service()
	manual.Spec.Selector, manual.ResourceVersion = nil, ""
	w.MustCreate(manual)
	w.MustCreate(&corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Subsets: []corev1.EndpointSubset{{Addresses: []corev1.EndpointAddress{{IP: "192.0.2.1"}}}}})
	if e, err := look(); err != nil || describe(e) != "0: 192.0.2.1 | " {
		t.Errorf("by hand: %q, %v", describe(e), err)
	}
}

// Endpoints stay whose service has not come to the image yet: nobody could write again what somebody wrote by hand.
func TestLateService(t *testing.T) {
	s := service()
	s.Spec.Selector = nil
	hand := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name}}
	w := controllertest.New(t, s, hand)
	c := New(w.Deps())
	w.Late = func(obj client.Object) bool { _, late := obj.(*corev1.Service); return late }
	w.Cut = errors.New("no quorum")
	req := reconcile.Request{NamespacedName: client.ObjectKeyFromObject(s)}
	if _, err := c.Reconcile(t.Context(), req); !errors.Is(err, w.Cut) {
		t.Errorf("cut off: %v", err)
	}
	w.Cut = nil
	if _, err := c.Reconcile(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	if err := w.Get(t.Context(), req.NamespacedName, hand); err != nil {
		t.Errorf("what was written by hand: %v", err)
	}
}
