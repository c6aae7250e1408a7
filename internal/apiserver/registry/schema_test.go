package registry

import (
	"encoding/json"
	"fmt"
	"math/rand"
	"reflect"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/ownership"
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

// TestFieldsAreRecordedAsStockRecordsThem: whoever sets fields of any kind, by creation or by update, owns the same
// fields as by upstream's FieldManager.
func TestFieldsAreRecordedAsStockRecordsThem(t *testing.T) {
	seed := rand.Int63()
	fill := fuzzer.FuzzerFor(metafuzzer.Funcs, rand.NewSource(seed), api.Codecs()).NilChance(0.3).NumElements(0, 3).MaxDepth(10)
	// Most random texts are of the kind that JSON spells in its own way; what follows the first of them would never be seen.
	plain := func(obj any) {
		fill.Fill(obj)
		spellPlainly(reflect.ValueOf(obj).Elem())
	}
	fields := newFieldManagers()
	for _, res := range api.Resources() {
		if res.Virtual() {
			continue
		}
		for _, version := range res.Served {
			subresources := []string{""}
			if res.Subresources["status"] != nil {
				subresources = append(subresources, "status")
			}
			for _, sub := range subresources {
				req := Request{Resource: res, Version: version, Subresource: sub}
				ours, err := fields.of(req)
				if err != nil {
					t.Fatal(err)
				}
				stock, err := fields.stock(req)
				if err != nil {
					t.Fatal(err)
				}
				if walks := ours.Walks(); walks == dependsOnContent(req.kind().Kind) {
					t.Errorf("%s: walked %v", req.kind(), walks)
				}
				compare(t, req, seed, ours, stock, fill.Fill)
				if created := compare(t, req, seed, ours, stock, plain); created == 0 && ours.Walks() && sub == "" {
					t.Errorf("seed %d: a new %s is recorded the long way", seed, req.kind())
				}
			}
		}
	}
}

// compare goes through the history of a random object with both, and tells how often ours recorded it the short way.
func compare(t *testing.T, req Request, seed int64, ours *ownership.Recorder, stock *managedfields.FieldManager, fill func(any)) (created int) {
	t.Helper()
	objects := history(t, req, fill)
	got, want := record(t, req, creating(ours, &created), objects), record(t, req, stock.UpdateNoErrors, objects)
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("seed %d: %s, step %d is recorded as\n%s, want\n%s", seed, req.kind(), i, got[i], want[i])
		}
	}
	return created
}

// TestOddFieldsAreRecordedAsStockRecordsThem goes through what random objects do not have.
func TestOddFieldsAreRecordedAsStockRecordsThem(t *testing.T) {
	i := slices.IndexFunc(api.Resources(), func(r *api.Resource) bool { return r.Group == "" && r.Resource == "pods" })
	req := Request{Resource: api.Resources()[i], Version: "v1"}
	fields := newFieldManagers()
	ours, err := fields.of(req)
	if err != nil {
		t.Fatal(err)
	}
	stock, err := fields.stock(req)
	if err != nil {
		t.Fatal(err)
	}
	pod := func(change func(*corev1.Pod)) runtime.Object {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "p", UID: "u"},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i", Ports: []corev1.ContainerPort{{ContainerPort: 1}}}}},
		}
		p.SetGroupVersionKind(req.kind())
		change(p)
		return p
	}
	ports := func(numbers ...int32) runtime.Object {
		return pod(func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = nil
			for i, n := range numbers {
				p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports, corev1.ContainerPort{ContainerPort: n, HostPort: int32(i)})
			}
		})
	}
	finalizers := func(all ...string) runtime.Object { return pod(func(p *corev1.Pod) { p.Finalizers = all }) }
	created := func(objects ...runtime.Object) []version {
		first := pod(func(p *corev1.Pod) { p.UID = "" })
		out := []version{{first, "creator", false}}
		for i, obj := range objects {
			out = append(out, version{obj, fmt.Sprintf("manager-%d", i), false})
		}
		return out
	}
	made := func(change func(*corev1.Pod)) []version { return []version{{pod(change), "creator", false}} }
	crowd := created()
	for i := range 14 {
		crowd = append(crowd, version{pod(func(p *corev1.Pod) {
			p.Labels = map[string]string{}
			for j := range i {
				p.Labels[fmt.Sprint(j)] = "x"
			}
		}), fmt.Sprintf("manager-%d", i), false})
	}
	by := func(manager string, entries ...metav1.ManagedFieldsEntry) []version {
		obj := pod(func(p *corev1.Pod) { p.Labels = map[string]string{"a": "b"}; p.ManagedFields = entries })
		return append(created(), version{obj, manager, true})
	}
	for name, objects := range map[string][]version{
		"ports that repeat":      created(ports(1, 1), ports(1, 1, 1), ports(1), ports(1, 2), ports(2, 1, 1), ports()),
		"finalizers that repeat": created(finalizers("x", "x"), finalizers("x"), finalizers("y", "x"), finalizers("y", "y", "y"), finalizers()),
		"empty in place of null": created(pod(func(p *corev1.Pod) { p.Spec.Containers = []corev1.Container{} }), pod(func(p *corev1.Pod) { p.Spec.Containers = nil })),
		"amounts written otherwise": created(
			pod(func(p *corev1.Pod) { p.Spec.Overhead = corev1.ResourceList{"cpu": resource.MustParse("1")} }),
			pod(func(p *corev1.Pod) { p.Spec.Overhead = corev1.ResourceList{"cpu": resource.MustParse("1000m")} }),
			pod(func(p *corev1.Pod) { p.Spec.Overhead = corev1.ResourceList{"cpu": resource.MustParse("2")} })),
		"made with ports that repeat":      {{ports(1, 1, 2), "creator", false}},
		"made with finalizers that repeat": {{finalizers("z", "x", "x", "y"), "creator", false}},
		"made with nothing in lists":       made(func(p *corev1.Pod) { p.Spec.Containers = []corev1.Container{}; p.Finalizers = []string{} }),
		"made with null in lists":          made(func(p *corev1.Pod) { p.Spec.Containers = nil }),
		"made with odd names": made(func(p *corev1.Pod) {
			p.Labels = map[string]string{"a\"b\\c<d>&e\u2028é\xff\n": "x", "b": "y"}
			p.Spec.Containers[0].Name = "<\"é\">"
		}),
		"made with amounts": made(func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"memory": resource.MustParse("1Mi"), "cpu": resource.MustParse("1")}
		}),
		"made with a status":      made(func(p *corev1.Pod) { p.Status.Phase = corev1.PodRunning; p.Status.PodIPs = []corev1.PodIP{{IP: "::1"}} }),
		"made with records of it": {{pod(func(p *corev1.Pod) { p.ManagedFields = []metav1.ManagedFieldsEntry{} }), "creator", true}},
		"made of little":          {{func() runtime.Object { p := &corev1.Pod{}; p.SetGroupVersionKind(req.kind()); return p }(), "", false}},
		"a crowd":                 crowd,
		"a record of no sense":    by("m", metav1.ManagedFieldsEntry{Manager: "x"}),
		"a record by hand": by("m", metav1.ManagedFieldsEntry{
			Manager: "x", Operation: "Update", APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:labels":{"f:a":{}}}}`)}),
		"a record of another version": by("m", metav1.ManagedFieldsEntry{
			Manager: "x", Operation: "Update", APIVersion: "v0", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:spec":{}}`)}),
		"a record that is wiped": by("m", metav1.ManagedFieldsEntry{}),
	} {
		t.Run(name, func(t *testing.T) {
			got, want := record(t, req, creating(ours, new(int)), objects), record(t, req, stock.UpdateNoErrors, objects)
			for i := range want {
				if got[i] != want[i] {
					t.Errorf("step %d is recorded as\n%s, want\n%s", i, got[i], want[i])
				}
			}
		})
	}
}

// spellPlainly makes every text in v one of a few that all encoders of JSON spell alike.
func spellPlainly(v reflect.Value) {
	plain := func(v reflect.Value) reflect.Value {
		return reflect.ValueOf(strconv.Itoa(v.Len() % 20)).Convert(v.Type())
	}
	switch v.Kind() {
	case reflect.String:
		if v.CanSet() {
			v.Set(plain(v))
		}
	case reflect.Pointer:
		if !v.IsNil() {
			spellPlainly(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			spellPlainly(v.Field(i))
		}
	case reflect.Slice:
		for i := range v.Len() {
			spellPlainly(v.Index(i))
		}
	case reflect.Map:
		if v.Type().Key().Kind() != reflect.String || !v.CanSet() || v.IsNil() {
			return
		}
		out := reflect.MakeMap(v.Type())
		for it := v.MapRange(); it.Next(); {
			value := reflect.New(v.Type().Elem()).Elem()
			value.Set(it.Value())
			spellPlainly(value)
			out.SetMapIndex(plain(it.Key()), value)
		}
		v.Set(out)
	}
}

// creating records like r, of new objects alone where it can, which it counts.
func creating(r *ownership.Recorder, created *int) func(live, obj runtime.Object, who string) runtime.Object {
	return func(live, obj runtime.Object, who string) runtime.Object {
		if live.GetObjectKind().GroupVersionKind().Empty() || !reflect.ValueOf(live).Elem().FieldByName("ObjectMeta").IsZero() {
			return r.UpdateNoErrors(live, obj, who)
		}
		if r.Create(obj, who) {
			*created++
			return obj
		}
		return r.UpdateNoErrors(live, obj, who)
	}
}

// dependsOnContent tells about kinds with parts of any form, which are left to upstream.
func dependsOnContent(kind string) bool {
	return slices.Contains([]string{"ControllerRevision", "ResourceClaim"}, kind)
}

// version is an object at some moment, and who writes it.
type version struct {
	obj     runtime.Object
	manager string
	// silent clients do not send the managed fields that they read.
	silent bool
}

// history is made of random objects and of small changes to them.
func history(t *testing.T, req Request, fill func(any)) []version {
	t.Helper()
	made := func() runtime.Object {
		obj, err := kindCreater{}.New(req.kind())
		if err != nil {
			t.Fatal(err)
		}
		fill(obj)
		obj.GetObjectKind().SetGroupVersionKind(req.kind())
		m, err := meta.Accessor(obj)
		if err != nil {
			t.Fatal(err)
		}
		m.SetManagedFields(nil)
		return obj
	}
	labelled := func(obj runtime.Object, value string) runtime.Object {
		obj = obj.DeepCopyObject()
		m, err := meta.Accessor(obj)
		if err != nil {
			t.Fatal(err)
		}
		m.SetLabels(map[string]string{"a": value, "b": "b"})
		m.SetFinalizers([]string{"x/" + value, "x/z", "x/y"})
		return obj
	}
	first, second := made(), made()
	return []version{
		{first, "a", false}, {second, "b", false}, {second, "c", false}, {labelled(second, "1"), "a", true},
		{labelled(second, "2"), "", false}, {labelled(first, "2"), "b", true}, {first, "b", false},
	}
}

// record tells what is recorded at each step.
func record(t *testing.T, req Request, update func(live, obj runtime.Object, who string) runtime.Object, objects []version) []string {
	t.Helper()
	live, err := kindCreater{}.New(req.kind())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, v := range objects {
		obj := v.obj.DeepCopyObject()
		m, err := meta.Accessor(obj)
		if err != nil {
			t.Fatal(err)
		}
		before, err := meta.Accessor(live)
		if err != nil {
			t.Fatal(err)
		}
		if !v.silent {
			m.SetManagedFields(slices.Clone(before.GetManagedFields()))
		}
		live = update(live, obj, v.manager)
		if m, err = meta.Accessor(live); err != nil {
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
		out = append(out, string(text))
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
	fields := newFieldManagers()
	ours, err := fields.of(req)
	if err != nil {
		b.Fatal(err)
	}
	stock, err := fields.stock(req)
	if err != nil {
		b.Fatal(err)
	}
	empty, err := kindCreater{}.New(req.kind())
	if err != nil {
		b.Fatal(err)
	}
	live := ours.UpdateNoErrors(empty, pod.DeepCopyObject(), "a")
	labelled := live.DeepCopyObject().(*corev1.Pod)
	labelled.Labels["more"] = "x"
	for name, update := range map[string]func(live, obj runtime.Object, manager string) runtime.Object{
		"ours": ours.UpdateNoErrors, "stock": stock.UpdateNoErrors,
	} {
		b.Run("create/"+name, func(b *testing.B) {
			b.ReportAllocs()
			made := pod.DeepCopy()
			for b.Loop() {
				made.ManagedFields = nil
				if name == "stock" || !ours.Create(made, "a") {
					update(empty, made, "a")
				}
			}
		})
		b.Run("patch/"+name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				update(live, labelled.DeepCopy(), "b")
			}
		})
	}
}
