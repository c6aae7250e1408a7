package registry_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	genericstorage "k8s.io/apiserver/pkg/storage"

	"barque.dev/internal/apiserver/registry"
)

func names(list *registry.List) string {
	var out []string
	for _, e := range list.Entries {
		out = append(out, e.Key().Name)
	}
	return strings.Join(out, " ")
}

func TestListSelectors(t *testing.T) {
	s := start(t, nil)
	for i := range 6 {
		pod := newPod(fmt.Sprintf("p%d", i))
		pod.Labels["odd"] = fmt.Sprint(i%2 == 1)
		create[*corev1.Pod](s, "pods", "default", pod)
	}
	bindPod(s, "p1", "node1")
	bindPod(s, "p4", "node1")
	for _, tt := range []struct{ label, field, want string }{
		{"", "", "p0 p1 p2 p3 p4 p5"},
		{"odd=true", "", "p1 p3 p5"},
		{"", "spec.nodeName=node1", "p1 p4"},
		{"odd=false", "spec.nodeName=node1", "p4"},
		{"", "spec.nodeName=", "p0 p2 p3 p5"},
		{"", "spec.nodeName!=node1", "p0 p2 p3 p5"},
		{"", "metadata.name=p2", "p2"},
		{"odd=true", "metadata.name=p2", ""},
		{"", "metadata.namespace=default,metadata.name=p3", "p3"},
		{"", "metadata.namespace=kube-system", ""},
		{"", "status.phase=Pending,spec.restartPolicy=Always,metadata.name!=p0", "p1 p2 p3 p4 p5"},
	} {
		opts := &metainternalversion.ListOptions{}
		var err error
		if opts.LabelSelector, err = labels.Parse(tt.label); err != nil {
			t.Fatal(err)
		}
		if opts.FieldSelector, err = fields.ParseSelector(tt.field); err != nil {
			t.Fatal(err)
		}
		for _, namespace := range []string{"default", ""} {
			list, err := s.List(t.Context(), s.req("pods", namespace, ""), opts)
			if err != nil {
				t.Fatalf("%+v: %v", tt, err)
			}
			if names(list) != tt.want {
				t.Errorf("%+v in %q: got %s", tt, namespace, names(list))
			}
		}
	}
	_, err := s.List(t.Context(), s.req("pods", "default", ""), &metainternalversion.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.unheard", "x")})
	if !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), "field label not supported") {
		t.Errorf("an unknown field: %v", err)
	}
}

func TestListInChunks(t *testing.T) {
	s := start(t, nil)
	for i := range 7 {
		create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap(fmt.Sprintf("c%d", i), nil))
	}
	for _, namespace := range []string{"default", ""} {
		req := s.req("configmaps", namespace, "")
		opts := &metainternalversion.ListOptions{Limit: 3}
		first, err := s.List(t.Context(), req, opts)
		if err != nil || names(first) != "c0 c1 c2" || first.Remaining == nil || *first.Remaining != 4 {
			t.Fatalf("first page: %s, %v, %v", names(first), first.Remaining, err)
		}
		from, revision, err := genericstorage.DecodeContinue(first.Continue, req.Resource.KeyPrefix())
		if err != nil || revision != first.Revision || !strings.HasSuffix(from, "c2\x00") {
			t.Errorf("token says %q at %d: %v", from, revision, err)
		}
		// Later pages show the first page's revision.
		extra := fmt.Sprintf("c3%s-new", namespace)
		create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap(extra, nil))
		opts.Continue = first.Continue
		second, err := s.List(t.Context(), req, opts)
		if err != nil || names(second) != "c3 c4 c5" || second.Revision != first.Revision || *second.Remaining != 1 {
			t.Fatalf("second page: %s, %v, %v", names(second), second.Remaining, err)
		}
		opts.Continue = second.Continue
		third, err := s.List(t.Context(), req, opts)
		if err != nil || names(third) != "c6" || third.Continue != "" {
			t.Fatalf("third page: %s, %v", names(third), err)
		}
		if _, _, err := s.Delete(t.Context(), s.req("configmaps", "default", extra), nil); err != nil {
			t.Fatal(err)
		}
	}
	_, err := s.List(t.Context(), s.req("configmaps", "default", ""), &metainternalversion.ListOptions{Continue: "nonsense"})
	if !apierrors.IsBadRequest(err) {
		t.Errorf("a bad token: %v", err)
	}
	inconsistent, err := genericstorage.EncodeContinue("/registry/configmaps/default/c4\x00", "/registry/configmaps/default/", -1)
	if err != nil {
		t.Fatal(err)
	}
	list, err := s.List(t.Context(), s.req("configmaps", "default", ""), &metainternalversion.ListOptions{Continue: inconsistent, Limit: 10})
	if err != nil || names(list) != "c5 c6" {
		t.Errorf("an inconsistent continuation: %v, %v", list, err)
	}
}

func TestResourceVersionsOfLists(t *testing.T) {
	s := start(t, nil)
	one := create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("one", nil))
	create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("two", nil))
	req := s.req("configmaps", "default", "")
	for _, tt := range []struct {
		version string
		match   metav1.ResourceVersionMatch
		limit   int64
		want    string
	}{
		{"", "", 0, "one two"},
		{"0", "", 0, "one two"},
		{"0", "", 1, "one two"},
		{one.ResourceVersion, "", 0, "one two"},
		{one.ResourceVersion, metav1.ResourceVersionMatchNotOlderThan, 0, "one two"},
		{one.ResourceVersion, metav1.ResourceVersionMatchExact, 0, "one"},
		{one.ResourceVersion, "", 5, "one"},
	} {
		list, err := s.List(t.Context(), req, &metainternalversion.ListOptions{ResourceVersion: tt.version, ResourceVersionMatch: tt.match, Limit: tt.limit})
		if err != nil || names(list) != tt.want {
			t.Errorf("%+v: %v, %v", tt, list, err)
		}
	}
	_, err := s.List(t.Context(), req, &metainternalversion.ListOptions{ResourceVersionMatch: metav1.ResourceVersionMatchExact})
	if !apierrors.IsInvalid(err) {
		t.Errorf("a match without a version: %v", err)
	}
	_, err = s.List(t.Context(), req, &metainternalversion.ListOptions{ResourceVersion: "nonsense"})
	if !apierrors.IsBadRequest(err) {
		t.Errorf("a version that is none: %v", err)
	}
	future := fmt.Sprint(s.store.Revision() + 1000)
	_, err = s.Get(t.Context(), s.req("configmaps", "default", "one"), &metav1.GetOptions{ResourceVersion: future})
	if !apierrors.IsTimeout(err) || !apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
		t.Errorf("a version of the future: %v", err)
	}
}
