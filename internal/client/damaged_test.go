package client_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

// damage writes what is no object in place of a ConfigMap, or removes it.
func damage(t *testing.T, member *etcd.Member, name string, remove bool) {
	t.Helper()
	key := []byte("/registry/configmaps/default/" + name)
	op := &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: &etcdserverpb.PutRequest{Key: key, Value: []byte("k8s\x00garbage")}}}
	if remove {
		op = &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestDeleteRange{RequestDeleteRange: &etcdserverpb.DeleteRangeRequest{Key: key}}}
	}
	if _, err := member.Txn(t.Context(), &etcdserverpb.TxnRequest{Success: []*etcdserverpb.RequestOp{op}}); err != nil {
		t.Fatal(err)
	}
}

// TestObjectsThatCannotBeRead: followers pass over them, to see the rest; who asks for one is told that it can't be read,
// and not that it isn't there.
func TestObjectsThatCannotBeRead(t *testing.T) {
	member := etcdtest.New(t, 1, nil).Member(0)
	c, ctx := startOn(t, member, store.Config{}), soon(t)
	damage(t, member, "a-broken", false)
	if err := c.Create(ctx, configMap("b-first", map[string]string{"v": "1"})); err != nil {
		t.Fatal(err)
	}
	following, stop := context.WithCancel(ctx)
	synced := make(chan struct{})
	events := make(chan string, 20)
	done := make(chan error, 1)
	go func() {
		done <- c.Follow(following, &corev1.ConfigMap{}, func() { close(synced) }, func(e barqueclient.Event) {
			switch m := e.Object().(*corev1.ConfigMap); {
			case m.Namespace != "default":
			case e.New == nil:
				events <- "gone " + m.Name + m.Data["v"]
			default:
				events <- m.Name + m.Data["v"]
			}
		})
	}()
	next := func(want string) {
		t.Helper()
		select {
		case got := <-events:
			if got != want {
				t.Errorf("saw %q, want %q", got, want)
			}
		case err := <-done:
			t.Fatalf("following ended: %v", err)
		case <-ctx.Done():
			t.Fatalf("never saw %q", want)
		}
	}
	<-synced
	next("b-first1")
	damage(t, member, "b-first", false) // it stays what it was
	if err := c.Create(ctx, configMap("c-second", nil)); err != nil {
		t.Fatal(err)
	}
	next("c-second")
	for _, name := range []string{"a-broken", "b-first"} {
		err := c.Get(ctx, client.ObjectKey{Namespace: "default", Name: name}, &corev1.ConfigMap{})
		if err == nil || apierrors.IsNotFound(err) {
			t.Errorf("get of %s: %v", name, err)
		}
	}
	damage(t, member, "a-broken", true) // whom nobody saw, nobody misses
	damage(t, member, "b-first", true)
	next("gone b-first1")
	stop()
	<-done
}

// TestListOfObjectsThatCannotBeRead: a list has those that can be read, and its error names the others, as long as they
// are in its scope.
func TestListOfObjectsThatCannotBeRead(t *testing.T) {
	member := etcdtest.New(t, 1, nil).Member(0)
	c, ctx := startOn(t, member, store.Config{}), soon(t)
	damage(t, member, "a-broken", false)
	damage(t, member, "c-broken", false)
	for _, name := range []string{"b-first", "d-second"} {
		if err := c.Create(ctx, configMap(name, nil)); err != nil {
			t.Fatal(err)
		}
	}
	var list corev1.ConfigMapList
	err := c.List(ctx, &list, client.InNamespace("default"), client.MatchingLabels{"app": "x"})
	if len(list.Items) != 2 || list.Items[0].Name != "b-first" || list.Items[1].Name != "d-second" || list.ResourceVersion == "" {
		t.Errorf("listed %v", list.Items)
	}
	var status apierrors.APIStatus
	if !apierrors.IsStoreReadError(err) || !errors.As(err, &status) {
		t.Fatalf("error %v", err)
	}
	var causes []string
	for _, cause := range status.Status().Details.Causes {
		causes = append(causes, string(cause.Type)+" "+cause.Field)
	}
	want := []string{"UnexpectedServerResponse /registry/configmaps/default/a-broken", "UnexpectedServerResponse /registry/configmaps/default/c-broken"}
	if !slices.Equal(causes, want) {
		t.Errorf("causes %q, want %q", causes, want)
	}
	if message := err.Error(); !strings.Contains(message, "configmaps/default/a-broken") || !strings.Contains(message, "1 more") {
		t.Errorf("message %q", message)
	}
	if err := c.List(ctx, &list, client.InNamespace("kube-system")); err != nil {
		t.Errorf("another namespace: %v", err)
	}
}
