package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubelettypes "k8s.io/kubelet/pkg/types"
)

// State is what a container does.
type State string

// The states of a container.
const (
	StateCreated State = "created"
	StateRunning State = "running"
	StateExited  State = "exited"
	StateUnknown State = "unknown"
)

// Sandbox is a pod sandbox as the runtime reports it.
type Sandbox struct {
	ID        string
	Attempt   uint32
	Ready     bool
	CreatedAt time.Time
	// IPs are the pod's addresses, the primary one first; none in the node's network.
	IPs []string
	// Handler is the name of the runtime handler the sandbox runs with.
	Handler string
}

// Container is one container as the runtime reports it.
type Container struct {
	ID, Name, SandboxID string
	// Attempt counts the containers of this name in the pod, from 0: the restart count.
	Attempt                          int
	State                            State
	CreatedAt, StartedAt, FinishedAt time.Time
	ExitCode                         int32
	Reason, Message                  string
	// Image is the reference the container was created from, ImageID the runtime's id of the
	// image, ImageRef its digest reference where there is one.
	Image, ImageID, ImageRef string
	// Hash is what Hash said of the definition the container was made from.
	Hash string
	// Resources are those that the container was made with; nil if it does not say.
	Resources *corev1.ResourceRequirements
	// Backoff has to pass after this container's end before its successor starts.
	Backoff time.Duration
	// MessageFile and MessagePolicy say where the termination message is.
	MessageFile, MessagePolicy string
	LogPath                    string
	User                       *runtimeapi.ContainerUser
}

// Pod is what the runtime runs, or ran, for one pod.
type Pod struct {
	UID             types.UID
	Name, Namespace string
	// Sandboxes and Containers are in order of creation, the newest first.
	Sandboxes  []Sandbox
	Containers []Container
}

// Sandbox returns the newest sandbox.
func (p *Pod) Sandbox() (Sandbox, bool) {
	if len(p.Sandboxes) == 0 {
		return Sandbox{}, false
	}
	return p.Sandboxes[0], true
}

// Newest returns the newest container of that name in any sandbox.
func (p *Pod) Newest(name string) (Container, bool) {
	for _, c := range p.Containers {
		if c.Name == name {
			return c, true
		}
	}
	return Container{}, false
}

// Active returns the newest container of that name in the given sandbox.
func (p *Pod) Active(name, sandbox string) (Container, bool) {
	for _, c := range p.Containers {
		if c.Name == name && c.SandboxID == sandbox {
			return c, true
		}
	}
	return Container{}, false
}

// NotFound tells whether err is a runtime's word for a sandbox, container or image it does not
// know.
func NotFound(err error) bool {
	var grpcErr interface{ GRPCStatus() *status.Status }
	return errors.As(err, &grpcErr) && grpcErr.GRPCStatus().Code() == codes.NotFound
}

// Observe asks the runtime about one pod.
func Observe(ctx context.Context, rt Runtime, uid types.UID) (Pod, error) {
	pod := Pod{UID: uid}
	selector := map[string]string{kubelettypes.KubernetesPodUIDLabel: string(uid)}
	sandboxes, err := rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: selector}})
	if err != nil {
		return pod, fmt.Errorf("list sandboxes of pod %s: %w", uid, err)
	}
	for _, s := range sandboxes.GetItems() {
		if meta := s.GetMetadata(); meta != nil {
			pod.Name, pod.Namespace = meta.GetName(), meta.GetNamespace()
		}
		sandbox, err := observeSandbox(ctx, rt, s)
		if NotFound(err) {
			continue
		} else if err != nil {
			return pod, err
		}
		pod.Sandboxes = append(pod.Sandboxes, sandbox)
	}
	containers, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: selector}})
	if err != nil {
		return pod, fmt.Errorf("list containers of pod %s: %w", uid, err)
	}
	for _, c := range containers.GetContainers() {
		reply, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.GetId()})
		if NotFound(err) {
			continue
		} else if err != nil {
			return pod, fmt.Errorf("status of container %s: %w", c.GetId(), err)
		}
		pod.Containers = append(pod.Containers, fromStatus(reply.GetStatus(), c.GetPodSandboxId()))
	}
	sort.SliceStable(pod.Sandboxes, func(i, j int) bool { return pod.Sandboxes[i].CreatedAt.After(pod.Sandboxes[j].CreatedAt) })
	sort.SliceStable(pod.Containers, func(i, j int) bool { return pod.Containers[i].CreatedAt.After(pod.Containers[j].CreatedAt) })
	return pod, nil
}

func observeSandbox(ctx context.Context, rt Runtime, s *runtimeapi.PodSandbox) (Sandbox, error) {
	sandbox := Sandbox{
		ID:        s.GetId(),
		Attempt:   s.GetMetadata().GetAttempt(),
		CreatedAt: time.Unix(0, s.GetCreatedAt()),
		Handler:   s.GetRuntimeHandler(),
	}
	if s.GetState() != runtimeapi.PodSandboxState_SANDBOX_READY {
		return sandbox, nil
	}
	reply, err := rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.GetId()})
	if err != nil {
		return sandbox, fmt.Errorf("status of sandbox %s: %w", s.GetId(), err)
	}
	st := reply.GetStatus()
	sandbox.Ready = st.GetState() == runtimeapi.PodSandboxState_SANDBOX_READY
	if ip := st.GetNetwork().GetIp(); ip != "" {
		sandbox.IPs = append(sandbox.IPs, ip)
	}
	for _, more := range st.GetNetwork().GetAdditionalIps() {
		sandbox.IPs = append(sandbox.IPs, more.GetIp())
	}
	return sandbox, nil
}

func fromStatus(s *runtimeapi.ContainerStatus, sandbox string) Container {
	annotations := s.GetAnnotations()
	c := Container{
		ID:            s.GetId(),
		Name:          s.GetLabels()[kubelettypes.KubernetesContainerNameLabel],
		SandboxID:     sandbox,
		Attempt:       int(s.GetMetadata().GetAttempt()),
		State:         fromState(s.GetState()),
		CreatedAt:     moment(s.GetCreatedAt()),
		StartedAt:     moment(s.GetStartedAt()),
		FinishedAt:    moment(s.GetFinishedAt()),
		ExitCode:      s.GetExitCode(),
		Reason:        s.GetReason(),
		Message:       s.GetMessage(),
		Image:         s.GetImage().GetImage(),
		ImageID:       s.GetImageId(),
		ImageRef:      s.GetImageRef(),
		Hash:          annotations[AnnotationHash],
		MessageFile:   annotations[AnnotationMessageFile],
		MessagePolicy: annotations[AnnotationTerminationMessagePolicy],
		LogPath:       s.GetLogPath(),
		User:          s.GetUser(),
	}
	if c.Name == "" {
		c.Name = s.GetMetadata().GetName()
	}
	// A malformed annotation is somebody else's container: it counts as attempt and delay 0.
	if n, err := strconv.Atoi(annotations[AnnotationRestartCount]); err == nil {
		c.Attempt = n
	}
	if d, err := time.ParseDuration(annotations[AnnotationBackoff]); err == nil {
		c.Backoff = d
	}
	var resources corev1.ResourceRequirements
	if err := json.Unmarshal([]byte(annotations[AnnotationResources]), &resources); err == nil {
		c.Resources = &resources
	}
	return c
}

// moment converts CRI's nanoseconds, where 0 means never.
func moment(nanoseconds int64) time.Time {
	if nanoseconds == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanoseconds)
}

func fromState(s runtimeapi.ContainerState) State {
	switch s {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return StateCreated
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return StateRunning
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return StateExited
	default:
		return StateUnknown
	}
}
