package api

import (
	"context"
	"errors"
	"math/rand"
	"reflect"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/klog/v2"
	corefuzzer "k8s.io/kubernetes/pkg/apis/core/fuzzer"
)

// upstreams are rules without what spares work: strategies are wrapped by structs that embed them.
func upstreams(r *Rules) *Rules {
	plain := *r
	for {
		wrapper := reflect.ValueOf(plain.update)
		if wrapper.Kind() != reflect.Struct {
			return &plain
		}
		inner := wrapper.FieldByName("RESTUpdateStrategy")
		if !inner.IsValid() {
			return &plain
		}
		plain.update = inner.Interface().(rest.RESTUpdateStrategy)
	}
}

// verdict is what rules say of an update.
func verdict(t *testing.T, r *Rules, ctx context.Context, obj, old runtime.Object) (runtime.Object, []string) {
	t.Helper()
	given, live := obj.DeepCopyObject(), old.DeepCopyObject()
	out, err := r.PrepareUpdate(ctx, given, live)
	if !equality.Semantic.DeepEqual(given, obj) || !equality.Semantic.DeepEqual(live, old) {
		t.Fatalf("an update of a %T changes what it is made of", obj)
	}
	if err == nil {
		settle(reflect.ValueOf(out))
		return out, nil
	}
	var status *apierrors.StatusError
	if !errors.As(err, &status) || status.ErrStatus.Details == nil {
		return nil, []string{err.Error()}
	}
	var causes []string
	for _, c := range status.ErrStatus.Details.Causes {
		causes = append(causes, string(c.Type)+" "+c.Field+": "+c.Message)
	}
	slices.Sort(causes) // some are found by going through a map
	return nil, causes
}

// settle takes away times of just now, which rules set.
func settle(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			settle(v.Elem())
		}
	case reflect.Struct:
		if at, ok := v.Addr().Interface().(*metav1.Time); ok {
			if time.Since(at.Time).Abs() < time.Hour {
				*at = metav1.Time{}
			}
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				settle(v.Field(i))
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			settle(v.Index(i))
		}
	}
}

// mix puts some of other into obj, both of one type: either all, or parts of the parts.
func mix(random *rand.Rand, obj, other reflect.Value) {
	switch {
	case obj.Kind() == reflect.Struct && obj.NumField() > 0 && random.Intn(4) > 0:
		if i := random.Intn(obj.NumField()); obj.Field(i).CanSet() {
			mix(random, obj.Field(i), other.Field(i))
		}
	case obj.Kind() == reflect.Slice && obj.Len() > 0 && other.Len() > 0 && random.Intn(2) > 0:
		mix(random, obj.Index(random.Intn(obj.Len())), other.Index(random.Intn(other.Len())))
	default:
		obj.Set(other)
	}
}

// TestUpdatesAreValidatedAsUpstreamDoes: random objects of every kind, with random parts of others, through every view that
// can be updated, make the same objects or are refused for the same reasons.
func TestUpdatesAreValidatedAsUpstreamDoes(t *testing.T) {
	seed := rand.Int63()
	random := rand.New(rand.NewSource(seed))
	fill := fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, corefuzzer.Funcs), random, Codecs()).NilChance(0.4).NumElements(0, 2).MaxDepth(10)
	valid, refused := 0, 0
	for _, res := range Resources() {
		if res.Virtual() {
			continue
		}
		views := map[string]*Rules{"": res.Rules}
		for name, sub := range res.Subresources {
			if sub.Rules != nil && sub.Rules.update != nil {
				views[name] = sub.Rules
			}
		}
		for name, rules := range views {
			for range 6 {
				old, obj := updated(t, random, res, fill.Fill)
				ctx := updating(res, name, old)
				got, reasons := verdict(t, rules, ctx, obj, old)
				want, expected := verdict(t, upstreams(rules), ctx, obj, old)
				if !slices.Equal(reasons, expected) {
					t.Fatalf("seed %d: %s/%s: refused for\n%q, want\n%q", seed, res.GroupResource, name, reasons, expected)
				}
				if len(expected) > 0 {
					refused++
					continue
				}
				if valid++; !equality.Semantic.DeepEqual(got, want) {
					t.Fatalf("seed %d: %s/%s becomes\n%v, want\n%v", seed, res.GroupResource, name, got, want)
				}
			}
		}
	}
	t.Logf("%d updates are valid, %d are not", valid, refused)
	if valid < 50 || refused < 50 {
		t.Errorf("%d updates are valid, %d are not", valid, refused)
	}
}

// updated is a random object as it was and as it is to be.
func updated(t *testing.T, random *rand.Rand, res *Resource, fill func(any)) (old, obj runtime.Object) {
	t.Helper()
	var made [2]runtime.Object
	for i := range made {
		o, err := res.Codec().New(res.Storage)
		if err != nil {
			t.Fatal(err)
		}
		fill(o)
		o.GetObjectKind().SetGroupVersionKind(res.Storage.WithKind(res.Kind))
		res.Codec().Default(o)
		m, err := meta.Accessor(o)
		if err != nil {
			t.Fatal(err)
		}
		labels := m.GetLabels()
		reflect.ValueOf(o).Elem().FieldByName("ObjectMeta").SetZero() // hardly any is valid
		m.SetLabels(labels)
		m.SetName("name")
		if res.Namespaced {
			m.SetNamespace("default")
		}
		m.SetUID("uid")
		m.SetResourceVersion("7")
		made[i] = o
	}
	old, obj = made[0], made[0].DeepCopyObject()
	if random.Intn(3) > 0 {
		mix(random, reflect.ValueOf(obj).Elem(), reflect.ValueOf(made[1]).Elem())
	}
	m, _ := meta.Accessor(obj)
	m.SetLabels(map[string]string{"changed": "yes"})
	return old, obj
}

// updating is the context of an update.
func updating(res *Resource, subresource string, old runtime.Object) context.Context {
	m, _ := meta.Accessor(old)
	ctx := request.WithNamespace(context.Background(), m.GetNamespace())
	ctx = request.WithUser(ctx, &user.DefaultInfo{Name: "somebody"})
	ctx = klog.NewContext(ctx, klog.Logger{}) // upstream reports where its two kinds of validation differ
	return request.WithRequestInfo(ctx, &request.RequestInfo{
		IsResourceRequest: true, Verb: "update", APIGroup: res.Group, APIVersion: res.Served[0], Resource: res.Resource,
		Subresource: subresource, Namespace: m.GetNamespace(), Name: m.GetName(),
	})
}

// BenchmarkPrepareUpdate is the label of a pod.
func BenchmarkPrepareUpdate(b *testing.B) {
	i := slices.IndexFunc(Resources(), func(r *Resource) bool { return r.Group == "" && r.Resource == "pods" })
	res := Resources()[i]
	old := &corev1.Pod{}
	old.Name, old.Namespace, old.UID, old.ResourceVersion = "name", "default", "uid", "7"
	old.Labels = map[string]string{"app": "load", "tier": "x"}
	old.Spec.Containers = []corev1.Container{{Name: "main", Image: "example.org/bench:v1", Args: []string{"--serve"},
		Env:          []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}},
		VolumeMounts: []corev1.VolumeMount{{Name: "token", MountPath: "/var/run/secrets", ReadOnly: true}}}}
	old.Spec.Volumes = []corev1.Volume{{Name: "token", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	old.SetGroupVersionKind(res.Storage.WithKind("Pod"))
	Scheme().Default(old)
	obj := old.DeepCopy()
	obj.Labels["round"] = "2"
	ctx := updating(res, "", old)
	for name, rules := range map[string]*Rules{"ours": res.Rules, "upstream": upstreams(res.Rules)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := rules.PrepareUpdate(ctx, obj, old); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
