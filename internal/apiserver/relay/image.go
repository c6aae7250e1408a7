package relay

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Image reads a relay's objects from the shared image, by way of a reader of it.
func Image(reader client.Reader) Objects { return image{reader} }

type image struct{ reader client.Reader }

func (i image) Node(ctx context.Context, name string) (*corev1.Node, error) {
	node := &corev1.Node{}
	return node, i.get(ctx, "", name, node)
}

func (i image) Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	return pod, i.get(ctx, namespace, name, pod)
}

func (i image) Service(ctx context.Context, namespace, name string) (*corev1.Service, error) {
	service := &corev1.Service{}
	return service, i.get(ctx, namespace, name, service)
}

// get passes on what the API says of an object that is missing: clients of a proxy see it.
func (i image) get(ctx context.Context, namespace, name string, into client.Object) error {
	return i.reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, into)
}

func (i image) EndpointSlices(ctx context.Context, namespace, service string) ([]*discoveryv1.EndpointSlice, error) {
	var list discoveryv1.EndpointSliceList
	err := i.reader.List(ctx, &list, client.InNamespace(namespace), client.MatchingLabels{discoveryv1.LabelServiceName: service})
	if err != nil {
		return nil, fmt.Errorf("list the endpoints of service %s/%s: %w", namespace, service, err)
	}
	out := make([]*discoveryv1.EndpointSlice, len(list.Items))
	for i := range list.Items {
		out[i] = &list.Items[i]
	}
	return out, nil
}
