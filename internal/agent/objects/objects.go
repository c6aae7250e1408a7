// Package objects keeps the config maps, secrets and service account tokens that the node's pods
// refer to. A node may read only what its own pods mention, so each object is followed by a watch
// of its own, for as long as a pod mentions it; nothing else of the cluster is held.
package objects

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"

	"barque.dev/internal/agent/podspec"
)

// Kind is a kind of object that pods refer to.
type Kind string

// The kinds that are followed.
const (
	ConfigMaps Kind = "configmaps"
	Secrets    Kind = "secrets"
)

// Ref names an object.
type Ref struct {
	Kind            Kind
	Namespace, Name string
}

// Store holds the objects. It is safe for concurrent use.
type Store struct {
	client  kubernetes.Interface
	log     *slog.Logger
	changed func(uid types.UID)

	mu      sync.Mutex
	ctx     context.Context
	items   map[Ref]*item
	of      map[types.UID]map[Ref]bool
	running sync.WaitGroup
	stopped bool
}

// item is one object that is followed.
type item struct {
	users  map[types.UID]bool
	cancel context.CancelFunc
	first  chan struct{} // closed once it was asked for

	mu     sync.Mutex
	object runtime.Object
	err    error
}

// New returns an empty store. changed is called, without any lock held, for each pod that refers to
// an object that changed; ctx bounds all watches.
func New(ctx context.Context, client kubernetes.Interface, log *slog.Logger, changed func(uid types.UID)) *Store {
	return &Store{client: client, log: log, changed: changed, ctx: ctx, items: map[Ref]*item{}, of: map[types.UID]map[Ref]bool{}}
}

// Wait returns when every watch has ended. The store's context must have ended.
func (s *Store) Wait() {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.running.Wait()
}

// Use follows everything the pod refers to, and lets go of what it no longer refers to.
func (s *Store) Use(pod *corev1.Pod) {
	wanted := Refs(pod)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return
	}
	for ref := range s.of[pod.UID] {
		if !wanted[ref] {
			s.release(ref, pod.UID)
		}
	}
	for ref := range wanted {
		it := s.items[ref]
		if it == nil {
			ctx, cancel := context.WithCancel(s.ctx)
			it = &item{users: map[types.UID]bool{}, cancel: cancel, first: make(chan struct{})}
			s.items[ref] = it
			s.running.Add(1)
			go func() {
				defer s.running.Done()
				s.follow(ctx, ref, it)
			}()
		}
		it.users[pod.UID] = true
	}
	s.of[pod.UID] = wanted
}

// Drop lets go of everything a pod referred to.
func (s *Store) Drop(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref := range s.of[uid] {
		s.release(ref, uid)
	}
	delete(s.of, uid)
}

func (s *Store) release(ref Ref, uid types.UID) {
	it := s.items[ref]
	if it == nil {
		return
	}
	delete(it.users, uid)
	if len(it.users) == 0 {
		it.cancel()
		delete(s.items, ref)
	}
}

// firstAnswer bounds how long a pod waits for the first answer about an object it refers to.
const firstAnswer = 20 * time.Second

func (s *Store) get(ref Ref) (runtime.Object, error) {
	s.mu.Lock()
	it := s.items[ref]
	s.mu.Unlock()
	if it == nil {
		return nil, fmt.Errorf("%s %s/%s: no pod of this node refers to it", ref.Kind, ref.Namespace, ref.Name)
	}
	timer := time.NewTimer(firstAnswer)
	defer timer.Stop()
	select {
	case <-it.first:
	case <-timer.C:
		return nil, fmt.Errorf("%s %s/%s: no answer from any server within %s", ref.Kind, ref.Namespace, ref.Name, firstAnswer)
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
	it.mu.Lock()
	defer it.mu.Unlock()
	return it.object, it.err
}

// ConfigMap returns a config map some pod refers to. It must not be changed.
func (s *Store) ConfigMap(namespace, name string) (*corev1.ConfigMap, error) {
	object, err := s.get(Ref{ConfigMaps, namespace, name})
	if err != nil {
		return nil, err
	}
	return object.(*corev1.ConfigMap), nil
}

// Secret returns a secret some pod refers to. It must not be changed.
func (s *Store) Secret(namespace, name string) (*corev1.Secret, error) {
	object, err := s.get(Ref{Secrets, namespace, name})
	if err != nil {
		return nil, err
	}
	return object.(*corev1.Secret), nil
}

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
	selector := fields.OneTermEqualSelector("metadata.name", ref.Name).String()
	var list func(metav1.ListOptions) (version string, object runtime.Object, err error)
	var open func(metav1.ListOptions) (watch.Interface, error)
	switch ref.Kind {
	case ConfigMaps:
		api := s.client.CoreV1().ConfigMaps(ref.Namespace)
		list = func(o metav1.ListOptions) (string, runtime.Object, error) {
			l, err := api.List(ctx, o)
			if err != nil {
				return "", nil, err
			}
			for i := range l.Items {
				if l.Items[i].Name == ref.Name {
					return l.ResourceVersion, &l.Items[i], nil
				}
			}
			return l.ResourceVersion, nil, nil
		}
		open = func(o metav1.ListOptions) (watch.Interface, error) { return api.Watch(ctx, o) }
	default:
		api := s.client.CoreV1().Secrets(ref.Namespace)
		list = func(o metav1.ListOptions) (string, runtime.Object, error) {
			l, err := api.List(ctx, o)
			if err != nil {
				return "", nil, err
			}
			for i := range l.Items {
				if l.Items[i].Name == ref.Name {
					return l.ResourceVersion, &l.Items[i], nil
				}
			}
			return l.ResourceVersion, nil, nil
		}
		open = func(o metav1.ListOptions) (watch.Interface, error) { return api.Watch(ctx, o) }
	}
	version, object, err := list(metav1.ListOptions{FieldSelector: selector})
	if err != nil {
		s.set(ref, it, nil, err)
		return err
	}
	s.set(ref, it, object, nil)
	w, err := open(metav1.ListOptions{FieldSelector: selector, ResourceVersion: version, AllowWatchBookmarks: true})
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
			switch e.Type {
			case watch.Error:
				return apierrors.FromObject(e.Object)
			case watch.Bookmark:
				continue
			}
			if named, ok := e.Object.(metav1.Object); !ok || named.GetName() != ref.Name {
				continue
			}
			if e.Type == watch.Deleted {
				s.set(ref, it, nil, nil)
			} else {
				s.set(ref, it, e.Object, nil)
			}
		}
	}
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

// Refs returns every config map and secret the pod refers to.
func Refs(pod *corev1.Pod) map[Ref]bool {
	out := map[Ref]bool{}
	configMap := func(name string) { out[Ref{ConfigMaps, pod.Namespace, name}] = true }
	secret := func(name string) { out[Ref{Secrets, pod.Namespace, name}] = true }
	for _, s := range pod.Spec.ImagePullSecrets {
		if s.Name != "" {
			secret(s.Name)
		}
	}
	podspec.EachContainer(pod, func(c *corev1.Container) bool {
		for _, from := range c.EnvFrom {
			if from.ConfigMapRef != nil {
				configMap(from.ConfigMapRef.Name)
			}
			if from.SecretRef != nil {
				secret(from.SecretRef.Name)
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom == nil {
				continue
			}
			if e.ValueFrom.ConfigMapKeyRef != nil {
				configMap(e.ValueFrom.ConfigMapKeyRef.Name)
			}
			if e.ValueFrom.SecretKeyRef != nil {
				secret(e.ValueFrom.SecretKeyRef.Name)
			}
		}
		return true
	})
	for _, v := range pod.Spec.Volumes {
		if v.ConfigMap != nil {
			configMap(v.ConfigMap.Name)
		}
		if v.Secret != nil {
			secret(v.Secret.SecretName)
		}
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ConfigMap != nil {
				configMap(s.ConfigMap.Name)
			}
			if s.Secret != nil {
				secret(s.Secret.Name)
			}
		}
	}
	return out
}
