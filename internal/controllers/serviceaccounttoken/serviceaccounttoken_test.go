package serviceaccounttoken

import (
	"errors"
	"fmt"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/kit"
)

func account(name, uid string, secrets ...string) *corev1.ServiceAccount {
	a := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(uid)}}
	for _, s := range secrets {
		a.Secrets = append(a.Secrets, corev1.ObjectReference{Name: s})
	}
	return a
}

// token is an empty secret for an account's token.
func token(name, account string) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Annotations: map[string]string{corev1.ServiceAccountNameKey: account}},
		Type:       corev1.SecretTypeServiceAccountToken,
	}
}

func signed(a *corev1.ServiceAccount, s *corev1.Secret) (string, error) {
	return fmt.Sprintf("%s/%s for %s", a.Name, a.UID, s.Name), nil
}

// deliver reconciles what the controller requests for a change.
func deliver(t *testing.T, c kit.Controller, e barqueclient.Event) (requested int) {
	t.Helper()
	for _, watch := range c.Watches {
		if reflect.TypeOf(watch.Kind) != reflect.TypeOf(e.Object()) {
			continue
		}
		for _, r := range watch.Requests(e) {
			requested++
			if _, err := c.Reconcile(t.Context(), r); err != nil {
				t.Fatalf("%s: %v", r, err)
			}
		}
	}
	return requested
}

func there(t *testing.T, w *controllertest.World, obj client.Object) bool {
	err := w.Get(t.Context(), client.ObjectKeyFromObject(obj), obj.DeepCopyObject().(client.Object))
	return !apierrors.IsNotFound(err)
}

func TestFills(t *testing.T) {
	sa := account("sa", "1")
	w := controllertest.New(t, sa, token("new", "sa"), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "opaque"}})
	c := New(w.Deps(), []byte("CA"), signed)
	secret := controllertest.Reload(w, token("new", "sa"))
	deliver(t, c, barqueclient.Event{New: secret})
	secret = controllertest.Reload(w, token("new", "sa"))
	want := map[string][]byte{"token": []byte("sa/1 for new"), "namespace": []byte("ns"), "ca.crt": []byte("CA")}
	if !reflect.DeepEqual(secret.Data, want) || secret.Annotations[corev1.ServiceAccountUIDKey] != "1" {
		t.Errorf("filled: %v %v", secret.Annotations, secret.Data)
	}

	version := secret.ResourceVersion
	deliver(t, c, barqueclient.Event{New: secret})
	if controllertest.Reload(w, secret).ResourceVersion != version {
		t.Error("what is complete was written")
	}
	// Another authority, and the token stays.
	next := New(w.Deps(), []byte("CA 2"), func(*corev1.ServiceAccount, *corev1.Secret) (string, error) { return "", errors.New("not asked") })
	deliver(t, next, barqueclient.Event{Old: secret, New: secret})
	if controllertest.Reload(w, secret); string(secret.Data["ca.crt"]) != "CA 2" || string(secret.Data["token"]) != "sa/1 for new" {
		t.Errorf("after a rotation: %v", secret.Data)
	}

	opaque := controllertest.Reload(w, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "opaque"}})
	if n := deliver(t, c, barqueclient.Event{New: opaque}); n != 0 {
		t.Error("other secrets are looked at")
	}
	w.Reconcile(c, opaque)
	if len(controllertest.Reload(w, opaque).Data) != 0 {
		t.Error("another secret was filled")
	}
}

// TestGoesWithItsAccount: the token of an account that is gone, or is another of the same name, is removed.
func TestGoesWithItsAccount(t *testing.T) {
	own, other, stranger, late := token("own", "sa"), token("other", "sb"), token("stranger", "nobody"), token("late", "sa")
	late.Annotations[corev1.ServiceAccountUIDKey] = "before"
	sa := account("sa", "1")
	w := controllertest.New(t, sa, account("sb", "2"), own, other, stranger, late)
	c := New(w.Deps(), nil, signed)
	for _, s := range []*corev1.Secret{own, other, stranger, late} {
		deliver(t, c, barqueclient.Event{New: controllertest.Reload(w, s)})
	}
	if !there(t, w, own) || !there(t, w, other) || there(t, w, stranger) || there(t, w, late) {
		t.Errorf("own %v, other's %v, of nobody %v, of an account before %v", there(t, w, own), there(t, w, other), there(t, w, stranger), there(t, w, late))
	}
	if n := deliver(t, c, barqueclient.Event{Old: sa, New: sa}); n != 0 {
		t.Error("an account that lives has its tokens looked at")
	}
	if err := w.Delete(t.Context(), sa); err != nil {
		t.Fatal(err)
	}
	deliver(t, c, barqueclient.Event{Old: sa})
	if there(t, w, own) || !there(t, w, other) {
		t.Errorf("after the account: own %v, other's %v", there(t, w, own), there(t, w, other))
	}
}

func TestReferencesGo(t *testing.T) {
	sa, sb := account("sa", "1", "gone", "stays", "gone"), account("sb", "2", "gone")
	w := controllertest.New(t, sa, sb, token("back", "sa"))
	c := New(w.Deps(), nil, signed)
	deliver(t, c, barqueclient.Event{Old: token("gone", "sa")})
	if got := controllertest.Reload(w, sa).Secrets; len(got) != 1 || got[0].Name != "stays" {
		t.Errorf("references: %v", got)
	}
	if got := controllertest.Reload(w, sb).Secrets; len(got) != 1 {
		t.Error("another account lost its reference")
	}
	deliver(t, c, barqueclient.Event{Old: token("gone", "nobody")})
	controllertest.Change(w, sa, func(a *corev1.ServiceAccount) { a.Secrets = []corev1.ObjectReference{{Name: "back"}} })
	deliver(t, c, barqueclient.Event{Old: token("back", "sa")})
	if got := controllertest.Reload(w, sa).Secrets; len(got) != 1 {
		t.Error("the reference to a secret that was made again is gone")
	}
}

// TestConflicts: who wrote between is not overwritten, and other faults come back.
func TestConflicts(t *testing.T) {
	resource := schema.GroupResource{Resource: "secrets"}
	for name, tt := range map[string]struct {
		fault error
		fails bool
	}{
		"conflict":  {apierrors.NewConflict(resource, "new", errors.New("changed")), false},
		"gone":      {apierrors.NewNotFound(resource, "new"), false},
		"no quorum": {apierrors.NewServiceUnavailable("no quorum"), true},
	} {
		t.Run(name, func(t *testing.T) {
			w := controllertest.New(t, account("sa", "1"), token("new", "sa"), token("gone", "nobody"))
			w.Fail = func(string, client.Object) error { return tt.fault }
			c := New(w.Deps(), nil, signed)
			for _, s := range []string{"new", "gone"} {
				if _, err := c.Reconcile(t.Context(), kit.RequestFor(token(s, ""))); (err != nil) != tt.fails {
					t.Errorf("%s: %v", s, err)
				}
			}
		})
	}
}

func lateAccounts(obj client.Object) bool { _, late := obj.(*corev1.ServiceAccount); return late }

// TestLateAccount: an account that has not come to the image yet keeps its token, and as long as that can't be found
// out nothing goes.
func TestLateAccount(t *testing.T) {
	cut := errors.New("no quorum")
	own := token("own", "sa")
	w := controllertest.New(t, account("sa", "1"), own)
	c := New(w.Deps(), nil, signed)
	w.Late, w.Cut = lateAccounts, cut
	if _, err := c.Reconcile(t.Context(), kit.RequestFor(own)); !errors.Is(err, cut) || !there(t, w, own) {
		t.Errorf("cut off: %v, there %v", err, there(t, w, own))
	}
	w.Cut = nil
	w.Reconcile(c, own)
	if !there(t, w, own) {
		t.Fatal("the token of an account that lives is gone")
	}
	if got := controllertest.Reload(w, own).Data["token"]; string(got) != "sa/1 for own" {
		t.Errorf("token %q", got)
	}
}

// TestTokenOfAnotherVersion: a secret that was changed since it was looked at is looked at again before it goes.
func TestTokenOfAnotherVersion(t *testing.T) {
	own := token("own", "nobody")
	w := controllertest.New(t, own)
	c := New(w.Deps(), nil, signed)
	w.Fail = func(verb string, _ client.Object) error {
		if verb == "delete" {
			w.Fail = nil
			controllertest.Change(w, own.DeepCopy(), func(s *corev1.Secret) { s.Labels = map[string]string{"a": "b"} })
		}
		return nil
	}
	w.Reconcile(c, own)
	if !there(t, w, own) {
		t.Error("a version that nobody looked at is gone")
	}
	w.Reconcile(c, own)
	if there(t, w, own) {
		t.Error("it is still there")
	}
}

// TestLateSecret: the account goes on referring to a secret that was made again, though the image does not have it yet.
func TestLateSecret(t *testing.T) {
	sa := account("sa", "1", "back")
	w := controllertest.New(t, sa, token("back", "sa"))
	c := New(w.Deps(), nil, signed)
	w.Late = func(obj client.Object) bool { _, late := obj.(*corev1.Secret); return late }
	deliver(t, c, barqueclient.Event{Old: token("back", "sa")})
	if got := controllertest.Reload(w, sa).Secrets; len(got) != 1 {
		t.Errorf("references: %v", got)
	}
}
