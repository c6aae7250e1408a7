package registry_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"pgregory.net/rapid"
)

// TestSelectedEqualsFiltered: while objects are created, changed and deleted, a list by selectors shows what the list of everything
// at its revision has that the selectors match, however often they were asked for before.
func TestSelectedEqualsFiltered(t *testing.T) {
	s := start(t, nil)
	const objects = 330
	secret := func(i, round int) *corev1.Secret {
		out := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("s%03d", i)}, Type: corev1.SecretType(fmt.Sprintf("example.com/t%d", i%3))}
		out.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Secret"))
		out.Labels = map[string]string{"app": fmt.Sprintf("a%d", (i+round)%7)}
		if (i+round)%2 == 0 {
			out.Labels["tier"] = "back"
		}
		return out
	}
	for i := range objects {
		create[*corev1.Secret](s, "secrets", []string{"default", "kube-system"}[i%2], secret(i, 0))
	}
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() {
			for round := 1; ; round++ {
				select {
				case <-stop:
					return
				default:
				}
				i := (round*7 + w*110) % objects
				namespace := []string{"default", "kube-system"}[i%2]
				req := s.req("secrets", namespace, fmt.Sprintf("s%03d", i))
				if _, _, err := s.Delete(t.Context(), req, nil); err != nil && !apierrors.IsNotFound(err) {
					t.Error(err)
				}
				if _, err := s.Create(t.Context(), s.req("secrets", namespace, ""), secret(i, round), &metav1.CreateOptions{FieldManager: "test"}); err != nil && !apierrors.IsAlreadyExists(err) {
					t.Error(err)
				}
			}
		})
	}
	defer writers.Wait()
	defer close(stop)
	rapid.Check(t, func(t *rapid.T) {
		label := rapid.SampledFrom([]string{"", "app=a1", "app in (a1,a2,a9)", "tier=back,app=a3", "tier", "!tier", "app notin (a1)", "app!=a1,tier=back", "none=x", "app=a1,app=a2"}).Draw(t, "labels")
		field := rapid.SampledFrom([]string{"", "type=example.com/t1", "type!=example.com/t1", "metadata.name=s001", "metadata.namespace=default", "metadata.name!=s001"}).Draw(t, "fields")
		namespace := rapid.SampledFrom([]string{"", "default"}).Draw(t, "namespace")
		opts := &metainternalversion.ListOptions{Limit: rapid.SampledFrom([]int64{0, 0, 20}).Draw(t, "limit")}
		var err error
		if opts.LabelSelector, err = labels.Parse(label); err != nil {
			t.Fatal(err)
		}
		if opts.FieldSelector, err = fields.ParseSelector(field); err != nil {
			t.Fatal(err)
		}
		ctx := s.tb.Context()
		got, err := s.List(ctx, s.req("secrets", namespace, ""), opts)
		if err != nil {
			t.Fatal(err)
		}
		all, err := s.List(ctx, s.req("secrets", namespace, ""), &metainternalversion.ListOptions{
			ResourceVersion: fmt.Sprint(got.Revision), ResourceVersionMatch: metav1.ResourceVersionMatchExact,
		})
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for _, e := range all.Entries {
			obj, err := e.Object()
			if err != nil {
				t.Fatal(err)
			}
			one := obj.(*corev1.Secret)
			set := fields.Set{"metadata.name": one.Name, "metadata.namespace": one.Namespace, "type": string(one.Type)}
			if opts.LabelSelector.Matches(labels.Set(one.Labels)) && opts.FieldSelector.Matches(set) {
				want = append(want, fmt.Sprint(e.Key(), e.Revision()))
			}
		}
		if opts.Limit > 0 {
			want = want[:min(len(want), int(opts.Limit))]
		}
		var have []string
		for _, e := range got.Entries {
			have = append(have, fmt.Sprint(e.Key(), e.Revision()))
		}
		if a, b := strings.Join(have, " "), strings.Join(want, " "); a != b {
			t.Fatalf("%q, %q in %q at %d shows\n%s, of all are\n%s", label, field, namespace, got.Revision, a, b)
		}
	})
}

// BenchmarkSelect is what it costs to find one object in ten of 5,000.
func BenchmarkSelect(b *testing.B) {
	s := start(b, nil)
	for i := range 5000 {
		m := newConfigMap(fmt.Sprintf("c%04d", i), nil)
		m.Labels = map[string]string{"tier": fmt.Sprint(i % 10), "app": "load", "hash": "5d4f8c"}
		create[*corev1.ConfigMap](s, "configmaps", "default", m)
	}
	for _, tt := range []struct{ name, label string }{{"everything", ""}, {"tenth", "tier=1"}, {"nothing", "tier=none"}, {"walk", "tier notin (0,2,3,4,5,6,7,8,9)"}} {
		b.Run(tt.name, func(b *testing.B) {
			selector, err := labels.Parse(tt.label)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := s.List(b.Context(), s.req("configmaps", "default", ""), &metainternalversion.ListOptions{LabelSelector: selector, ResourceVersion: "0"}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
