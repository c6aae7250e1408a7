package registry_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stock "k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/admission"
	"barque.dev/internal/api"
	"barque.dev/internal/store/etcd/etcdtest"
)

// BenchmarkAdmission is what each built-in plugin costs a new pod where nothing is configured, over
// a real image, and what the question for quotas costs where there are none.
func BenchmarkAdmission(b *testing.B) {
	c := chargingOn(b, etcdtest.New(b, 1, nil).Member(0))
	for _, obj := range []ctrlclient.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "default"}},
	} {
		if err := c.client.Create(b.Context(), obj); err != nil {
			b.Fatal(err)
		}
	}
	chain, err := admission.Default(admission.Config{Reader: c.client, Authorizer: authorizerfactory.NewAlwaysAllowAuthorizer()})
	if err != nil {
		b.Fatal(err)
	}
	objects := stock.NewObjectInterfacesFromScheme(api.Scheme())
	fresh := newPod("p")
	fresh.Namespace = "a"
	about := func(pod *corev1.Pod) stock.Attributes {
		return stock.NewAttributesRecord(pod, nil, corev1.SchemeGroupVersion.WithKind("Pod"), "a", "p", corev1.SchemeGroupVersion.WithResource("pods"), "",
			stock.Create, nil, false, &user.DefaultInfo{Name: "ann"})
	}
	admitted := fresh.DeepCopy()
	if err := chain.Admit(b.Context(), about(admitted), objects); err != nil {
		b.Fatal(err)
	}
	for _, p := range append(chain, admission.Plugin{Name: "all", Interface: chain}) {
		b.Run(p.Name, func(b *testing.B) {
			one := admission.Chain{p}
			b.ReportAllocs()
			for b.Loop() {
				// What passed once passes again, and the plugin has nothing to add.
				a := about(admitted)
				if err := one.Admit(b.Context(), a, objects); err != nil {
					b.Fatal(err)
				}
				if err := one.Validate(b.Context(), a, objects); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("quotas", func(b *testing.B) {
		ledger := admission.NewResourceQuota(c.client)
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := ledger.Charge(b.Context(), about(admitted)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
