package objects

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// The delays between attempts to read an object that cannot be read.
const (
	retryMin = 200 * time.Millisecond
	retryMax = 10 * time.Second
)

// follow keeps one object up to date until ctx ends.
func (s *Store) follow(ctx context.Context, ref Ref, it *item) {
	retry := retryMin
	for ctx.Err() == nil {
		err := s.followOnce(ctx, ref, it)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			s.log.Debug("following an object failed", "kind", ref.Kind, "namespace", ref.Namespace, "name", ref.Name, "err", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(retry):
			}
			retry = min(2*retry, retryMax)
			continue
		}
		retry = retryMin
	}
}

// followOnce reads the object and follows its changes until the watch ends.
func (s *Store) followOnce(ctx context.Context, ref Ref, it *item) error {
	r := s.reader(ref)
	o := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", ref.Name).String()}
	object, version, err := r.read(ctx, ref.Name, o)
	s.set(ref, it, object, err)
	if err != nil {
		return err
	}
	o.ResourceVersion, o.AllowWatchBookmarks = version, true
	w, err := r.watch(ctx, o)
	if err != nil {
		return err
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-w.ResultChan():
			if !ok {
				return nil
			}
			if e.Type == watch.Error {
				return apierrors.FromObject(e.Object)
			}
			s.apply(ref, it, e)
		}
	}
}

// apply takes in an event of the watch, if it is about the object.
func (s *Store) apply(ref Ref, it *item, e watch.Event) {
	named, ok := e.Object.(metav1.Object)
	switch {
	case e.Type == watch.Bookmark || !ok || named.GetName() != ref.Name:
	case e.Type == watch.Deleted:
		s.set(ref, it, nil, nil)
	default:
		s.set(ref, it, e.Object, nil)
	}
}

// reader reads the objects of one kind in one namespace.
type reader struct {
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func (s *Store) reader(ref Ref) reader {
	if ref.Kind == ConfigMaps {
		return readerOf(s.client.CoreV1().ConfigMaps(ref.Namespace))
	}
	return readerOf(s.client.CoreV1().Secrets(ref.Namespace))
}

// readerOf makes a reader of a client whose lists are of type L.
func readerOf[L runtime.Object](api interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}) reader {
	return reader{
		list:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return api.List(ctx, o) },
		watch: api.Watch,
	}
}

// read returns the object of that name, nil if there is none, and the version it was read at.
func (r reader) read(ctx context.Context, name string, o metav1.ListOptions) (object runtime.Object, version string, err error) {
	list, err := r.list(ctx, o)
	if err != nil {
		return nil, "", err
	}
	m, err := meta.ListAccessor(list)
	if err != nil {
		return nil, "", err
	}
	err = meta.EachListItem(list, func(item runtime.Object) error {
		if named, ok := item.(metav1.Object); ok && named.GetName() == name {
			object = item
		}
		return nil
	})
	return object, m.GetResourceVersion(), err
}

// set records an answer about an object and tells its users if it is news. Once known, an object
// stays known while no server answers.
func (s *Store) set(ref Ref, it *item, object runtime.Object, err error) {
	if object == nil && err == nil {
		err = apierrors.NewNotFound(schema.GroupResource{Resource: string(ref.Kind)}, ref.Name)
	}
	it.mu.Lock()
	known := it.object != nil
	if err != nil && known && !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
		it.mu.Unlock()
		return
	}
	news := version(it.object) != version(object) || fmt.Sprint(err) != fmt.Sprint(it.err)
	it.object, it.err = object, err
	it.mu.Unlock()
	select {
	case <-it.first:
	default:
		close(it.first)
	}
	if !news {
		return
	}
	s.mu.Lock()
	users := make([]types.UID, 0, len(it.users))
	for uid := range it.users {
		users = append(users, uid)
	}
	s.mu.Unlock()
	for _, uid := range users {
		s.changed(uid)
	}
}

func version(o runtime.Object) string {
	if m, ok := o.(metav1.Object); ok && o != nil {
		return string(m.GetUID()) + "/" + m.GetResourceVersion()
	}
	return ""
}
