package objects_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"barque.dev/internal/agent/objects"
	"barque.dev/internal/testkit"
)

func podWith(configMap, secret string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u"}}
	p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: configMap}}}}}
	p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: secret}}
	return p
}

func TestStore(t *testing.T) {
	client := fake.NewClientset(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm", Namespace: "n", ResourceVersion: "1"}, Data: map[string]string{"a": "1"}})
	changed := make(chan types.UID, 100)
	ctx, cancel := context.WithCancel(t.Context())
	s := objects.New(ctx, client, "node", slog.New(slog.DiscardHandler), func(uid types.UID) { changed <- uid })
	defer s.Wait()
	defer cancel()
	if _, err := s.ConfigMap("n", "cm"); err == nil {
		t.Error("an object nobody refers to was answered")
	}
	s.Use(podWith("cm", "pull"))
	cm, err := s.ConfigMap("n", "cm")
	if err != nil || cm.Data["a"] != "1" {
		t.Fatalf("%v, %v", cm, err)
	}
	if _, err := s.Secret("n", "pull"); !apierrors.IsNotFound(err) {
		t.Fatalf("missing secret: %v", err)
	}
	// Every watch is open once its events come through.
	set := func(version, value string) {
		next := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cm", Namespace: "n", ResourceVersion: version}, Data: map[string]string{"a": value}}
		if _, err := client.CoreV1().ConfigMaps("n").Update(ctx, next, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() bool { return watches(client) >= 2 })
	set("2", "2")
	eventually(t, func() bool { cm, err := s.ConfigMap("n", "cm"); return err == nil && cm.Data["a"] == "2" })
	if uid := <-changed; uid != "u" {
		t.Errorf("told %q", uid)
	}
	if err := client.CoreV1().ConfigMaps("n").Delete(ctx, "cm", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { _, err := s.ConfigMap("n", "cm"); return apierrors.IsNotFound(err) })
	s.Drop("u")
	if _, err := s.Secret("n", "pull"); err == nil || apierrors.IsNotFound(err) {
		t.Errorf("after Drop: %v", err)
	}
}

// Bundles are followed from when a pod refers to one until no pod does.
func TestTrustBundles(t *testing.T) {
	named := func(name string) *certificatesv1.ClusterTrustBundle {
		return &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: name}}
	}
	client := fake.NewClientset(named("one"))
	changed := make(chan types.UID, 100)
	ctx, cancel := context.WithCancel(t.Context())
	s := objects.New(ctx, client, "node", slog.New(slog.DiscardHandler), func(uid types.UID) { changed <- uid })
	defer s.Wait()
	defer cancel()
	if _, err := s.TrustBundles(ctx); err == nil {
		t.Error("bundles are known though nobody refers to any")
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u"}}
	p.Spec.Volumes = []corev1.Volume{{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{}}},
	}}}}
	s.Use(p)
	if all, err := s.TrustBundles(ctx); err != nil || len(all) != 1 || all[0].Name != "one" {
		t.Fatalf("%v, %v", all, err)
	}
	eventually(t, func() bool { return watches(client) == 1 })
	for len(changed) > 0 {
		<-changed
	}
	if _, err := client.CertificatesV1().ClusterTrustBundles().Create(ctx, named("two"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if uid := <-changed; uid != "u" {
		t.Errorf("told %q", uid)
	}
	eventually(t, func() bool { all, err := s.TrustBundles(ctx); return err == nil && len(all) == 2 })
	s.Drop("u")
	if _, err := s.TrustBundles(ctx); err == nil {
		t.Error("bundles are still followed")
	}
}

func watches(client *fake.Clientset) int {
	n := 0
	for _, a := range client.Actions() {
		if a.GetVerb() == "watch" {
			n++
		}
	}
	return n
}

func eventually(t *testing.T, f func() bool) {
	t.Helper()
	testkit.Eventually(t, 10*time.Second, "what it waits for", testkit.Holds(f))
}

func TestTokens(t *testing.T) {
	client := fake.NewClientset()
	now, issued, down := time.Unix(10_000, 0), 0, false
	client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		if down {
			return true, nil, errors.New("no server")
		}
		issued++
		request := a.(clienttesting.CreateAction).GetObject().(*authenticationv1.TokenRequest)
		if ref := request.Spec.BoundObjectRef; ref.Kind != "Pod" || ref.UID != "u" {
			t.Errorf("bound to %+v", ref)
		}
		request.Status = authenticationv1.TokenRequestStatus{Token: string(rune('a' + issued - 1)), ExpirationTimestamp: metav1.NewTime(now.Add(time.Duration(*request.Spec.ExpirationSeconds) * time.Second))}
		return true, request, nil
	})
	tokens := objects.NewTokens(client, func() time.Time { return now })
	get := func() (string, error) {
		token, err := tokens.Token(t.Context(), podWith("", ""), "", 1000)
		return token.Value, err
	}
	expect := func(after time.Duration, want string) {
		t.Helper()
		now = now.Add(after)
		if got, err := get(); err != nil || got != want {
			t.Errorf("token %q, %v; want %q", got, err, want)
		}
	}
	expect(0, "a")
	expect(799*time.Second, "a")
	expect(time.Second, "b")
	down = true
	expect(900*time.Second, "b") // due, but still good
	now = now.Add(200 * time.Second)
	if _, err := get(); err == nil {
		t.Error("an expired token was handed out")
	}
	down = false
	expect(0, "c")
	tokens.Drop("u")
	expect(0, "d")
}
