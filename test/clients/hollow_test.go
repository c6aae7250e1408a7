package clients

import (
	"context"
	"fmt"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// hollowFlags are for servers whose nodes are hollow: nobody renews their leases, and no server is to look for them.
func hollowFlags() []string {
	return []string{"--node-monitor-grace-period=1h", "--fence-after=30m"}
}

// fate is the annotation that says what a hollow node does with a pod: it "succeeds", "fails" or "hangs"; else it runs.
const fate = "example.com/fate"

const hollowName = "hollow"

// hollowNode plays a node until the test ends: what is bound to it has started at once, as far as the API can tell.
// Nothing runs.
type hollowNode struct {
	clients kubernetes.Interface
	mu      sync.Mutex
	err     error // the first
}

func startHollowNode(t *testing.T, config *rest.Config) {
	t.Helper()
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	n := &hollowNode{clients: clients}
	if err := n.register(t.Context()); err != nil {
		t.Fatal(err)
	}
	factory := informers.NewSharedInformerFactoryWithOptions(clients, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", hollowName).String()
	}))
	pods := factory.Core().V1().Pods().Informer()
	handle := func(o any) {
		if pod, ok := o.(*corev1.Pod); ok {
			n.play(t.Context(), pod)
		}
	}
	if _, err := pods.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: handle, UpdateFunc: func(_, o any) { handle(o) }}); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	factory.Start(stop)
	t.Cleanup(func() {
		close(stop)
		factory.Shutdown()
		if n.err != nil {
			t.Error(n.err)
		}
	})
}

// register makes the node known and ready.
func (n *hollowNode) register(ctx context.Context) error {
	node, err := n.clients.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: hollowName}}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("make a hollow node: %w", err)
	}
	room := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourcePods: resource.MustParse("500"),
	}
	node.Status = corev1.NodeStatus{Capacity: room, Allocatable: room, Conditions: []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Hollow", LastHeartbeatTime: metav1.Now(), LastTransitionTime: metav1.Now(),
	}}}
	patch := fmt.Appendf(nil, `{"status":%s}`, encoded(node.Status))
	if _, err := n.clients.CoreV1().Nodes().Patch(ctx, hollowName, strategic, patch, metav1.PatchOptions{}, "status"); err != nil {
		return fmt.Errorf("make the hollow node ready: %w", err)
	}
	return nil
}

// play brings a pod's status to where it shall be. What was deleted meanwhile is no fault.
func (n *hollowNode) play(ctx context.Context, pod *corev1.Pod) {
	var err error
	pods := n.clients.CoreV1().Pods(pod.Namespace)
	if pod.DeletionTimestamp != nil {
		err = pods.Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64), Preconditions: metav1.NewUIDPreconditions(string(pod.UID))})
	} else if status, changed := played(pod); changed {
		_, err = pods.Patch(ctx, pod.Name, strategic, fmt.Appendf(nil, `{"metadata":{"uid":%q},"status":%s}`, pod.UID, encoded(status)), metav1.PatchOptions{}, "status")
	}
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) || ctx.Err() != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err == nil {
		n.err = fmt.Errorf("the hollow node and pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
}

// played is the status that a pod gets next, if it has none yet.
func played(pod *corev1.Pod) (status corev1.PodStatus, changed bool) {
	if pod.Status.Phase != corev1.PodPending || pod.Annotations[fate] == "hangs" {
		return status, false
	}
	now := metav1.Now()
	state := corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: now}}
	ready := corev1.ConditionFalse
	switch pod.Annotations[fate] {
	case "succeeds":
		status.Phase = corev1.PodSucceeded
		state = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{Reason: "Completed", StartedAt: now, FinishedAt: now}}
	case "fails":
		status.Phase = corev1.PodFailed
		state = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", StartedAt: now, FinishedAt: now}}
	default:
		status.Phase, ready = corev1.PodRunning, corev1.ConditionTrue
	}
	status.StartTime = &now
	for _, kind := range []corev1.PodConditionType{corev1.PodInitialized, corev1.ContainersReady, corev1.PodReady} {
		condition := corev1.PodCondition{Type: kind, Status: ready, LastTransitionTime: now}
		if kind == corev1.PodInitialized {
			condition.Status = corev1.ConditionTrue
		}
		status.Conditions = append(status.Conditions, condition)
	}
	for _, c := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, Image: c.Image, State: state, Ready: ready == corev1.ConditionTrue, Started: new(ready == corev1.ConditionTrue),
		})
	}
	return status, true
}
