package serviceaccounttoken

import (
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/auth/serviceaccount"
	"barque.dev/internal/controllers/controllertest"
)

const year = DefaultUnused

func tracking(since string) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: trackingName}, Data: map[string]string{trackingKey: since},
	}
}

// old is a token that a cluster made by itself, long ago.
func old(w *controllertest.World, name string, labels map[string]string) *corev1.Secret {
	s := token(name, "sa")
	s.Labels, s.CreationTimestamp = labels, metav1.Time{Time: w.Clock.Now().Add(-3 * year)}
	return s
}

// ago is the day that many hours ago in the tests' world, in which it is noon.
func ago(d time.Duration) string {
	return serviceaccount.Day(time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC).Add(-d))
}

func TestJudge(t *testing.T) {
	w := controllertest.New(t)
	now := w.Clock.Now()
	const used, invalid = serviceaccount.LastUsedLabel, serviceaccount.InvalidSinceLabel
	type labels = map[string]string
	opaque, young, dying := old(w, "s", nil), old(w, "s", nil), old(w, "s", nil)
	opaque.Type = corev1.SecretTypeOpaque
	young.CreationTimestamp.Time = now.Add(-year)
	dying.DeletionTimestamp = &metav1.Time{Time: now}
	for name, tt := range map[string]struct {
		secret *corev1.Secret
		want   verdict
	}{
		"never used":                 {old(w, "s", nil), mark},
		"another type":               {opaque, keep},
		"made a year ago":            {young, keep},
		"being deleted":              {dying, keep},
		"used a year ago":            {old(w, "s", labels{used: ago(year)}), keep},
		"used a day before that":     {old(w, "s", labels{used: ago(year + 24*time.Hour)}), mark},
		"used at no day":             {old(w, "s", labels{used: "yesterday"}), keep},
		"marked, used since":         {old(w, "s", labels{invalid: ago(2 * year), used: ago(0)}), keep},
		"marked a year ago":          {old(w, "s", labels{invalid: ago(year)}), keep},
		"marked before that":         {old(w, "s", labels{invalid: ago(year + 24*time.Hour)}), remove},
		"marked at no day":           {old(w, "s", labels{invalid: "x"}), mark},
		"marked and used long ago":   {old(w, "s", labels{invalid: ago(2 * year), used: ago(2 * year)}), remove},
		"marked, and used at no day": {old(w, "s", labels{invalid: ago(2 * year), used: ""}), keep},
	} {
		if got := judge(tt.secret, now, year); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

// TestNothingInUseIsTouched: whatever the dates, a token that was made or used within the time is kept, and what is removed
// was marked for all of the time.
func TestNothingInUseIsTouched(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(rapid.IntRange(0, 86399).Draw(t, "second")) * time.Second)
		unused := time.Duration(rapid.IntRange(1, 500*24).Draw(t, "unused hours")) * time.Hour
		moment := func(what string) time.Time {
			return now.Add(-time.Duration(rapid.IntRange(0, 1500*24).Draw(t, what)) * time.Hour)
		}
		created, used, invalid := moment("made"), moment("used"), moment("marked")
		s := token("s", "sa")
		s.CreationTimestamp.Time = created
		s.Labels = map[string]string{}
		if rapid.Bool().Draw(t, "was used") {
			s.Labels[serviceaccount.LastUsedLabel] = serviceaccount.Day(used)
		} else {
			used = time.Time{}
		}
		if rapid.Bool().Draw(t, "is marked") {
			s.Labels[serviceaccount.InvalidSinceLabel] = serviceaccount.Day(invalid)
		} else {
			invalid = now
		}
		within := func(m time.Time) bool { return now.Sub(m) <= unused }
		got := judge(s, now, unused)
		if got != keep && (within(created) || within(used)) {
			t.Fatalf("%s what is in use: made %v, used %v", got, created, used)
		}
		if got == remove && within(invalid) {
			t.Fatalf("removed what was marked at %v", invalid)
		}
	})
}

func TestCleans(t *testing.T) {
	w := controllertest.New(t)
	long := ago(2 * year)
	unused, marked := old(w, "unused", nil), old(w, "marked", map[string]string{serviceaccount.InvalidSinceLabel: long})
	mounted, manual := old(w, "mounted", nil), old(w, "manual", nil)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}, Spec: corev1.PodSpec{
		Volumes: []corev1.Volume{{Name: "t", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "mounted"}}}},
	}}
	for _, obj := range []client.Object{tracking(long), account("sa", "1", "unused", "marked", "mounted"), unused, marked, mounted, manual, pod} {
		w.MustCreate(obj)
	}
	c := NewCleaner(w.Deps(), 0)
	if result := w.Reconcile(c, tracking("")); result.RequeueAfter != look {
		t.Errorf("looks again after %v", result.RequeueAfter)
	}
	if there(t, w, marked) {
		t.Error("what was marked for long is there")
	}
	if got := controllertest.Reload(w, unused).Labels[serviceaccount.InvalidSinceLabel]; got != ago(0) {
		t.Errorf("what was not used is marked with %q", got)
	}
	for _, s := range []*corev1.Secret{mounted, manual} {
		if got := controllertest.Reload(w, s); got.Labels[serviceaccount.InvalidSinceLabel] != "" {
			t.Errorf("%s was marked", s.Name)
		}
	}
}

// TestCleansWhenItIsKnown: before use has been noted for the time, or when nobody knows since when, nothing is touched.
func TestCleansWhenItIsKnown(t *testing.T) {
	for name, tt := range map[string]struct {
		since   *corev1.ConfigMap
		touched bool
	}{
		"nobody knows": {nil, false}, "no day": {tracking("soon"), false}, "not for long": {tracking(ago(year)), false},
		"the day before": {tracking(ago(year + 24*time.Hour)), true},
	} {
		t.Run(name, func(t *testing.T) {
			w := controllertest.New(t, account("sa", "1", "unused"))
			if tt.since != nil {
				w.MustCreate(tt.since)
			}
			unused := old(w, "unused", nil)
			w.MustCreate(unused)
			w.Reconcile(NewCleaner(w.Deps(), 0), tracking(""))
			if got := controllertest.Reload(w, unused).Labels[serviceaccount.InvalidSinceLabel] != ""; got != tt.touched {
				t.Errorf("touched: %v", got)
			}
		})
	}
}

// TestCleanerGoesOn: one secret that cannot be written does not keep the others from being looked at.
func TestCleanerGoesOn(t *testing.T) {
	w := controllertest.New(t, tracking(ago(2*year)), account("sa", "1", "a", "b", "c"))
	for _, name := range []string{"a", "b", "c"} {
		w.MustCreate(old(w, name, nil))
	}
	w.Fail = func(_ string, obj client.Object) error {
		switch obj.GetName() {
		case "a":
			return errors.New("no")
		case "b":
			return apierrors.NewConflict(schema.GroupResource{Resource: "secrets"}, "b", errors.New("changed"))
		}
		return nil
	}
	if err := (cleaner{w.Deps(), year}).clean(t.Context()); err == nil || err.Error() != "mark as invalid secret ns/a: no" {
		t.Errorf("got %v", err)
	}
	if controllertest.Reload(w, token("c", "sa")).Labels[serviceaccount.InvalidSinceLabel] == "" {
		t.Error("the last was not looked at")
	}
}

func TestTracking(t *testing.T) {
	w := controllertest.New(t)
	c := NewTracking(w.Deps())
	object := tracking("")
	w.Reconcile(c, object)
	if got := controllertest.Reload(w, object).Data[trackingKey]; got != "2030-01-01" {
		t.Errorf("since %q", got)
	}
	w.Clock.Step(48 * time.Hour)
	w.Reconcile(c, object)
	if got := controllertest.Reload(w, object).Data[trackingKey]; got != "2030-01-01" {
		t.Errorf("since %q, two days later", got)
	}
	controllertest.Change(w, object, func(m *corev1.ConfigMap) { m.Data = map[string]string{"since": "x"} })
	w.Reconcile(c, object)
	if got := controllertest.Reload(w, object).Data[trackingKey]; got != "2030-01-03" {
		t.Errorf("since %q, mended", got)
	}
}

// TestLatePod: a token that a pod mounts stays, though the image does not have the pod yet.
func TestLatePod(t *testing.T) {
	long := ago(2 * year)
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p"}, Spec: corev1.PodSpec{
		Volumes: []corev1.Volume{{Name: "t", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "marked"}}}},
	}}
	w := controllertest.New(t, tracking(long), account("sa", "1", "marked"), pod)
	marked := old(w, "marked", map[string]string{serviceaccount.InvalidSinceLabel: long})
	w.MustCreate(marked)
	w.Late = func(obj client.Object) bool { _, late := obj.(*corev1.Pod); return late }
	w.Cut = errors.New("no quorum")
	c := cleaner{w.Deps(), year}
	if err := c.clean(t.Context()); !errors.Is(err, w.Cut) || !there(t, w, marked) {
		t.Errorf("cut off: %v, there %v", err, there(t, w, marked))
	}
	w.Cut = nil
	if err := c.clean(t.Context()); err != nil || !there(t, w, marked) {
		t.Errorf("%v, there %v", err, there(t, w, marked))
	}
}
