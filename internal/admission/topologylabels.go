package admission

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/admission"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// PodTopologyLabels has pods carry the zone and region of the node that they are put on (KEP-4742).
type PodTopologyLabels struct {
	*admission.Handler
	reader client.Reader
}

var _ admission.MutationInterface = (*PodTopologyLabels)(nil)

// NewPodTopologyLabels makes the plugin.
func NewPodTopologyLabels(reader client.Reader) *PodTopologyLabels {
	return &PodTopologyLabels{Handler: admission.NewHandler(admission.Create), reader: reader}
}

// Admit implements admission.MutationInterface. A binding's labels become the pod's.
func (p *PodTopologyLabels) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if !isPod(a) {
		return nil
	}
	switch obj := a.GetObject().(type) {
	case *corev1.Pod:
		if a.GetSubresource() == "" && obj.Spec.NodeName != "" {
			return p.label(ctx, obj.Spec.NodeName, &obj.Labels)
		}
	case *corev1.Binding:
		if obj.Target.Kind == "Node" {
			return p.label(ctx, obj.Target.Name, &obj.Labels)
		}
	}
	return nil
}

// label adds where a node is. A node that does not exist is somebody else's business.
func (p *PodTopologyLabels) label(ctx context.Context, name string, labels *map[string]string) error {
	var node corev1.Node
	if err := p.reader.Get(ctx, client.ObjectKey{Name: name}, &node); err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return apierrors.NewInternalError(fmt.Errorf("read Node %s: %w", name, err))
	}
	where := map[string]string{}
	for _, key := range []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion} {
		if value, ok := node.Labels[key]; ok {
			where[key] = value
		}
	}
	if len(where) == 0 {
		return nil
	}
	if *labels == nil {
		*labels = where
		return nil
	}
	maps.Copy(*labels, where)
	return nil
}
