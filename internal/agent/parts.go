package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/image"
	"barque.dev/internal/agent/nodestatus"
	"barque.dev/internal/agent/objects"
	"barque.dev/internal/agent/podspec"
	"barque.dev/internal/agent/volume"
	"barque.dev/internal/agent/worker"
)

// parts are what lives as long as Run.
type parts struct {
	workers *worker.Manager
	volumes *volume.Manager
	puller  *image.Puller
	view    *view
}

// assemble makes the parts. stop ends them; their context must have ended before.
func (a *Agent) assemble(ctx context.Context) (stop func(), err error) {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: a.Client.CoreV1().Events("")})
	recorder := broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: a.NodeName})

	store := objects.New(ctx, a.Client, a.NodeName, a.Log, func(uid types.UID) { a.parts.workers.Refresh(uid) })
	tokens := objects.NewTokens(a.Client, time.Now)
	certificates := objects.NewCertificates(a.Client, a.NodeName, store, recorder, time.Now)
	a.parts.volumes = &volume.Manager{
		Root: a.RootDir, Sources: store, Tokens: tokens, Claims: claims{a.Client}, Bundles: store, Certificates: certificates, Log: a.Log,
	}
	a.parts.puller = image.NewPuller(a.Images, store, time.Now)
	a.parts.view = newView(a.Client, a.NodeName, a.NodeIPs, a.node)
	a.parts.workers = worker.New(ctx, worker.Config{
		Client: a.Client, Runtime: a.Runtime, Volumes: a.parts.volumes, Objects: store, Issued: []worker.Forgetter{tokens, certificates},
		Puller: a.parts.puller, Cgroups: a.cgroups, Node: a.parts.view, Spec: a.spec, Recorder: recorder,
		RuntimeName: a.runtimeName(ctx), Metrics: a.Metrics, Log: a.Log,
	})
	a.parts.view.start(ctx, a.parts.workers.WakeAll)
	return func() {
		a.parts.workers.Wait()
		store.Wait()
		a.parts.view.waiting.Wait()
		a.parts.view.factory.Shutdown()
		a.parts.view.nodes.Shutdown()
		broadcaster.Shutdown()
	}, nil
}

// runtimeName is the scheme of container ids; a runtime that does not answer yet is containerd.
func (a *Agent) runtimeName(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	v, err := a.Runtime.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil || v.GetRuntimeName() == "" {
		return "containerd"
	}
	return v.GetRuntimeName()
}

// access returns who checks callers of the node's API: client certificates by the cluster's
// authority, tokens and permissions by asking the API server.
func (a *Agent) access() (authenticator.Request, authorizer.Authorizer, error) {
	if a.Authenticator != nil && a.Authorizer != nil {
		return a.Authenticator, a.Authorizer, nil
	}
	ca, err := dynamiccertificates.NewStaticCAContent("client-ca", a.ClientCA)
	if err != nil {
		return nil, nil, fmt.Errorf("agent: client authorities: %w", err)
	}
	backoff := wait.Backoff{Duration: 200 * time.Millisecond, Factor: 1.5, Jitter: 0.2, Steps: 5}
	authn, _, err := authenticatorfactory.DelegatingAuthenticatorConfig{
		TokenAccessReviewClient:            a.Client.AuthenticationV1(),
		TokenAccessReviewTimeout:           10 * time.Second,
		WebhookRetryBackoff:                &backoff,
		CacheTTL:                           2 * time.Minute,
		ClientCertificateCAContentProvider: ca,
	}.New()
	if err != nil {
		return nil, nil, fmt.Errorf("agent: authentication: %w", err)
	}
	authz, err := authorizerfactory.DelegatingAuthorizerConfig{
		SubjectAccessReviewClient: a.Client.AuthorizationV1(),
		AllowCacheTTL:             5 * time.Minute,
		DenyCacheTTL:              30 * time.Second,
		WebhookRetryBackoff:       &backoff,
	}.New()
	if err != nil {
		return nil, nil, fmt.Errorf("agent: authorization: %w", err)
	}
	return authn, authz, nil
}

// view is what workers see of the node and the cluster. It implements worker.Node.
type view struct {
	client   kubernetes.Interface
	name     string
	ips      []string
	reporter *nodestatus.Reporter
	factory  informers.SharedInformerFactory // services
	nodes    informers.SharedInformerFactory // this node
	services listers.ServiceLister
	synced   cache.InformerSynced
	waiting  sync.WaitGroup
}

func newView(client kubernetes.Interface, name string, ips []string, reporter *nodestatus.Reporter) *view {
	v := &view{client: client, name: name, ips: ips, reporter: reporter}
	v.factory = informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(slim))
	v.services = v.factory.Core().V1().Services().Lister()
	v.synced = v.factory.Core().V1().Services().Informer().HasSynced
	v.nodes = informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(slim), informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = "metadata.name=" + name
	}))
	return v
}

// start follows services and the node's own object; known is called when services are known.
func (v *view) start(ctx context.Context, known func()) {
	seen := func(o any) {
		if n, ok := o.(*corev1.Node); ok && n.Name == v.name {
			v.reporter.Seen(n)
		}
	}
	_, _ = v.nodes.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{ // fails only once stopped
		AddFunc:    seen,
		UpdateFunc: func(_, o any) { seen(o) },
		DeleteFunc: func(o any) {
			if n, ok := alsoGone(o).(*corev1.Node); ok && n.Name == v.name {
				v.reporter.Lost()
			}
		},
	})
	v.factory.Start(ctx.Done())
	v.nodes.Start(ctx.Done())
	v.waiting.Add(1)
	go func() {
		defer v.waiting.Done()
		if cache.WaitForCacheSync(ctx.Done(), v.synced) {
			known()
		}
	}()
}

// Object implements worker.Node.
func (v *view) Object() *corev1.Node { return v.reporter.Node() }

// Facts implements worker.Node.
func (v *view) Facts() podspec.Facts {
	return podspec.Facts{NodeName: v.name, HostIPs: v.ips, Allocatable: v.reporter.Allocatable()}
}

// Services implements worker.Node.
func (v *view) Services() ([]*corev1.Service, bool) {
	if !v.synced() {
		return nil, false
	}
	list, err := v.services.List(labels.Everything())
	return list, err == nil
}

// Handler implements worker.Node.
func (v *view) Handler(ctx context.Context, pod *corev1.Pod) (string, error) {
	if pod.Spec.RuntimeClassName == nil || *pod.Spec.RuntimeClassName == "" {
		return "", nil
	}
	class, err := v.client.NodeV1().RuntimeClasses().Get(ctx, *pod.Spec.RuntimeClassName, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("runtime class %s: %w", *pod.Spec.RuntimeClassName, err)
	}
	return class.Handler, nil
}
