// Package objects keeps the config maps, secrets, service account tokens and certificates that the
// node's pods refer to. A node may read only what its own pods mention, so each object is followed by a watch
// of its own, for as long as a pod mentions it; nothing else of the cluster is held. Cluster trust
// bundles, which every node may read, and the node's own requests for certificates are followed
// together while a pod has any.
package objects

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
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
	kinds   map[Kind]sharedKind
	shared  map[Kind]*shared // those that some pod needs
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

// New returns an empty store of a node. changed is called, without any lock held, for each pod that refers to
// an object that changed; ctx bounds all watches.
func New(ctx context.Context, client kubernetes.Interface, node string, log *slog.Logger, changed func(uid types.UID)) *Store {
	return &Store{
		client: client, log: log, changed: changed, ctx: ctx, items: map[Ref]*item{}, of: map[types.UID]map[Ref]bool{},
		kinds: sharedKinds(node), shared: map[Kind]*shared{},
	}
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
	for kind, k := range s.kinds {
		if k.wantedBy(pod) {
			s.share(kind, pod.UID)
		}
	}
}

// Drop lets go of everything a pod referred to.
func (s *Store) Drop(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ref := range s.of[uid] {
		s.release(ref, uid)
	}
	delete(s.of, uid)
	for kind := range s.kinds {
		s.unshare(kind, uid)
	}
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
