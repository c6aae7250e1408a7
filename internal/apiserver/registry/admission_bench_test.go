package registry_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	stock "k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/admission"
	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/client"
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

// BenchmarkDryCreate is what creating a pod costs between the decoder and the store: everything but the write itself.
func BenchmarkDryCreate(b *testing.B) {
	c := &charging{}
	chain, err := admission.Default(admission.Config{Reader: lateClient{c}, Authorizer: authorizerfactory.NewAlwaysAllowAuthorizer()})
	if err != nil {
		b.Fatal(err)
	}
	c.server = on(b, etcdtest.New(b, 1, nil).Member(0), func(cfg *registry.Config) {
		cfg.Quota, cfg.Admission = admission.NewResourceQuota(lateClient{c}), admission.Reinvoking{Chain: chain}
	})
	c.client = client.NewInProcess(client.Config{Tables: c.Registry, Verbs: c.Verbs()})
	for _, obj := range []ctrlclient.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "default"}},
	} {
		if err := c.client.Create(b.Context(), obj); err != nil {
			b.Fatal(err)
		}
	}
	fresh := newPod("p")
	fresh.Namespace = "a"
	fresh.Labels = map[string]string{"app": "load", "tier": "front", "pod-template-hash": "5d4f8c"}
	main := &fresh.Spec.Containers[0]
	main.Args = []string{"--serve", "--port=8080"}
	main.Ports = []corev1.ContainerPort{{ContainerPort: 8080}}
	main.Env = []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}}
	main.Resources.Requests = corev1.ResourceList{"cpu": resource.MustParse("10m"), "memory": resource.MustParse("32Mi")}
	api.Scheme().Default(fresh)
	req := c.Request("pods", "a", "")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Create(b.Context(), req, fresh.DeepCopy(), &metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
			b.Fatal(err)
		}
	}
}
