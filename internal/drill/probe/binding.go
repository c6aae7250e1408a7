package probe

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Bind creates a pod and waits until a scheduler has bound it.
func (p *Prober) Bind(ctx context.Context, pod *corev1.Pod) error {
	err := p.Hedge(ctx, func(ctx context.Context, e *Endpoint) error {
		var made corev1.Pod
		code, err := e.Call(ctx, http.MethodPost, pods(pod.Namespace), pod, &made)
		if code == http.StatusConflict {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	return p.Hedge(ctx, func(ctx context.Context, e *Endpoint) error {
		var found corev1.Pod
		if _, err := e.Call(ctx, http.MethodGet, pods(pod.Namespace)+"/"+pod.Name, nil, &found); err != nil {
			return err
		}
		if found.Spec.NodeName == "" {
			return errors.New("no scheduler has bound the pod")
		}
		return nil
	})
}

// Delete ends a pod without waiting for its node.
func (p *Prober) Delete(ctx context.Context, namespace, name string) error {
	return p.Hedge(ctx, func(ctx context.Context, e *Endpoint) error {
		var answer struct{}
		code, err := e.Call(ctx, http.MethodDelete, pods(namespace)+"/"+name+"?gracePeriodSeconds=0", nil, &answer)
		if code == http.StatusNotFound {
			return nil
		}
		return err
	})
}

func pods(namespace string) string { return fmt.Sprintf("/api/v1/namespaces/%s/pods", namespace) }

// Pod is one whose image is nowhere: it is bound and never runs.
func Pod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Image: "barque.invalid/none:1", ImagePullPolicy: corev1.PullNever}}},
	}
}
