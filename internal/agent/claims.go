package agent

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// claims implements volume.Claims.
type claims struct{ client kubernetes.Interface }

var (
	errUnbound = errors.New("the claim is not bound to a volume yet")
	errForeign = errors.New("the claim was not made for the pod")
)

// PersistentVolume implements volume.Claims. A claim and its volume must name each other, and the claim of an ephemeral
// volume must be the pod's own (KEP-1698): what is only of the same name may be somebody else's, or an earlier pod's.
func (c claims) PersistentVolume(ctx context.Context, pod *corev1.Pod, name string, ephemeral bool) (*corev1.PersistentVolume, error) {
	claim, err := c.client.CoreV1().PersistentVolumeClaims(pod.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("persistent volume claim %s/%s: %w", pod.Namespace, name, err)
	}
	if ephemeral && !metav1.IsControlledBy(claim, pod) {
		return nil, fmt.Errorf("persistent volume claim %s/%s: %w", pod.Namespace, name, errForeign)
	}
	if claim.Status.Phase != corev1.ClaimBound || claim.Spec.VolumeName == "" {
		return nil, fmt.Errorf("persistent volume claim %s/%s: %w", pod.Namespace, name, errUnbound)
	}
	pv, err := c.client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("persistent volume claim %s/%s: %w", pod.Namespace, name, errUnbound)
	} else if err != nil {
		return nil, fmt.Errorf("persistent volume %s: %w", claim.Spec.VolumeName, err)
	}
	if ref := pv.Spec.ClaimRef; ref == nil || ref.UID != claim.UID {
		return nil, fmt.Errorf("persistent volume %s is not bound to persistent volume claim %s/%s: %w", pv.Name, pod.Namespace, name, errUnbound)
	}
	return pv, nil
}
