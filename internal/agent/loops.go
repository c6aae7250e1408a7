package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubelettypes "k8s.io/kubelet/pkg/types"

	"barque.dev/internal/agent/live"
	"barque.dev/internal/agent/podspec"
)

// followPods hands the node's pods to their workers. ready is called when all are known.
func (a *Agent) followPods(ctx context.Context, ready func()) error {
	factory := informers.NewSharedInformerFactoryWithOptions(a.Client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", a.NodeName).String()
	}), informers.WithTransform(slim))
	handle, err := factory.Core().V1().Pods().Informer().AddEventHandler(a.podHandlers())
	if err != nil {
		return fmt.Errorf("follow pods: %w", err)
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), handle.HasSynced) {
		return nil
	}
	for {
		err := a.parts.workers.Adopt(ctx)
		if err == nil || ctx.Err() != nil {
			break
		}
		a.Log.Warn("looking for what pods have left behind", "err", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return nil
		}
	}
	a.known.Store(true)
	ready()
	<-ctx.Done()
	return nil
}

// podHandlers hand each pod of the node to its worker.
func (a *Agent) podHandlers() cache.ResourceEventHandlerFuncs {
	mine := func(o any) (*corev1.Pod, bool) {
		pod, ok := alsoGone(o).(*corev1.Pod)
		return pod, ok && pod.Spec.NodeName == a.NodeName
	}
	return cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) {
			if pod, ok := mine(o); ok {
				a.parts.workers.Update(pod)
			}
		},
		UpdateFunc: func(before, o any) {
			old, _ := mine(before)
			pod, ok := mine(o)
			if !ok {
				return
			}
			if old != nil && old.UID != pod.UID {
				a.parts.workers.Delete(old) // deleted and made anew while the watch was down
			}
			a.parts.workers.Update(pod)
		},
		DeleteFunc: func(o any) {
			if pod, ok := mine(o); ok {
				a.parts.workers.Delete(pod)
			}
		},
	}
}

// slim drops what nobody here looks at from an object that an informer is to hold.
func slim(o any) (any, error) {
	if m, ok := o.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	return o, nil
}

// alsoGone returns the object itself for one whose deletion the informer did not see.
func alsoGone(o any) any {
	if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
		return gone.Obj
	}
	return o
}

// The delays between attempts to follow the runtime's events, and the interval at which a runtime
// that has no events is asked instead.
const (
	eventsRetryMin  = 100 * time.Millisecond
	eventsRetryMax  = 2 * time.Second
	eventsFallback  = 2 * time.Second
	eventsSettle    = time.Second
	fenceCallBounds = 5 * time.Second
)

// followRuntime wakes pods' workers when the runtime reports something about their containers.
func (a *Agent) followRuntime(ctx context.Context) error {
	retry := eventsRetryMin
	for ctx.Err() == nil {
		began := time.Now()
		err := a.runtimeEvents(ctx)
		if ctx.Err() != nil {
			return nil
		}
		a.node.Wake()
		if status.Code(err) == codes.Unimplemented {
			retry = eventsFallback
		} else if time.Since(began) > eventsRetryMax {
			retry = eventsRetryMin
		}
		a.Log.Debug("following the runtime's events ended", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
		a.parts.workers.WakeAll()
		retry = min(2*retry, eventsRetryMax)
	}
	return nil
}

func (a *Agent) runtimeEvents(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := a.Runtime.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		return err
	}
	// What happened while nobody listened is found by looking; a second look covers the moment
	// between the call and the runtime's subscription.
	a.parts.workers.WakeAll()
	a.node.Wake()
	settle := time.AfterFunc(eventsSettle, a.parts.workers.WakeAll)
	defer settle.Stop()
	for {
		event, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		s := event.GetPodSandboxStatus()
		uid := s.GetMetadata().GetUid()
		if uid == "" {
			uid = s.GetLabels()[kubelettypes.KubernetesPodUIDLabel]
		}
		if uid == "" {
			a.parts.workers.WakeAll() // somebody's container, but it does not say whose
			continue
		}
		a.parts.workers.Wake(types.UID(uid))
	}
}

// newMonitor returns what watches over the connection to the servers.
func (a *Agent) newMonitor(ctx context.Context) (*live.Monitor, error) {
	return live.New(live.Config{
		NodeName: a.NodeName, Servers: a.LiveServers, Bound: a.FenceBound, Log: a.Log,
		Lost: func() {
			a.parts.workers.Fence()
			go a.fenceUnknown(ctx)
		},
		Found: a.parts.workers.Unfence,
	})
}

// fenceUnknown stops the sandboxes of pods that must not run twice and that have no worker, since
// no server has answered from the start.
func (a *Agent) fenceUnknown(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, fenceCallBounds)
	defer cancel()
	list, err := a.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
	}})
	if err != nil {
		a.Log.Error("looking for pods that must not run twice", "err", err)
		return
	}
	for _, s := range list.GetItems() {
		uid := types.UID(s.GetLabels()[kubelettypes.KubernetesPodUIDLabel])
		if s.GetAnnotations()[podspec.AnnotationRunOnce] != "true" || a.parts.workers.Known(uid) {
			continue
		}
		go func() {
			if _, err := a.Runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.GetId()}); err != nil {
				a.Log.Error("stopping a pod that must not run twice", "sandbox", s.GetId(), "err", err)
			}
		}()
	}
}
