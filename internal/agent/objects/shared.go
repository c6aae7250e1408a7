package objects

import (
	"context"
	"fmt"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// The kinds that are followed as a whole while a pod of the node needs them: which object it is that a
// pod needs is not known before all are, or before the object is made.
const (
	trustBundles        Kind = "clustertrustbundles"
	certificateRequests Kind = "podcertificaterequests"
)

// sharedKind says what is followed as a whole.
type sharedKind struct {
	// wanted tells whether a source of a volume needs it.
	wanted   func(*corev1.VolumeProjection) bool
	selector fields.Selector
	informer func(informers.SharedInformerFactory) cache.SharedIndexInformer
	// pod is whom an object concerns; empty for all that need the kind.
	pod func(object any) types.UID
}

// sharedKinds are what a node may follow: all bundles, and the requests that it made itself.
func sharedKinds(node string) map[Kind]sharedKind {
	return map[Kind]sharedKind{
		trustBundles: {
			wanted:   func(p *corev1.VolumeProjection) bool { return p.ClusterTrustBundle != nil },
			selector: fields.Everything(),
			informer: func(f informers.SharedInformerFactory) cache.SharedIndexInformer {
				return f.Certificates().V1().ClusterTrustBundles().Informer()
			},
			pod: func(any) types.UID { return "" },
		},
		certificateRequests: {
			wanted:   func(p *corev1.VolumeProjection) bool { return p.PodCertificate != nil },
			selector: fields.OneTermEqualSelector("spec.nodeName", node),
			informer: func(f informers.SharedInformerFactory) cache.SharedIndexInformer {
				return f.Certificates().V1().PodCertificateRequests().Informer()
			},
			pod: func(object any) types.UID {
				if r, ok := object.(*certificatesv1.PodCertificateRequest); ok {
					return r.Spec.PodUID
				}
				return ""
			},
		},
	}
}

// wantedBy tells whether the pod needs the kind.
func (k sharedKind) wantedBy(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(p corev1.VolumeProjection) bool { return k.wanted(&p) })
	})
}

// shared is a kind that is being followed.
type shared struct {
	users   map[types.UID]bool
	cancel  context.CancelFunc
	objects cache.Store
	synced  cache.InformerSynced
	news    chan struct{} // closed by the next change
}

// share follows a kind for a pod. The store's lock is held.
func (s *Store) share(kind Kind, uid types.UID) {
	if s.shared[kind] == nil {
		s.shared[kind] = s.followAll(s.kinds[kind])
	}
	s.shared[kind].users[uid] = true
}

// unshare ends that with the last pod. The store's lock is held.
func (s *Store) unshare(kind Kind, uid types.UID) {
	all := s.shared[kind]
	if all == nil {
		return
	}
	delete(all.users, uid)
	if len(all.users) > 0 {
		return
	}
	delete(s.shared, kind)
	all.cancel()
}

func (s *Store) followAll(kind sharedKind) *shared {
	ctx, cancel := context.WithCancel(s.ctx)
	factory := informers.NewSharedInformerFactoryWithOptions(s.client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = kind.selector.String()
	}))
	informer := kind.informer(factory)
	all := &shared{
		users: map[types.UID]bool{}, cancel: cancel,
		objects: informer.GetStore(), synced: informer.HasSynced, news: make(chan struct{}),
	}
	tell := func(object any) { s.tell(all, kind.pod(object)) }
	_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{ // fails only once stopped
		AddFunc: tell, UpdateFunc: func(_, object any) { tell(object) }, DeleteFunc: tell,
	})
	factory.Start(ctx.Done())
	s.running.Add(1)
	go func() {
		defer s.running.Done()
		<-ctx.Done()
		factory.Shutdown()
	}()
	return all
}

// tell tells of a change: one pod, or all that need the kind.
func (s *Store) tell(all *shared, only types.UID) {
	s.mu.Lock()
	close(all.news)
	all.news = make(chan struct{})
	var users []types.UID
	for uid := range all.users {
		if only == "" || uid == only {
			users = append(users, uid)
		}
	}
	s.mu.Unlock()
	for _, uid := range users {
		s.changed(uid)
	}
}

// sharedObjects are all objects of a kind that some pod needs, once they are known, and a channel that is
// closed by the next change of any of them.
func (s *Store) sharedObjects(ctx context.Context, kind Kind) (cache.Store, <-chan struct{}, error) {
	s.mu.Lock()
	all := s.shared[kind]
	var news <-chan struct{}
	if all != nil {
		news = all.news
	}
	s.mu.Unlock()
	if all == nil {
		return nil, nil, fmt.Errorf("%s: no pod of this node needs any", kind)
	}
	ctx, cancel := context.WithTimeout(ctx, firstAnswer)
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), all.synced) {
		return nil, nil, fmt.Errorf("%s: no answer from any server: %w", kind, context.Cause(ctx))
	}
	return all.objects, news, nil
}

// TrustBundles returns all cluster trust bundles, if some pod refers to any. They must not be changed.
func (s *Store) TrustBundles(ctx context.Context) ([]*certificatesv1.ClusterTrustBundle, error) {
	objects, _, err := s.sharedObjects(ctx, trustBundles)
	if err != nil {
		return nil, err
	}
	var out []*certificatesv1.ClusterTrustBundle
	for _, object := range objects.List() {
		out = append(out, object.(*certificatesv1.ClusterTrustBundle))
	}
	return out, nil
}
