package alike

import (
	"math"
	"math/rand"
	"reflect"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/randfill"
)

type sample struct {
	Name    string
	Number  *int64
	Bytes   []byte
	List    []inner
	Labels  map[string]string
	Limits  map[corev1.ResourceName]resource.Quantity
	Any     any
	Float   float64
	Time    metav1.Time
	Self    *sample
	Numbers [2]int
	hidden  []string
}

type inner struct{ Key, Value string }

func example() *sample {
	return &sample{
		Name: "n", Number: ptr.To(int64(7)), Bytes: []byte("b"), List: []inner{{"a", "1"}, {"b", "2"}},
		Labels: map[string]string{"app": "x"}, Limits: map[corev1.ResourceName]resource.Quantity{"cpu": resource.MustParse("1")},
		Time: metav1.Unix(5, 0), Self: &sample{Name: "inside"}, Numbers: [2]int{1, 2}, hidden: []string{"h"},
	}
}

func TestEveryDifferenceCounts(t *testing.T) {
	for name, change := range map[string]func(*sample){
		"a string":             func(s *sample) { s.Name = "m" },
		"a number":             func(s *sample) { s.Number = ptr.To(int64(8)) },
		"no number":            func(s *sample) { s.Number = nil },
		"bytes":                func(s *sample) { s.Bytes[0]++ },
		"no bytes":             func(s *sample) { s.Bytes = nil },
		"empty bytes":          func(s *sample) { s.Bytes = []byte{} },
		"an element":           func(s *sample) { s.List[1].Value = "3" },
		"the order":            func(s *sample) { s.List[0], s.List[1] = s.List[1], s.List[0] },
		"one more":             func(s *sample) { s.List = append(s.List, inner{}) },
		"one less":             func(s *sample) { s.List = s.List[:1] },
		"an empty list":        func(s *sample) { s.List = []inner{} },
		"another label":        func(s *sample) { s.Labels["b"] = "c" },
		"a label's value":      func(s *sample) { s.Labels["app"] = "y" },
		"a label's name":       func(s *sample) { s.Labels = map[string]string{"b": "x"} },
		"no labels":            func(s *sample) { s.Labels = nil },
		"a quantity":           func(s *sample) { s.Limits["cpu"] = resource.MustParse("2") },
		"a quantity's name":    func(s *sample) { s.Limits = corev1.ResourceList{"memory": resource.MustParse("1")} },
		"what may be anything": func(s *sample) { s.Any = 1 },
		"a negative zero":      func(s *sample) { s.Float = math.Copysign(0, -1) },
		"the time":             func(s *sample) { s.Time = metav1.Unix(6, 0) },
		"the time's place":     func(s *sample) { s.Time = metav1.Time{Time: time.Unix(5, 0).In(time.FixedZone("x", 60))} },
		"what is inside":       func(s *sample) { s.Self.Name = "" },
		"an array":             func(s *sample) { s.Numbers[1] = 3 },
		"what is hidden":       func(s *sample) { s.hidden[0] = "i" },
	} {
		a, b := example(), example()
		if !Equal(reflect.ValueOf(*a), reflect.ValueOf(*b)) {
			t.Fatalf("two of a kind are not alike: %v, %v", a, b)
		}
		change(a)
		if Equal(reflect.ValueOf(*a), reflect.ValueOf(*b)) || Equal(reflect.ValueOf(*b), reflect.ValueOf(*a)) {
			t.Errorf("%s makes no difference", name)
		}
		want := example()
		change(want)
		if Share(a, b) || !reflect.DeepEqual(a, want) || !reflect.DeepEqual(b, example()) {
			t.Errorf("%s: sharing makes %v of %v, and leaves %v", name, a, want, b)
		}
	}
}

func TestWhatIsAlikeIsShared(t *testing.T) {
	a, b := example(), example()
	if !Share(a, b) || !reflect.DeepEqual(a, example()) {
		t.Fatalf("two of a kind are not alike: %v", a)
	}
	same := func(x, y any) bool { return reflect.ValueOf(x).Pointer() == reflect.ValueOf(y).Pointer() }
	for name, shared := range map[string]bool{
		"number": same(a.Number, b.Number), "bytes": same(a.Bytes, b.Bytes), "list": same(a.List, b.List), "labels": same(a.Labels, b.Labels),
		"limits": same(a.Limits, b.Limits), "self": same(a.Self, b.Self),
	} {
		if !shared {
			t.Errorf("%s is not shared", name)
		}
	}
	if same(a.hidden, b.hidden) {
		t.Error("what a type keeps to itself is shared")
	}

	a, b = example(), example()
	a.Name, a.List[0].Value, a.Self.Bytes, b.Self.Bytes = "other", "changed", []byte("x"), []byte("x")
	a.Self.Name = "other"
	if Share(a, b) || same(a.List, b.List) || same(a.Self, b.Self) || !same(a.Self.Bytes, b.Self.Bytes) || !same(a.Labels, b.Labels) {
		t.Error("what comes after a difference, or below one, is not shared")
	}
	if Share(a, &corev1.Pod{}) || Share((*sample)(nil), b) || Share(*a, *b) {
		t.Error("what is of two types, nothing or no pointer is shared")
	}
}

// TestQuantitiesThatAreWrittenAlikeAreAlike: they have their texts already or not.
func TestQuantitiesThatAreWrittenAlikeAreAlike(t *testing.T) {
	if name := quantity.Field(cachedText).Name; name != "s" {
		t.Errorf("what is passed over is called %s", name)
	}
	written := func(text string) resource.Quantity {
		q := resource.MustParse(text)
		_ = q.String()
		return q
	}
	for _, text := range []string{"1500m", "64Mi", "0", "1.5", "1e3", "123456789012345678901234567890"} {
		if !Equal(reflect.ValueOf(written(text)), reflect.ValueOf(resource.MustParse(text))) {
			t.Errorf("%s is not alike to itself", text)
		}
		for _, other := range []string{"+1500m", "1600m", "1500M", "1.5Ki", "123456789012345678901234567891"} {
			for _, a := range []resource.Quantity{written(text), resource.MustParse(text)} {
				for _, b := range []resource.Quantity{written(other), resource.MustParse(other)} {
					if Equal(reflect.ValueOf(a), reflect.ValueOf(b)) {
						t.Errorf("%s is alike to %s", text, other)
					}
				}
			}
		}
	}
}

// TestAlikeIsEqual: random pods, and changed copies of them.
func TestAlikeIsEqual(t *testing.T) {
	seed := rand.Int63()
	fill := randfill.NewWithSeed(seed).NilChance(0.3).NumElements(0, 3).MaxDepth(12).Funcs(
		func(q *resource.Quantity, c randfill.Continue) {
			*q = *resource.NewMilliQuantity(c.Int63n(1e6), resource.DecimalSI)
		},
		func(raw *runtime.RawExtension, _ randfill.Continue) { raw.Raw = []byte("{}") },
	)
	differ := 0
	for range 300 {
		var live, other corev1.Pod
		fill.Fill(&live)
		fill.Fill(&other)
		changed := live.DeepCopy()
		switch rand.Intn(4) {
		case 0:
			changed.ObjectMeta = other.ObjectMeta
		case 1:
			changed.Spec.Containers = append(changed.Spec.Containers, other.Spec.Containers...)
		case 2:
			changed.Spec.Volumes, changed.Status.Conditions = other.Spec.Volumes, other.Status.Conditions
		}
		before, after := live.DeepCopy(), changed.DeepCopy()
		alike := Equal(reflect.ValueOf(live), reflect.ValueOf(*changed))
		if alike != Share(changed, &live) {
			t.Fatalf("seed %d: compared they are alike (%v), shared not so", seed, alike)
		}
		if alike && !equality.Semantic.DeepEqual(before, after) {
			t.Fatalf("seed %d: alike but not equal:\n%v\n%v", seed, before, after)
		}
		if !alike {
			differ++
		} else if !reflect.DeepEqual(before, after) {
			t.Fatalf("seed %d: alike but not the same:\n%v\n%v", seed, before, after)
		}
		if !reflect.DeepEqual(before, &live) || !reflect.DeepEqual(after, changed) {
			t.Fatalf("seed %d: sharing changes what it shares:\n%v\n%v", seed, after, changed)
		}
	}
	if differ < 100 || differ > 280 {
		t.Errorf("%d of 300 differ", differ)
	}
}

func BenchmarkShare(b *testing.B) {
	fill := randfill.NewWithSeed(3).NilChance(0.5).NumElements(1, 2).MaxDepth(9)
	var pod corev1.Pod
	fill.Fill(&pod)
	b.Run("ours", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			other := pod.DeepCopy()
			b.StartTimer()
			Share(other, &pod)
		}
	})
	b.Run("upstream", func(b *testing.B) {
		b.ReportAllocs()
		other := pod.DeepCopy()
		for b.Loop() {
			equality.Semantic.DeepEqual(other, &pod)
		}
	})
}
