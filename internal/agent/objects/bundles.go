package objects

import (
	"context"
	"errors"
	"fmt"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	listers "k8s.io/client-go/listers/certificates/v1"
	"k8s.io/client-go/tools/cache"
)

// bundles follows all cluster trust bundles. Pods can choose them by labels, so that which of them a
// pod refers to is not known before all are.
type bundles struct {
	users   map[types.UID]bool
	cancel  context.CancelFunc
	factory informers.SharedInformerFactory
	lister  listers.ClusterTrustBundleLister
	synced  cache.InformerSynced
}

// wantsBundles tells whether the pod has cluster trust bundles in a volume.
func wantsBundles(pod *corev1.Pod) bool {
	for _, v := range pod.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ClusterTrustBundle != nil {
				return true
			}
		}
	}
	return false
}

// useBundles follows bundles for a pod. The store's lock is held.
func (s *Store) useBundles(uid types.UID) {
	if s.bundles == nil {
		s.bundles = s.followBundles()
	}
	s.bundles.users[uid] = true
}

// dropBundles ends that with the last pod. The store's lock is held.
func (s *Store) dropBundles(uid types.UID) {
	b := s.bundles
	if b == nil {
		return
	}
	delete(b.users, uid)
	if len(b.users) > 0 {
		return
	}
	s.bundles = nil
	b.cancel()
}

func (s *Store) followBundles() *bundles {
	ctx, cancel := context.WithCancel(s.ctx)
	b := &bundles{users: map[types.UID]bool{}, cancel: cancel, factory: informers.NewSharedInformerFactory(s.client, 0)}
	all := b.factory.Certificates().V1().ClusterTrustBundles()
	b.lister, b.synced = all.Lister(), all.Informer().HasSynced
	tell := func() {
		s.mu.Lock()
		users := make([]types.UID, 0, len(b.users))
		for uid := range b.users {
			users = append(users, uid)
		}
		s.mu.Unlock()
		for _, uid := range users {
			s.changed(uid)
		}
	}
	_, _ = all.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{ // fails only once stopped
		AddFunc: func(any) { tell() }, UpdateFunc: func(any, any) { tell() }, DeleteFunc: func(any) { tell() },
	})
	b.factory.Start(ctx.Done())
	s.running.Add(1)
	go func() {
		defer s.running.Done()
		<-ctx.Done()
		b.factory.Shutdown()
	}()
	return b
}

// TrustBundles returns all cluster trust bundles, if some pod refers to any. They must not be changed.
func (s *Store) TrustBundles(ctx context.Context) ([]*certificatesv1.ClusterTrustBundle, error) {
	s.mu.Lock()
	b := s.bundles
	s.mu.Unlock()
	if b == nil {
		return nil, errors.New("cluster trust bundles: no pod of this node refers to any")
	}
	ctx, cancel := context.WithTimeout(ctx, firstAnswer)
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), b.synced) {
		return nil, fmt.Errorf("cluster trust bundles: no answer from any server: %w", context.Cause(ctx))
	}
	return b.lister.List(labels.Everything())
}
