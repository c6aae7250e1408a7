//lint:file-ignore SA1019 Endpoints is deprecated by upstream, and served all the same.
package endpointslicemirroring

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/controllertest"
)

func endpoints(subsets ...corev1.EndpointSubset) *corev1.Endpoints {
	return &corev1.Endpoints{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "db", Labels: map[string]string{"team": "a"},
			Annotations: map[string]string{"note": "b", corev1.LastAppliedConfigAnnotation: "{}"},
		},
		Subsets: subsets,
	}
}

func addresses(list ...string) (out []corev1.EndpointAddress) {
	for _, ip := range list {
		out = append(out, corev1.EndpointAddress{IP: ip})
	}
	return out
}

func TestDesired(t *testing.T) {
	port := []corev1.EndpointPort{{Name: "sql", Port: 5432}}
	many := make([]string, 0, capacity+5)
	for i := range capacity + 5 {
		many = append(many, fmt.Sprintf("10.0.%d.%d", i/250, i%250))
	}
	tests := []struct {
		name    string
		subsets []corev1.EndpointSubset
		want    []string // a slice each: its type, endpoints and how many are ready
	}{
		{"nothing", nil, nil},
		{"no addresses", []corev1.EndpointSubset{{Ports: port}}, nil},
		{"ready and not", []corev1.EndpointSubset{{Addresses: addresses("10.0.0.1", "10.0.0.2"), NotReadyAddresses: addresses("10.0.0.3"), Ports: port}},
			[]string{"IPv4 3 2"}},
		{"both families", []corev1.EndpointSubset{{Addresses: addresses("10.0.0.1", "fd00::1"), Ports: port}}, []string{"IPv4 1 1", "IPv6 1 1"}},
		{"two sets of ports", []corev1.EndpointSubset{{Addresses: addresses("10.0.0.1"), Ports: port}, {Addresses: addresses("10.0.0.1"), Ports: []corev1.EndpointPort{{Name: "http", Port: 80}}}},
			[]string{"IPv4 1 1", "IPv4 1 1"}},
		{"same ports twice", []corev1.EndpointSubset{{Addresses: addresses("10.0.0.1"), Ports: port}, {Addresses: addresses("10.0.0.2"), Ports: port}},
			[]string{"IPv4 2 2"}},
		{"no address at all", []corev1.EndpointSubset{{Addresses: addresses("db.example"), Ports: port}}, nil},
		{"too many", []corev1.EndpointSubset{{Addresses: addresses(many...), Ports: port}}, []string{"IPv4 1000 1000"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := desired(endpoints(tt.subsets...))
			if len(got) != len(tt.want) {
				t.Fatalf("%d slices, want %d", len(got), len(tt.want))
			}
			for i, s := range got {
				ready := 0
				for _, e := range s.Endpoints {
					if *e.Conditions.Ready {
						ready++
					}
				}
				if desc := fmt.Sprintf("%s %d %d", s.AddressType, len(s.Endpoints), ready); desc != tt.want[i] {
					t.Errorf("slice %d: %s, want %s", i, desc, tt.want[i])
				}
				if s.Labels["team"] != "a" || s.Labels[discoveryv1.LabelServiceName] != "db" || s.Labels[discoveryv1.LabelManagedBy] != managedBy {
					t.Errorf("labels %v", s.Labels)
				}
				if len(s.Annotations) != 1 || s.Annotations["note"] != "b" {
					t.Errorf("annotations %v", s.Annotations)
				}
			}
		})
	}
}

// The slices follow the Endpoints and the service, and nothing is written twice.
func TestReconcile(t *testing.T) {
	e := endpoints(corev1.EndpointSubset{Addresses: addresses("10.0.0.1"), Ports: []corev1.EndpointPort{{Port: 5432, Protocol: corev1.ProtocolTCP}}})
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"}}
	w := controllertest.New(t, e, service)
	c := New(w.Deps())
	slices := func(after string, want int) []discoveryv1.EndpointSlice {
		t.Helper()
		if _, err := c.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(e)}); err != nil {
			t.Fatal(err)
		}
		var list discoveryv1.EndpointSliceList
		if err := w.List(t.Context(), &list); err != nil {
			t.Fatal(err)
		}
		if len(list.Items) != want {
			t.Fatalf("%s: %d slices, want %d", after, len(list.Items), want)
		}
		return list.Items
	}
	update := func(obj client.Object) {
		t.Helper()
		if err := w.Update(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
	}
	first := slices("created", 1)[0]
	if again := slices("seen again", 1)[0]; again.ResourceVersion != first.ResourceVersion {
		t.Error("written without reason")
	}
	e.Subsets[0].Addresses[0].IP = "10.0.0.2"
	update(e)
	if got := slices("changed", 1)[0]; got.Name != first.Name || got.Endpoints[0].Addresses[0] != "10.0.0.2" {
		t.Errorf("got %s with %v", got.Name, got.Endpoints)
	}
	service.Spec.Selector = map[string]string{"app": "db"}
	update(service)
	slices("service with a selector", 0)
	service.Spec.Selector = nil
	update(service)
	slices("selector taken away", 1)
	e.Labels[discoveryv1.LabelSkipMirror] = "true"
	update(e)
	slices("not to be mirrored", 0)
	delete(e.Labels, discoveryv1.LabelSkipMirror)
	e.Annotations[leaderAnnotation] = "{}"
	update(e)
	slices("a lock", 0)
	delete(e.Annotations, leaderAnnotation)
	update(e)
	slices("no lock any more", 1)
	if err := w.Delete(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	slices("deleted", 0)
}
