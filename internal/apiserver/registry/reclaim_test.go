package registry_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// vanish takes an object out of etcd and nothing with it, as if the server had been killed right behind that write, or
// right before the one that made the object.
func vanish(s *server, key string) {
	s.tb.Helper()
	remove := &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &etcdserverpb.DeleteRangeRequest{Key: []byte(key)},
	}}
	if _, err := s.member.Txn(s.tb.Context(), &etcdserverpb.TxnRequest{Success: []*etcdserverpb.RequestOp{remove}}); err != nil {
		s.tb.Fatal(err)
	}
	if err := s.CatchUp(s.tb.Context()); err != nil {
		s.tb.Fatal(err)
	}
}

// TestReclaim: what a server that was killed had taken for a Service is free again after a while, and nothing else is.
func TestReclaim(t *testing.T) {
	s := start(t, nil)
	now := time.Now()
	look := func(after time.Duration) {
		t.Helper()
		if err := s.Reclaim(t.Context(), now.Add(after)); err != nil {
			t.Fatal(err)
		}
	}
	stays := create[*corev1.Service](s, "services", "default", newService("stays", corev1.ServiceTypeNodePort))
	balanced := newService("balanced", corev1.ServiceTypeLoadBalancer)
	balanced.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	create[*corev1.Service](s, "services", "default", balanced)
	keptIPs, keptPorts := allocated(s)

	lost := create[*corev1.Service](s, "services", "default", newService("lost", corev1.ServiceTypeNodePort))
	again := newService("again", corev1.ServiceTypeNodePort)
	again.Spec.ClusterIP, again.Spec.Ports[0].NodePort = lost.Spec.ClusterIP, lost.Spec.Ports[0].NodePort
	vanish(s, "/registry/services/specs/default/lost")

	look(0)
	if _, err := s.Create(t.Context(), s.req("services", "default", ""), again.DeepCopy(), nil); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "already allocated") {
		t.Fatalf("a Service with what was lost: %v", err)
	}
	// What is seen without its Service only for a moment counts anew the next time.
	late := create[*corev1.Service](s, "services", "default", newService("late", corev1.ServiceTypeNodePort))
	saved, err := s.raw("/registry/services/specs/default/late")
	if err != nil {
		t.Fatal(err)
	}
	vanish(s, "/registry/services/specs/default/late")
	look(time.Minute)
	put := &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestPut{
		RequestPut: &etcdserverpb.PutRequest{Key: []byte("/registry/services/specs/default/late"), Value: saved},
	}}
	if _, err := s.member.Txn(t.Context(), &etcdserverpb.TxnRequest{Success: []*etcdserverpb.RequestOp{put}}); err != nil {
		t.Fatal(err)
	}
	look(4 * time.Minute)
	vanish(s, "/registry/services/specs/default/late")
	if ips, ports := allocated(s); len(ips) != len(keptIPs)+2 || len(ports) != len(keptPorts)+2 {
		t.Errorf("before their time, %v and %v are left", ips, ports)
	}
	look(6 * time.Minute)
	ips, ports := allocated(s)
	if want := append(slices.Clone(keptIPs), late.Spec.ClusterIP); !sameElements(ips, want) {
		t.Errorf("addresses %v are left, want %v", ips, want)
	}
	if want := append(slices.Clone(keptPorts), int(late.Spec.Ports[0].NodePort)); !sameElements(ports, want) {
		t.Errorf("ports %v are left, want %v", ports, want)
	}
	create[*corev1.Service](s, "services", "default", again)
	look(12 * time.Minute)
	ips, ports = allocated(s)
	if want := append(slices.Clone(keptIPs), lost.Spec.ClusterIP); !sameElements(ips, want) {
		t.Errorf("in the end, addresses %v are left, want %v", ips, want)
	}
	// One port was taken since the last look. It may be one that was given back just before.
	if want := append(slices.Clone(keptPorts), int(lost.Spec.Ports[0].NodePort), int(late.Spec.Ports[0].NodePort)); !sameElements(ports, want) {
		t.Errorf("while ports are being taken, %v are left, want %v", ports, want)
	}
	look(14 * time.Minute)
	_, ports = allocated(s)
	if want := append(slices.Clone(keptPorts), int(lost.Spec.Ports[0].NodePort)); !sameElements(ports, want) {
		t.Errorf("in the end, ports %v are left, want %v", ports, want)
	}
	if got := get[*corev1.Service](s, "services", "default", "stays"); got.Spec.ClusterIP != stays.Spec.ClusterIP {
		t.Errorf("a Service that was there is %s", asJSON(t, got.Spec))
	}
}

func sameElements[T string | int](a, b []T) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}
