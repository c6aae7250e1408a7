package registry

import (
	"encoding/json"
	"math/rand"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"barque.dev/internal/api"
)

// mergePatch is a patch request as Registry.Patch makes it.
func mergePatch(req Request, kind types.PatchType, body string) *patch {
	return &patch{req: req, kind: kind, body: []byte(body), opts: &metav1.PatchOptions{FieldValidation: metav1.FieldValidationStrict}}
}

// whole patches all of an object, part what is touched.
func (p *patch) whole(t testing.TB, live runtime.Object) (runtime.Object, error) {
	if p.kind == types.MergePatchType {
		return p.applyJSON(t.Context(), live)
	}
	return p.applyStrategic(t.Context(), live)
}

func (p *patch) partly(live runtime.Object) (runtime.Object, bool) {
	if p.kind == types.MergePatchType {
		return p.patchPart(live, p.mergePart)
	}
	return p.patchPart(live, mergePartStrategic)
}

// TestPartsArePatchedLikeWholes: random objects of every kind, patched with random fields of others.
func TestPartsArePatchedLikeWholes(t *testing.T) {
	seed := rand.Int63()
	random := rand.New(rand.NewSource(seed))
	fill := fuzzer.FuzzerFor(metafuzzer.Funcs, random, api.Codecs()).NilChance(0.3).NumElements(0, 3).MaxDepth(10)
	parts, refused := 0, 0
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
				fill.Fill(obj)
				obj.GetObjectKind().SetGroupVersionKind(req.kind())
				// As it comes out of the store: what is empty is absent.
				obj, err = api.DecodeJSON([]byte(text(t, obj)), req.kind(), false)
				if err != nil {
					t.Fatal(err)
				}
				return obj
			}
			for range 4 {
				live, before := made(), ""
				body := patchOf(t, random, made())
				before = text(t, live)
				for _, kind := range []types.PatchType{types.MergePatchType, types.StrategicMergePatchType} {
					p := mergePatch(req, kind, body)
					got, ok := p.partly(live)
					if now := text(t, live); now != before {
						t.Fatalf("seed %d: %s: %s changes the live object to\n%s\nfrom\n%s", seed, req.kind(), body, now, before)
					}
					want, err := p.whole(t, live)
					if !ok {
						refused++
						continue
					}
					parts++
					if err != nil {
						t.Fatalf("seed %d: %s: %s: %v", seed, req.kind(), body, err)
					}
					if g, w := sorted(t, got), sorted(t, want); g != w {
						t.Fatalf("seed %d: %s, %s by %s is\n%s, want\n%s", seed, req.kind(), before, body, g, w)
					}
				}
			}
		}
	}
	if parts < refused {
		t.Errorf("%d patches of parts, %d of wholes", parts, refused)
	}
}

// patchOf names some fields of an object, or takes them away.
func patchOf(t *testing.T, random *rand.Rand, obj runtime.Object) string {
	t.Helper()
	fields := map[string]any{}
	if err := json.Unmarshal([]byte(text(t, obj)), &fields); err != nil {
		t.Fatal(err)
	}
	delete(fields, "apiVersion")
	delete(fields, "kind")
	for name, value := range fields {
		nested, _ := value.(map[string]any)
		switch {
		case random.Intn(3) > 0:
			delete(fields, name)
		case random.Intn(6) == 0 && name != "metadata":
			fields[name] = nil
		case nested != nil:
			delete(nested, "managedFields")
			for name := range nested {
				if random.Intn(5) == 0 {
					nested[name] = nil
				}
			}
		}
	}
	return text(t, fields)
}

// sorted is an object's JSON with the fields of what has any form in order.
func sorted(t *testing.T, v any) string {
	t.Helper()
	var fields any
	if err := json.Unmarshal([]byte(text(t, v)), &fields); err != nil {
		t.Fatal(err)
	}
	return text(t, fields)
}

func text(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestWhatIsNotPlainIsPatchedWhole lists what parts are no good for.
func TestWhatIsNotPlainIsPatchedWhole(t *testing.T) {
	req := Request{Resource: resourceOf(t, "pods"), Version: "v1"}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default", ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}}}}
	pod.SetGroupVersionKind(req.kind())
	for _, body := range []string{
		`{"$patch":"replace","spec":{}}`, `{"kind":"Pod"}`, `{"apiVersion":"v1"}`, `{"color":"red"}`, `{"metadata":null}`,
		`{"metadata":{"managedFields":null}}`, `{"metadata":{"$patch":"replace"}}`, `{"metadata":{"color":"red"}}`,
		`{"spec":{},"spec":{}}`, `{"spec":{"a":1,"a":2}}`, `{"spec":7}`, `{"Spec":{}}`, `[]`, `null`, `7`,
	} {
		for _, kind := range []types.PatchType{types.MergePatchType, types.StrategicMergePatchType} {
			p := mergePatch(req, kind, body)
			if got, ok := p.partly(pod); ok {
				if want, err := p.whole(t, pod); err != nil || text(t, got) != text(t, want) {
					t.Errorf("%s %s: a part was patched: %s", kind, body, text(t, got))
				}
			}
		}
	}
	if got, ok := mergePatch(req, types.MergePatchType, `{"metadata":{"labels":{"a":"b"}}}`).partly(pod); !ok || len(got.(*corev1.Pod).ManagedFields) != 1 {
		t.Errorf("the managed fields are lost: %v", got)
	}
}

func resourceOf(t testing.TB, name string) *api.Resource {
	for _, r := range api.Resources() {
		if r.Group == "" && r.Resource == name {
			return r
		}
	}
	t.Fatalf("no %s", name)
	return nil
}

func BenchmarkPatchLabel(b *testing.B) {
	req := Request{Resource: resourceOf(b, "pods"), Version: "v1"}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "default", Labels: map[string]string{"app": "x"}}}
	pod.Spec.Containers = []corev1.Container{{Name: "main", Image: "example.org/bench:v1", Args: []string{"--serve"},
		Env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}}}}
	pod.SetGroupVersionKind(req.kind())
	api.Scheme().Default(pod)
	for _, kind := range []types.PatchType{types.MergePatchType, types.StrategicMergePatchType} {
		p := mergePatch(req, kind, `{"metadata":{"labels":{"b":"c"}}}`)
		b.Run(string(kind)+"/part", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, ok := p.partly(pod); !ok {
					b.Fatal("refused")
				}
			}
		})
		b.Run(string(kind)+"/whole", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, err := p.whole(b, pod)
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
