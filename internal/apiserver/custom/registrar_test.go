package custom_test

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/conversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/custom"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/registry/registrytest"
	"barque.dev/internal/store/etcd/etcdtest"
)

// fleet is a registry whose definitions a registrar follows.
type fleet struct {
	*registrytest.Server
	t         *testing.T
	registrar *custom.Registrar
	// fails is how many registrations fail from now on.
	fails   atomic.Int64
	changes chan struct{}
}

// Register implements custom.Resources.
func (f *fleet) Register(r *api.Resource) error {
	if f.fails.Add(-1) >= 0 {
		return errors.New("out of order")
	}
	return f.Server.Register(r)
}

// follow starts a registrar; changed, which may be nil, is called for each of its changes.
func follow(t *testing.T, changed func(*fleet)) *fleet {
	t.Helper()
	f := &fleet{Server: registrytest.New(t, etcdtest.New(t, 1, nil).Member(0), nil), t: t, changes: make(chan struct{}, 100)}
	converters, err := conversion.NewCRConverterFactory(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.registrar, err = custom.NewRegistrar(custom.Config{
		Resources: f, Converters: converters, Log: slog.New(slog.DiscardHandler),
		Changed: func() {
			if changed != nil {
				changed(f)
			}
			f.changes <- struct{}{}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.registrar.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fleet) request(name string) registry.Request {
	return f.Request("customresourcedefinitions.apiextensions.k8s.io", "", name)
}

// establish creates a definition whose names are accepted.
func (f *fleet) establish(group, plural, kind string) *apiextensionsv1.CustomResourceDefinition {
	f.t.Helper()
	crd := &apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: plural + "." + group, Annotations: map[string]string{apiextensionsv1.KubeAPIApprovedAnnotation: "unapproved"}},
		Spec: apiextensionsv1.CustomResourceDefinitionSpec{
			Group: group, Scope: apiextensionsv1.ClusterScoped,
			Names: apiextensionsv1.CustomResourceDefinitionNames{Plural: plural, Singular: plural + "-one", Kind: kind, ListKind: kind + "List"},
			Versions: []apiextensionsv1.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true,
				Schema: &apiextensionsv1.CustomResourceValidation{OpenAPIV3Schema: &apiextensionsv1.JSONSchemaProps{Type: "object"}},
			}},
		},
	}
	api.Scheme().Default(crd)
	crd = f.Must(f.Create(f.t.Context(), f.request(""), crd, nil)).DeepCopyObject().(*apiextensionsv1.CustomResourceDefinition)
	crd.Status.AcceptedNames = crd.Spec.Names
	crd.Status.Conditions = []apiextensionsv1.CustomResourceDefinitionCondition{{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue}}
	return f.update(crd, "status")
}

func (f *fleet) update(crd *apiextensionsv1.CustomResourceDefinition, subresource string) *apiextensionsv1.CustomResourceDefinition {
	f.t.Helper()
	req := f.request(crd.Name)
	req.Subresource = subresource
	result, _, err := f.Update(f.t.Context(), req, crd, nil)
	return f.Must(result, err).DeepCopyObject().(*apiextensionsv1.CustomResourceDefinition)
}

// changed waits for a change of what is served.
func (f *fleet) changed() {
	f.t.Helper()
	select {
	case <-f.changes:
	case <-time.After(20 * time.Second):
		f.t.Fatal("nothing changed")
	}
}

// settled waits until the registrar has seen what there is.
func (f *fleet) settled() {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 20*time.Second)
	defer cancel()
	if err := f.registrar.AwaitAll(ctx); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fleet) served(group, plural string) *api.Resource {
	res, _ := f.Lookup(schema.GroupVersionResource{Group: group, Resource: plural})
	return res
}

// TestFailedRegistrationsAreRetried: what could not be served is as soon as it can be, though its definition stays as it
// is; until then, what was served before is.
func TestFailedRegistrationsAreRetried(t *testing.T) {
	f := follow(t, nil)
	f.fails.Store(2)
	crd := f.establish("example.com", "ships", "Ship")
	f.changed()
	ships := f.served("example.com", "ships")
	if ships == nil || len(f.registrar.Definitions()) != 1 {
		t.Fatalf("after two failures: %v", ships)
	}
	f.fails.Store(1 << 40)
	crd.Spec.Names.ShortNames = []string{"sh"}
	crd = f.update(crd, "")
	crd.Status.AcceptedNames = crd.Spec.Names
	crd = f.update(crd, "status")
	f.settled()
	if f.served("example.com", "ships") != ships || len(f.registrar.Definitions()) != 1 || len(f.registrar.Definitions()[0].Status.AcceptedNames.ShortNames) != 0 {
		t.Errorf("while a change fails: %+v", f.registrar.Definitions())
	}
	f.fails.Store(0)
	f.changed()
	if got := f.served("example.com", "ships"); got == nil || len(got.ShortNames) != 1 {
		t.Errorf("afterwards: %+v", got)
	}
	f.fails.Store(1 << 40)
	crd.Spec.Names.ShortNames = nil
	crd.Status.AcceptedNames = crd.Spec.Names
	f.update(crd, "status")
	if _, _, err := f.Delete(t.Context(), f.request(crd.Name), nil); err != nil {
		t.Fatal(err)
	}
	last := f.Must(f.Get(t.Context(), f.request(crd.Name), nil)).DeepCopyObject().(*apiextensionsv1.CustomResourceDefinition)
	last.Finalizers = nil
	f.update(last, "")
	f.settled()
	if got := f.served("example.com", "ships"); got != nil {
		t.Error("a definition that went while it could not be served is served for ever")
	}
}

// TestNobodyIsToldTooEarly: who waits for a definition finds it described.
func TestNobodyIsToldTooEarly(t *testing.T) {
	over, cancel := context.WithCancel(context.Background())
	cancel() // such waiting returns at once
	var running atomic.Bool
	f := follow(t, func(f *fleet) {
		if running.Load() && f.registrar.AwaitAll(over) == nil {
			t.Error("whoever waits goes on before the change is told")
		}
	})
	running.Store(true)
	crd := f.establish("example.com", "ships", "Ship")
	f.settled()
	f.changed()
	if _, _, err := f.Delete(t.Context(), f.request(crd.Name), nil); err != nil {
		t.Fatal(err)
	}
	f.settled()
	f.changed()
	last := f.Must(f.Get(t.Context(), f.request(crd.Name), nil)).DeepCopyObject().(*apiextensionsv1.CustomResourceDefinition)
	last.Finalizers = nil
	f.update(last, "")
	f.settled()
	f.changed()
}

// TestBuiltinNamesAreNotServed: definitions that an older server let have the names of built-in resources change nothing.
func TestBuiltinNamesAreNotServed(t *testing.T) {
	f := follow(t, nil)
	kind := schema.GroupKind{Group: "scheduling.k8s.io", Kind: "PriorityClass"}
	classes, _, _ := f.ForKind(kind)
	f.establish("scheduling.k8s.io", "foos", "PriorityClass")
	f.establish("scheduling.k8s.io", "priorityclasses", "Foo")
	f.establish("scheduling.k8s.io", "bars", "Bar")
	f.settled()
	if res, _, _ := f.ForKind(kind); res != classes || f.served("scheduling.k8s.io", "priorityclasses") != classes || f.served("scheduling.k8s.io", "foos") != nil {
		t.Errorf("the kind is that of %+v", res)
	}
	if defs := f.registrar.Definitions(); len(defs) != 1 || defs[0].Name != "bars.scheduling.k8s.io" {
		t.Errorf("served are %+v", defs)
	}
}
