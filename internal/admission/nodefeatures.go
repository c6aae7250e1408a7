package admission

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/admission"
	features "k8s.io/component-helpers/nodedeclaredfeatures"
	resourcehelper "k8s.io/component-helpers/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// apiVersion is the release whose features nodes are asked for.
const apiVersion = "1.37.0"

// NodeDeclaredFeatureValidator refuses changes of a running pod that its node does not say it can
// follow (KEP-5328).
type NodeDeclaredFeatureValidator struct {
	*admission.Handler
	reader  client.Reader
	version *version.Version
}

var _ admission.ValidationInterface = (*NodeDeclaredFeatureValidator)(nil)

// NewNodeDeclaredFeatureValidator makes the plugin.
func NewNodeDeclaredFeatureValidator(reader client.Reader) *NodeDeclaredFeatureValidator {
	return &NodeDeclaredFeatureValidator{
		Handler: admission.NewHandler(admission.Update), reader: reader, version: version.MustParseSemantic(apiVersion),
	}
}

// Validate implements admission.ValidationInterface.
func (n *NodeDeclaredFeatureValidator) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, old := changedOnNode(a)
	if pod == nil || (a.GetSubresource() != "" && a.GetSubresource() != "resize") {
		return nil
	}
	required, err := features.DefaultFramework.InferForPodUpdate(
		&features.PodInfo{Spec: &old.Spec, Status: &old.Status}, &features.PodInfo{Spec: &pod.Spec, Status: &pod.Status}, n.version)
	if err != nil {
		return admission.NewForbidden(a, fmt.Errorf("failed to infer pod capability requirements: %w", err))
	}
	if required.IsEmpty() {
		return nil
	}
	node, err := hostOf(ctx, n.reader, a, pod)
	if err != nil {
		return err
	}
	result, err := features.DefaultFramework.MatchNode(required, node)
	if err != nil {
		return admission.NewForbidden(a, fmt.Errorf("failed to match pod requirements against node %q: %w", node.Name, err))
	}
	if !result.IsMatch {
		return admission.NewForbidden(a, fmt.Errorf("pod update requires features %s which are not available on node %q",
			strings.Join(result.UnsatisfiedRequirements, ", "), node.Name))
	}
	return nil
}

// changedOnNode returns both versions of a pod on a node whose spec changes.
func changedOnNode(a admission.Attributes) (pod, old *corev1.Pod) {
	pod, ok := a.GetObject().(*corev1.Pod)
	old, was := a.GetOldObject().(*corev1.Pod)
	if !ok || !was || pod.Spec.NodeName == "" || pod.Generation == old.Generation {
		return nil, nil
	}
	return pod, old
}

func hostOf(ctx context.Context, reader client.Reader, a admission.Attributes, pod *corev1.Pod) (*corev1.Node, error) {
	var node corev1.Node
	err := reader.Get(ctx, client.ObjectKey{Name: pod.Spec.NodeName}, &node)
	if apierrors.IsNotFound(err) {
		return nil, admission.NewForbidden(a, fmt.Errorf("node %q not found", pod.Spec.NodeName))
	}
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("read Node %s: %w", pod.Spec.NodeName, err))
	}
	return &node, nil
}

// PodResizeValidator refuses to resize a pod beyond what its node has.
type PodResizeValidator struct {
	*admission.Handler
	reader client.Reader
}

var _ admission.ValidationInterface = (*PodResizeValidator)(nil)

// Causes that the plugin gives.
const (
	causeCapacity metav1.CauseType = "NodeCapacity"
	causePlatform metav1.CauseType = "UnsupportedPlatform"
)

// NewPodResizeValidator makes the plugin.
func NewPodResizeValidator(reader client.Reader) *PodResizeValidator {
	return &PodResizeValidator{Handler: admission.NewHandler(admission.Update), reader: reader}
}

// Validate implements admission.ValidationInterface.
func (p *PodResizeValidator) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, _ := changedOnNode(a)
	if pod == nil || a.GetSubresource() != "resize" {
		return nil
	}
	node, err := hostOf(ctx, p.reader, a, pod)
	if err != nil {
		return err
	}
	if os, ok := node.Labels[corev1.LabelOSStable]; ok && os != "linux" {
		return because(a, fmt.Errorf("pod resize is only supported on linux nodes, node %q is %q", node.Name, os), causePlatform)
	}
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	var lacking []string
	if asked, has := requests.Cpu(), node.Status.Allocatable.Cpu(); asked.Cmp(*has) > 0 {
		lacking = append(lacking, fmt.Sprintf("cpu, requested: %d, allocatable: %d", asked.MilliValue(), has.MilliValue()))
	}
	if asked, has := requests.Memory(), node.Status.Allocatable.Memory(); asked.Cmp(*has) > 0 {
		lacking = append(lacking, fmt.Sprintf("memory, requested: %d, allocatable: %d", asked.Value(), has.Value()))
	}
	if len(lacking) > 0 {
		return because(a, fmt.Errorf("node didn't have enough allocatable resources: %s", strings.Join(lacking, "; ")), causeCapacity)
	}
	return nil
}

// because refuses a request with a cause that programs can tell.
func because(a admission.Attributes, reason error, cause metav1.CauseType) error {
	err := admission.NewForbidden(a, reason)
	var status *apierrors.StatusError
	if errors.As(err, &status) && status.ErrStatus.Details != nil {
		status.ErrStatus.Details.Causes = append(status.ErrStatus.Details.Causes, metav1.StatusCause{Type: cause})
	}
	return err
}
