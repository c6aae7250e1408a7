package registry_test

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"barque.dev/internal/apiserver/registry"
)

func watching(s *server, ctx context.Context, req registry.Request, opts *metainternalversion.ListOptions) *registry.Watch {
	s.tb.Helper()
	w, err := s.Watch(ctx, req, opts)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(w.Close)
	return w
}

// take reads n events and tells them as "ADDED a, MODIFIED b".
func take(s *server, ctx context.Context, w *registry.Watch, n int) string {
	s.tb.Helper()
	var out []string
	for len(out) < n {
		events, err := w.Next(ctx)
		if err != nil {
			s.tb.Fatalf("after %v: %v", out, err)
		}
		for _, e := range events {
			switch {
			case e.InitialEventsEnd:
				out = append(out, "END")
			case e.Type == watch.Bookmark:
				out = append(out, "BOOKMARK")
			default:
				out = append(out, string(e.Type)+" "+e.Entry.Key().Name)
			}
			if e.Type == watch.Deleted && e.Revision <= e.Entry.Revision() {
				s.tb.Errorf("a deletion at %d of version %d", e.Revision, e.Entry.Revision())
			}
		}
	}
	return strings.Join(out, ", ")
}

func label(s *server, name, value string) {
	s.tb.Helper()
	body := fmt.Sprintf(`{"metadata":{"labels":{"color":%q}}}`, value)
	if _, _, err := s.Patch(s.tb.Context(), s.req("configmaps", "default", name), types.MergePatchType, []byte(body), nil); err != nil {
		s.tb.Fatal(err)
	}
}

func TestWatch(t *testing.T) {
	s := start(t, nil)
	ctx := soon(t)
	one := create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("one", nil))
	req := s.req("configmaps", "default", "")
	all := watching(s, ctx, req, nil)
	since := watching(s, ctx, req, &metainternalversion.ListOptions{ResourceVersion: one.ResourceVersion})
	create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("two", nil))
	label(s, "one", "red")
	other := newConfigMap("three", nil)
	other.Namespace = "kube-system"
	create[*corev1.ConfigMap](s, "configmaps", "kube-system", other)
	if _, _, err := s.Delete(ctx, s.req("configmaps", "default", "two"), nil); err != nil {
		t.Fatal(err)
	}
	if got := take(s, ctx, all, 4); got != "ADDED one, ADDED two, MODIFIED one, DELETED two" {
		t.Errorf("from the state: %s", got)
	}
	if got := take(s, ctx, since, 3); got != "ADDED two, MODIFIED one, DELETED two" {
		t.Errorf("from a version: %s", got)
	}
}

func TestWatchThroughSelectors(t *testing.T) {
	s := start(t, nil)
	ctx := soon(t)
	selector, err := labels.Parse("color=red")
	if err != nil {
		t.Fatal(err)
	}
	create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("one", nil))
	w := watching(s, ctx, s.req("configmaps", "default", ""), &metainternalversion.ListOptions{LabelSelector: selector})
	for _, color := range []string{"red", "blue", "red"} {
		label(s, "one", color)
	}
	if _, _, err := s.Patch(ctx, s.req("configmaps", "default", "one"), types.MergePatchType, []byte(`{"data":{"a":"b"}}`), nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Delete(ctx, s.req("configmaps", "default", "one"), nil); err != nil {
		t.Fatal(err)
	}
	if got := take(s, ctx, w, 5); got != "ADDED one, DELETED one, ADDED one, MODIFIED one, DELETED one" {
		t.Errorf("got %s", got)
	}
}

func TestWatchList(t *testing.T) {
	s := start(t, nil)
	ctx := soon(t)
	for i := range 3 {
		create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap(fmt.Sprintf("c%d", i), nil))
	}
	req := s.req("configmaps", "default", "")
	opts := &metainternalversion.ListOptions{SendInitialEvents: ptr.To(true), AllowWatchBookmarks: true, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan}
	w := watching(s, ctx, req, opts)
	if got := take(s, ctx, w, 4); got != "ADDED c0, ADDED c1, ADDED c2, END" {
		t.Errorf("got %s", got)
	}
	create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("c3", nil))
	if got := take(s, ctx, w, 1); got != "ADDED c3" {
		t.Errorf("got %s", got)
	}
	opts.SendInitialEvents = ptr.To(false)
	quiet := watching(s, ctx, req, opts)
	create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("c4", nil))
	if got := take(s, ctx, quiet, 1); got != "ADDED c4" {
		t.Errorf("got %s", got)
	}
	opts.ResourceVersionMatch = ""
	if _, err := s.Watch(ctx, req, opts); !apierrors.IsInvalid(err) {
		t.Errorf("initial events without a match: %v", err)
	}
}

func TestWatchOfAnOldVersion(t *testing.T) {
	s := start(t, nil)
	for i := range 3 {
		create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap(fmt.Sprintf("c%d", i), nil))
	}
	// A server that starts now knows no history.
	late := on(t, s.member, nil)
	w := watching(late, t.Context(), late.req("configmaps", "default", ""), &metainternalversion.ListOptions{ResourceVersion: "1"})
	if _, err := w.Next(soon(t)); !apierrors.IsResourceExpired(err) {
		t.Errorf("got %v", err)
	}
}

// TestLastBookmark: shortly before its end a watch says how far it has come, so that the next one goes on there.
func TestLastBookmark(t *testing.T) {
	s := start(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 4500*time.Millisecond)
	defer cancel()
	w := watching(s, ctx, s.req("configmaps", "default", ""), &metainternalversion.ListOptions{AllowWatchBookmarks: true})
	one := create[*corev1.ConfigMap](s, "configmaps", "kube-system", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "elsewhere", Namespace: "kube-system"}})
	wrote, err := strconv.ParseInt(one.ResourceVersion, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	events, err := w.Next(ctx)
	if err != nil || len(events) != 1 || events[0].Type != watch.Bookmark || events[0].Revision < wrote {
		t.Errorf("%v, %v; want a bookmark of %d", events, err, wrote)
	}
}
