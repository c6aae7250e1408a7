package nodestatus

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/nodedeclaredfeatures/features/inplacepodresize"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/cri"
)

// The stock intervals.
const (
	checkInterval = 10 * time.Second
	heartbeat     = 5 * time.Minute
	apiCall       = 10 * time.Second
	retry         = 500 * time.Millisecond
	// unready is how soon a node that is not ready looks again: its pods wait for it.
	unready = 250 * time.Millisecond
)

// Config configures a Reporter.
type Config struct {
	Client   kubernetes.Interface
	NodeName string
	// Addresses of the node, the first one the node's IP.
	Addresses []string
	Hostname  string
	Runtime   cri.Runtime
	Images    cri.Images
	Dir       string
	Port      int32
	MaxPods   int64
	Version   string // of the node, such as v1.37.1+barque
	Reserved  Reserved
	// Labels and Taints are set when the node is registered; labels also later.
	Labels map[string]string
	Taints []corev1.Taint
	Log    *slog.Logger
}

// Reporter registers the node and keeps telling about it. Its methods are safe for concurrent use.
type Reporter struct {
	Config
	wake chan struct{}

	mu       sync.Mutex
	node     *corev1.Node
	losses   int // how often the node was lost
	facts    Facts
	lastSent time.Time
	version  *runtimeapi.VersionResponse
}

// New returns a Reporter with the machine's facts.
func New(c Config) (*Reporter, error) {
	facts, err := Collect(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("facts about the node: %w", err)
	}
	return &Reporter{Config: c, facts: facts, wake: make(chan struct{}, 1)}, nil
}

// Facts returns the machine's facts as they were read last.
func (r *Reporter) Facts() Facts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.facts
}

// Allocatable is what pods can have.
func (r *Reporter) Allocatable() corev1.ResourceList {
	_, allocatable := Resources(r.Facts(), r.Reserved, r.MaxPods)
	return allocatable
}

// Node returns the node as the API server had it last; nil before registration. It must not be
// changed.
func (r *Reporter) Node() *corev1.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.node
}

// Seen hands over the node as the API server has it.
func (r *Reporter) Seen(node *corev1.Node) {
	r.mu.Lock()
	if r.node == nil || !older(node, r.node) {
		r.node = node
	}
	r.mu.Unlock()
}

func older(a, b *corev1.Node) bool {
	x, err := strconv.ParseUint(a.ResourceVersion, 10, 64)
	if err != nil {
		return false
	}
	y, err := strconv.ParseUint(b.ResourceVersion, 10, 64)
	return err == nil && x < y && a.UID == b.UID
}

// Lost hands over that the API server no longer has the node: it is registered again.
func (r *Reporter) Lost() {
	r.mu.Lock()
	r.node = nil
	r.losses++
	r.mu.Unlock()
	r.Wake()
}

// Wake makes the reporter look at the node now.
func (r *Reporter) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run registers the node, calls registered, and keeps its status until ctx ends.
func (r *Reporter) Run(ctx context.Context, registered func()) error {
	var lease sync.WaitGroup
	defer lease.Wait()
	lease.Add(1)
	go func() {
		defer lease.Done()
		r.keepLease(ctx)
	}()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-timer.C:
		}
		next := checkInterval
		switch err := r.sync(ctx); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			r.Log.Debug("telling about the node failed", "node", r.NodeName, "err", err)
			next = retry
		default:
			if registered != nil {
				registered()
				registered = nil
			}
			if !r.ready() {
				next = unready
			}
		}
		timer.Reset(next)
	}
}

// ready tells whether the node was ready when its status was last sent.
func (r *Reporter) ready() bool {
	node := r.Node()
	if node == nil {
		return false
	}
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// sync registers the node if need be, and sends its status if it changed or is due.
func (r *Reporter) sync(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, apiCall)
	defer cancel()
	facts, err := Collect(r.Dir)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.facts = facts
	node, losses := r.node, r.losses
	r.mu.Unlock()
	// An answer from before a loss must not hide the loss.
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.losses != losses {
			r.node = nil
		}
	}()
	if node == nil {
		if node, err = r.register(ctx); err != nil {
			return err
		}
	}
	desired := r.status(ctx, node.Status, facts)
	r.mu.Lock()
	due := time.Since(r.lastSent) >= heartbeat
	r.mu.Unlock()
	if !due && sameStatus(node.Status, desired) {
		return nil
	}
	return r.patch(ctx, node, desired)
}

// sameStatus compares statuses but for their heartbeats.
func sameStatus(a, b corev1.NodeStatus) bool {
	x, y := a.DeepCopy(), b.DeepCopy()
	for _, s := range []*corev1.NodeStatus{x, y} {
		for i := range s.Conditions {
			s.Conditions[i].LastHeartbeatTime = metav1.Time{}
		}
	}
	return equality.Semantic.DeepEqual(x, y)
}

func (r *Reporter) register(ctx context.Context) (*corev1.Node, error) {
	nodes := r.Client.CoreV1().Nodes()
	node, err := nodes.Get(ctx, r.NodeName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		fresh := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{
				Name: r.NodeName, Labels: r.labels(),
				Annotations: map[string]string{"volumes.kubernetes.io/controller-managed-attach-detach": "true"},
			},
			Spec: corev1.NodeSpec{Taints: r.Taints},
		}
		fresh.Status = r.status(ctx, fresh.Status, r.Facts())
		node, err = nodes.Create(ctx, fresh, metav1.CreateOptions{})
		if err == nil {
			r.Log.Info("node is registered", "node", r.NodeName)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("register node %s: %w", r.NodeName, err)
	}
	missing := map[string]string{}
	for k, v := range r.labels() {
		if node.Labels[k] != v {
			missing[k] = v
		}
	}
	if len(missing) > 0 {
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": missing}})
		if err != nil {
			return nil, err
		}
		if node, err = nodes.Patch(ctx, r.NodeName, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return nil, fmt.Errorf("label node %s: %w", r.NodeName, err)
		}
	}
	r.Seen(node)
	return node, nil
}

func (r *Reporter) labels() map[string]string {
	out := map[string]string{
		corev1.LabelHostname:      r.Hostname,
		corev1.LabelOSStable:      runtime.GOOS,
		corev1.LabelArchStable:    runtime.GOARCH,
		"beta.kubernetes.io/os":   runtime.GOOS,
		"beta.kubernetes.io/arch": runtime.GOARCH,
	}
	for k, v := range r.Labels {
		out[k] = v
	}
	return out
}

// status returns the node's status as it should be.
func (r *Reporter) status(ctx context.Context, old corev1.NodeStatus, facts Facts) corev1.NodeStatus {
	s := *old.DeepCopy()
	s.Capacity, s.Allocatable = Resources(facts, r.Reserved, r.MaxPods)
	keepOthers(&s, old.Capacity)
	s.Addresses = nil
	for _, a := range r.Addresses {
		s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	s.Addresses = append(s.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: r.Hostname})
	s.DaemonEndpoints.KubeletEndpoint.Port = r.Port
	s.DeclaredFeatures = []string{inplacepodresize.IPPRInitContainersFeatureGate}
	var health Health
	s.NodeInfo, health = r.info(ctx, facts)
	s.Conditions = Conditions(facts, r.Reserved, health, old.Conditions, time.Now())
	if list, err := r.Images.ListImages(ctx, &runtimeapi.ListImagesRequest{}); err == nil {
		var images []corev1.ContainerImage
		for _, i := range list.GetImages() {
			images = append(images, corev1.ContainerImage{Names: append(append([]string(nil), i.GetRepoDigests()...), i.GetRepoTags()...), SizeBytes: int64(i.GetSize())})
		}
		s.Images = ImageList(images)
	}
	return s
}

// info asks the runtime who it is and how it does.
func (r *Reporter) info(ctx context.Context, f Facts) (corev1.NodeSystemInfo, Health) {
	info := corev1.NodeSystemInfo{
		MachineID: f.MachineID, SystemUUID: f.SystemUUID, BootID: f.BootID, KernelVersion: f.Kernel, OSImage: f.OSImage,
		KubeletVersion: r.Version, OperatingSystem: runtime.GOOS, Architecture: runtime.GOARCH,
	}
	var h Health
	r.mu.Lock()
	version := r.version
	r.mu.Unlock()
	if version == nil {
		if v, err := r.Runtime.Version(ctx, &runtimeapi.VersionRequest{}); err == nil {
			version = v
			r.mu.Lock()
			r.version = v
			r.mu.Unlock()
		}
	}
	info.ContainerRuntimeVersion = version.GetRuntimeName() + "://" + version.GetRuntimeVersion()
	reply, err := r.Runtime.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		h.Problems = append(h.Problems, "container runtime is down: "+err.Error())
		return info, h
	}
	for _, c := range reply.GetStatus().GetConditions() {
		switch {
		case c.GetStatus():
		case c.GetType() == runtimeapi.RuntimeReady:
			h.Problems = append(h.Problems, fmt.Sprintf("container runtime status check may not have completed yet: %s %s", c.GetReason(), c.GetMessage()))
		case c.GetType() == runtimeapi.NetworkReady:
			h.Problems = append(h.Problems, fmt.Sprintf("container runtime network not ready: NetworkReady=false reason:%s message:%s", c.GetReason(), c.GetMessage()))
		}
	}
	return info, h
}

func (r *Reporter) patch(ctx context.Context, node *corev1.Node, desired corev1.NodeStatus) error {
	before, err := json.Marshal(corev1.Node{Status: node.Status})
	if err != nil {
		return err
	}
	after, err := json.Marshal(corev1.Node{Status: desired})
	if err != nil {
		return err
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Node{})
	if err != nil {
		return fmt.Errorf("status of node %s: %w", r.NodeName, err)
	}
	updated, err := r.Client.CoreV1().Nodes().Patch(ctx, r.NodeName, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) {
		r.Lost()
		return err
	} else if err != nil {
		return fmt.Errorf("patch status of node %s: %w", r.NodeName, err)
	}
	r.Seen(updated)
	r.mu.Lock()
	r.lastSent = time.Now()
	r.mu.Unlock()
	return nil
}
