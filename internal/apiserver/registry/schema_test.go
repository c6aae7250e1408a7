package registry

import (
	"encoding/json"
	"math/rand"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	extensions "k8s.io/apiextensions-apiserver/pkg/client/applyconfiguration"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/meta"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"barque.dev/internal/api"
)

// TestEveryKindHasASchema: without one, a kind's managed fields would silently stay empty.
func TestEveryKindHasASchema(t *testing.T) {
	types := newLazyTypes()
	for _, res := range api.Resources() {
		if res.Virtual() {
			continue
		}
		for _, version := range res.Served {
			obj, err := kindCreater{}.New(res.GVK(version))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := types.ObjectToTyped(obj); err != nil {
				t.Errorf("%s: %v", res.GVK(version), err)
			}
		}
	}
	scale, err := kindCreater{}.New(scaleKind())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := types.ObjectToTyped(scale); err != nil {
		t.Error(err)
	}
}

// stockTypes compares every object with its kind's schema.
type stockTypes struct{ managedfields.TypeConverter }

func newStockTypes() stockTypes {
	return stockTypes{applyconfigurations.NewTypeConverter(api.Scheme())}
}

func (s stockTypes) ObjectToTyped(obj runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	if obj.GetObjectKind().GroupVersionKind().Group == apiextensionsv1.GroupName {
		return extensions.NewTypeConverter(api.Scheme()).ObjectToTyped(obj, opts...)
	}
	return s.TypeConverter.ObjectToTyped(obj, opts...)
}

// TestFieldsAreRecordedAsStockRecordsThem: whoever sets a field of any kind, by creation or by update, owns the same
// fields by the types as we look at them as by those that are compared with the schema.
func TestFieldsAreRecordedAsStockRecordsThem(t *testing.T) {
	seed := rand.Int63()
	fill := fuzzer.FuzzerFor(metafuzzer.Funcs, rand.NewSource(seed), api.Codecs()).NilChance(0.3).NumElements(0, 3).MaxDepth(10)
	ours := newFieldManagers()
	stock := newFieldManagers()
	stock.types = newStockTypes()
	all, failed := 0, 0
	for _, res := range api.Resources() {
		if res.Virtual() {
			continue
		}
		for _, version := range res.Served {
			req := Request{Resource: res, Version: version}
			made := func() runtime.Object {
				obj, err := kindCreater{}.New(req.kind())
				if err != nil {
					t.Fatal(err)
				}
				return obj
			}
			for range 4 {
				first, second := made(), made()
				fill.Fill(first)
				fill.Fill(second)
				var recorded []string
				for _, managers := range []*fieldManagers{ours, stock} {
					fields, err := managers.of(req)
					if err != nil {
						t.Fatal(err)
					}
					recorded = append(recorded, record(t, req, func(obj, live runtime.Object, who string) (runtime.Object, error) {
						return fields.Update(live, obj, who)
					}, made(), first, second))
				}
				all++
				if strings.HasSuffix(recorded[0], "error") {
					failed++
				}
				if recorded[0] != recorded[1] {
					t.Fatalf("seed %d: %s is recorded as\n%s, want\n%s", seed, req.kind(), recorded[0], recorded[1])
				}
			}
		}
	}
	// Some of what the fuzzer makes is no valid value, such as list items without keys; most is.
	if failed > all/4 {
		t.Errorf("%d of %d objects could not be recorded", failed, all)
	}
}

// record tells what is recorded of a creation by one manager and an update by another.
func record(t *testing.T, req Request, update func(obj, live runtime.Object, who string) (runtime.Object, error), empty, first, second runtime.Object) string {
	t.Helper()
	out := ""
	live := empty
	for i, obj := range []runtime.Object{first, second} {
		obj = obj.DeepCopyObject()
		obj.GetObjectKind().SetGroupVersionKind(req.kind())
		m, err := meta.Accessor(obj)
		if err != nil {
			t.Fatal(err)
		}
		m.SetManagedFields(nil)
		if i > 0 {
			before, err := meta.Accessor(live)
			if err != nil {
				t.Fatal(err)
			}
			m.SetManagedFields(before.GetManagedFields())
		}
		result, err := update(obj, live, []string{"a", "b"}[i])
		if err != nil {
			return out + "error"
		}
		if m, err = meta.Accessor(result); err != nil {
			t.Fatal(err)
		}
		entries := m.GetManagedFields()
		for j := range entries {
			entries[j].Time = nil
		}
		text, err := json.Marshal(entries)
		if err != nil {
			t.Fatal(err)
		}
		out += string(text) + "\n"
		live = result
	}
	return out
}

func BenchmarkRecordFields(b *testing.B) {
	i := slices.IndexFunc(api.Resources(), func(r *api.Resource) bool { return r.Group == "" && r.Resource == "pods" })
	req := Request{Resource: api.Resources()[i]}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default", Labels: map[string]string{"app": "bench", "pod-template-hash": "5d4f8c"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "main", Image: "example.org/bench:v1", Args: []string{"--serve", "--port=8080"},
			Ports: []corev1.ContainerPort{{ContainerPort: 8080}},
			Env:   []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}},
		}}},
	}
	pod.SetGroupVersionKind(req.kind())
	api.Scheme().Default(pod)
	stock := newFieldManagers()
	stock.types = newStockTypes()
	for name, managers := range map[string]*fieldManagers{"unchecked": newFieldManagers(), "checked": stock} {
		fields, err := managers.of(req)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				empty, err := kindCreater{}.New(req.kind())
				if err != nil {
					b.Fatal(err)
				}
				if _, err := fields.Update(empty, pod.DeepCopyObject(), "a"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
