package api

import (
	"math/rand"
	"reflect"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/operation"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
)

// TestDeclaredValidationIsUpstreams: of random objects of every kind, and of changes from one to another, declarative validation says
// what upstream's says, and leaves them as they are.
func TestDeclaredValidationIsUpstreams(t *testing.T) {
	seed := rand.Int63()
	fill := fuzzer.FuzzerFor(metafuzzer.Funcs, rand.NewSource(seed), Codecs()).NilChance(0.5).NumElements(0, 2).MaxDepth(8)
	asked, passed := 0, 0
	for _, res := range Resources() {
		if res.Virtual() || res.Rules == nil {
			continue
		}
		short, ok := res.Rules.create.(struct {
			rest.RESTCreateStrategy
			declared
		})
		if !ok {
			continue
		}
		d := short.declared
		hub := schema.GroupVersionKind{Group: res.Group, Version: runtime.APIVersionInternal, Kind: res.Kind}
		for _, version := range res.Served {
			quiet := klog.NewContext(t.Context(), klog.Logger{})
			ctx := request.WithRequestInfo(quiet, &request.RequestInfo{
				IsResourceRequest: true, APIGroup: res.Group, APIVersion: version, Resource: res.Resource,
			})
			for range 20 {
				var sides [2]runtime.Object
				for i := range sides {
					obj, err := legacyscheme.Scheme.New(hub)
					if err != nil {
						t.Fatal(err)
					}
					if rand.Intn(3) > 0 {
						fill.Fill(obj)
					}
					sides[i] = obj
				}
				for _, op := range []operation.Type{operation.Create, operation.Update} {
					obj, old := sides[0], runtime.Object(nil)
					if op == operation.Update {
						old = sides[1]
					}
					before, oldBefore := obj.DeepCopyObject(), sides[1].DeepCopyObject()
					config := d.DeclarativeValidationConfig(ctx, obj, old)
					got := d.ValidateDeclaratively(ctx, obj, old, nil, op, config)
					asked++
					if passes(ctx, obj, old, op, config) {
						passed++
					}
					if !equality.Semantic.DeepEqual(obj, before) || !equality.Semantic.DeepEqual(sides[1], oldBefore) {
						t.Fatalf("seed %d: %s: validating %s changes it", seed, hub, version)
					}
					want := d.DeclarativeValidationStrategy.ValidateDeclaratively(ctx, obj, old, nil, op, config)
					if !slices.Equal(texts(got), texts(want)) {
						t.Fatalf("seed %d: %s in %s: %v, want %v", seed, hub, version, got, want)
					}
				}
			}
		}
	}
	if passed < asked/10 || passed == asked {
		t.Errorf("%d of %d passed: the test says little", passed, asked)
	}
}

// texts are errors in an order of their own: those about the entries of maps come in any.
func texts(errs field.ErrorList) []string {
	var out []string
	for _, err := range errs {
		out = append(out, err.Error())
	}
	slices.Sort(out)
	return out
}

// TestDeclaredValidationIsShort: pods are validated the short way.
func TestDeclaredValidationIsShort(t *testing.T) {
	for _, res := range Resources() {
		if res.Group != "" || res.Resource != "pods" {
			continue
		}
		for _, s := range []any{res.Rules.create, res.Rules.update, res.Subresources["status"].Rules.update} {
			if !short(reflect.ValueOf(s)) {
				t.Errorf("%T", s)
			}
		}
	}
}

// short tells whether a strategy, or one that it wraps, validates the short way.
func short(v reflect.Value) bool {
	for v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if !v.IsValid() || v.Kind() != reflect.Struct {
		return false
	}
	if v.Type() == reflect.TypeFor[declared]() {
		return true
	}
	for i := range v.NumField() {
		if v.Type().Field(i).Anonymous && short(v.Field(i)) {
			return true
		}
	}
	return false
}
