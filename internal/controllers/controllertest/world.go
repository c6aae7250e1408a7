// Package controllertest is a small cluster in memory for tests of controllers: a client that
// keeps objects as the API server does in what matters to controllers (UIDs, generations,
// resource versions, status and finalizers), followers that see every change, and a kubelet
// that obeys the test.
package controllertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"barque.dev/internal/api"
	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/testkit/fakeclient"
)

// TB is what is needed of a test; *testing.T and *rapid.T have it.
type TB interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

// World is the cluster. It is safe for concurrent use.
type World struct {
	client.Client
	t     TB
	Clock *clocktesting.FakeClock

	// Fail, if not nil, is asked before every write, and its error is returned in place of it.
	// After is asked once the write has happened: its error makes the write's outcome look
	// unknown to whoever wrote.
	Fail, After func(verb string, obj client.Object) error
	// Late, if not nil, tells of objects that have not come to the image yet: controllers see them once they
	// have caught up, which makes it nil, unless Cut, then the error of catching up, is set.
	Late func(obj client.Object) bool
	Cut  error
	// Damaged, if not nil, tells of objects that can't be read.
	Damaged func(obj client.Object) bool

	mu        sync.Mutex
	uids      int
	writes    int
	followers []*follower
	events    []string
}

type follower struct {
	kind   reflect.Type
	handle func(barqueclient.Event)
}

// New makes a world with some objects, at noon of the first day of 2030.
func New(t TB, objs ...client.Object) *World {
	w := &World{t: t, Clock: clocktesting.NewFakeClock(time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC))}
	w.Client = interceptor.NewClient(fakeclient.Builder().Build(), interceptor.Funcs{
		Create: w.create, Update: w.update, Delete: w.delete, Patch: w.patch,
		SubResourcePatch: func(ctx context.Context, c client.Client, _ string, obj client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
			return w.change("status", obj, func() error {
				if err := w.samePatched(obj, patch); err != nil {
					return err
				}
				return c.Status().Patch(ctx, obj, patch, opts...)
			})
		},
		SubResourceUpdate: func(ctx context.Context, c client.Client, _ string, obj client.Object, _ ...client.SubResourceUpdateOption) error {
			return w.change("status", obj, func() error { return w.writeStatus(ctx, c, obj) })
		},
	})
	for _, obj := range objs {
		w.MustCreate(obj)
	}
	return w
}

// Deps is what controllers are made with.
func (w *World) Deps() kit.Deps {
	return kit.Deps{
		Client:   image{w},
		CatchUp:  w.catchUp,
		Kinds:    builtin{},
		Recorder: func(string) record.EventRecorder { return recorder{w} },
		Clock:    w.Clock,
		Log:      slog.New(slog.DiscardHandler),
	}
}

// builtin serves the built-in kinds for ever.
type builtin struct{}

func (builtin) Resources() []*api.Resource { return api.Resources() }
func (builtin) Changed() <-chan struct{}   { return nil }

func (w *World) fail(verb string, obj client.Object) error {
	if w.Fail == nil {
		return nil
	}
	return w.Fail(verb, obj)
}

func (w *World) after(verb string, obj client.Object) error {
	if w.After == nil {
		return nil
	}
	return w.After(verb, obj)
}

func (w *World) create(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
	if err := w.fail("create", obj); err != nil {
		return err
	}
	w.mu.Lock()
	w.uids++
	uid := types.UID(fmt.Sprintf("uid-%04d", w.uids))
	w.mu.Unlock()
	if obj.GetUID() == "" {
		obj.SetUID(uid)
	}
	if obj.GetName() == "" && obj.GetGenerateName() != "" {
		obj.SetName(obj.GetGenerateName() + string(uid)[4:])
	}
	if ts := obj.GetCreationTimestamp(); ts.IsZero() {
		obj.SetCreationTimestamp(metav1.Time{Time: w.Clock.Now()})
	}
	obj.SetGeneration(1)
	if pod, ok := obj.(*corev1.Pod); ok && pod.Status.Phase == "" {
		pod.Status.Phase = corev1.PodPending
	}
	if err := c.Create(ctx, obj, opts...); err != nil {
		return err
	}
	w.tell(nil, obj)
	return w.after("create", obj)
}

func (w *World) update(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.UpdateOption) error {
	return w.change("update", obj, func() error { return c.Update(ctx, obj, opts...) })
}

func (w *World) patch(ctx context.Context, c client.WithWatch, obj client.Object, p client.Patch, opts ...client.PatchOption) error {
	return w.change("patch", obj, func() error { return c.Patch(ctx, obj, p, opts...) })
}

// samePatched refuses a patch that names another object's UID, as the API server does.
func (w *World) samePatched(obj client.Object, patch client.Patch) error {
	data, err := patch.Data(obj)
	if err != nil {
		return err
	}
	var named metav1.PartialObjectMetadata
	if err := json.Unmarshal(data, &named); err != nil {
		return err
	}
	if now := w.current(obj); now != nil && named.UID != "" && named.UID != now.GetUID() {
		return apierrors.NewConflict(schema.GroupResource{}, obj.GetName(), fmt.Errorf("its UID is %s", now.GetUID()))
	}
	return nil
}

// change writes, counting generations, and tells the followers.
func (w *World) change(verb string, obj client.Object, write func() error) error {
	if err := w.fail(verb, obj); err != nil {
		return err
	}
	old := w.current(obj)
	if old != nil && (verb == "update" || verb == "status") {
		obj.SetGeneration(old.GetGeneration())
		if verb == "update" && !equality.Semantic.DeepEqual(spec(old), spec(obj)) {
			obj.SetGeneration(old.GetGeneration() + 1)
		}
	}
	if err := write(); err != nil {
		return err
	}
	if old != nil {
		w.tell(old, w.current(obj))
	}
	return w.after(verb, obj)
}

func spec(obj client.Object) any {
	if f := field(obj, "Spec"); f.IsValid() {
		return f.Interface()
	}
	return nil
}

func field(obj client.Object, name string) reflect.Value {
	return reflect.ValueOf(obj).Elem().FieldByName(name)
}

// writeStatus writes the annotations too, as the API server does.
func (w *World) writeStatus(ctx context.Context, c client.Client, obj client.Object) error {
	if old := w.current(obj); old != nil && !maps.Equal(old.GetAnnotations(), obj.GetAnnotations()) {
		old.SetAnnotations(obj.GetAnnotations())
		old.SetResourceVersion(obj.GetResourceVersion())
		if err := c.Update(ctx, old); err != nil {
			return err
		}
		obj.SetResourceVersion(old.GetResourceVersion())
	}
	return c.Status().Update(ctx, obj)
}

// current reads obj anew; nil if there is none.
func (w *World) current(obj client.Object) client.Object {
	now := reflect.New(reflect.TypeOf(obj).Elem()).Interface().(client.Object)
	if err := w.Get(context.Background(), client.ObjectKeyFromObject(obj), now); err != nil {
		return nil
	}
	return now
}

func (w *World) delete(ctx context.Context, c client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
	if err := w.fail("delete", obj); err != nil {
		return err
	}
	old := w.current(obj)
	if old == nil {
		return c.Delete(ctx, obj, opts...)
	}
	var o client.DeleteOptions
	o.ApplyOptions(opts)
	if o.Preconditions != nil && o.Preconditions.UID != nil && *o.Preconditions.UID != old.GetUID() {
		return apierrors.NewConflict(schema.GroupResource{}, obj.GetName(), errors.New("the UID in the precondition is another"))
	}
	if o.Preconditions != nil && o.Preconditions.ResourceVersion != nil && *o.Preconditions.ResourceVersion != old.GetResourceVersion() {
		return apierrors.NewConflict(schema.GroupResource{}, obj.GetName(), errors.New("the version in the precondition is another"))
	}
	if err := c.Delete(ctx, obj, opts...); err != nil {
		return err
	}
	w.tell(old, w.current(obj))
	return w.after("delete", obj)
}

func (w *World) tell(old, obj client.Object) {
	if old == nil && obj == nil {
		return
	}
	kind := reflect.TypeOf(obj)
	e := barqueclient.Event{Old: old}
	if obj != nil {
		e.New = obj.DeepCopyObject().(client.Object)
	} else {
		kind = reflect.TypeOf(old)
	}
	w.mu.Lock()
	w.writes++
	followers := slices.Clone(w.followers)
	w.mu.Unlock()
	for _, f := range followers {
		if f.kind == kind {
			f.handle(e)
		}
	}
}

// list reads all objects of kind.
func (w *World) list(ctx context.Context, kind client.Object) ([]client.Object, error) {
	gvk, err := w.GroupVersionKindFor(kind)
	if err != nil {
		return nil, err
	}
	gvk.Kind += "List"
	list, err := w.Scheme().New(gvk)
	if err != nil {
		return nil, err
	}
	if err := w.List(ctx, list.(client.ObjectList)); err != nil {
		return nil, err
	}
	items := reflect.ValueOf(list).Elem().FieldByName("Items")
	objs := make([]client.Object, items.Len())
	for i := range objs {
		objs[i] = items.Index(i).Addr().Interface().(client.Object)
	}
	return objs, nil
}

// Follow implements client.Watcher. An object that is created while the existing ones are handed
// over may come twice.
func (w *World) Follow(ctx context.Context, kind client.Object, synced func(), handle func(barqueclient.Event)) error {
	f := &follower{kind: reflect.TypeOf(kind), handle: handle}
	w.mu.Lock()
	w.followers = append(w.followers, f)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.followers = slices.DeleteFunc(w.followers, func(other *follower) bool { return other == f })
	}()
	objs, err := w.list(ctx, kind)
	if err != nil {
		return err
	}
	for _, obj := range objs {
		handle(barqueclient.Event{New: obj})
	}
	if synced != nil {
		synced()
	}
	<-ctx.Done()
	return ctx.Err()
}
