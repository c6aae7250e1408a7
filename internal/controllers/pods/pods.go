// Package pods is what controllers know about pods: which are alive, ready and available, which
// to delete first, how a template becomes a pod, and the hash that names a template.
package pods

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/store"
)

// Terminal tells whether the pod has ended for good.
func Terminal(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// Active tells whether the pod runs or may come to run, and nobody has deleted it.
func Active(pod *corev1.Pod) bool {
	return !Terminal(pod) && pod.DeletionTimestamp == nil
}

// Terminating tells whether the pod was deleted and has not ended yet.
func Terminating(pod *corev1.Pod) bool {
	return !Terminal(pod) && pod.DeletionTimestamp != nil
}

// Filter returns those of pods that keep keeps.
func Filter(pods []*corev1.Pod, keep func(*corev1.Pod) bool) []*corev1.Pod {
	var kept []*corev1.Pod
	for _, p := range pods {
		if keep(p) {
			kept = append(kept, p)
		}
	}
	return kept
}

// Condition returns the pod's condition of the given type, or nil.
func Condition(pod *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == kind {
			return &pod.Status.Conditions[i]
		}
	}
	return nil
}

// Ready tells whether the pod's condition Ready is true.
func Ready(pod *corev1.Pod) bool {
	c := Condition(pod, corev1.PodReady)
	return c != nil && c.Status == corev1.ConditionTrue
}

// Available tells whether the pod has been ready for minReadySeconds at now.
func Available(pod *corev1.Pod, minReadySeconds int32, now time.Time) bool {
	c := Condition(pod, corev1.PodReady)
	if c == nil || c.Status != corev1.ConditionTrue {
		return false
	}
	if minReadySeconds == 0 {
		return true
	}
	since := c.LastTransitionTime.Time
	return !since.IsZero() && !since.Add(seconds(minReadySeconds)).After(now)
}

// NextAvailable returns how long after now the next of pods becomes available if it stays
// ready; 0 if none will.
func NextAvailable(pods []*corev1.Pod, minReadySeconds int32, now time.Time) time.Duration {
	var next time.Duration
	for _, p := range pods {
		c := Condition(p, corev1.PodReady)
		if minReadySeconds <= 0 || c == nil || c.Status != corev1.ConditionTrue || c.LastTransitionTime.IsZero() {
			continue
		}
		left := c.LastTransitionTime.Add(seconds(minReadySeconds)).Sub(now)
		if left > 0 && (next == 0 || left < next) {
			next = left
		}
	}
	return next
}

func seconds(n int32) time.Duration { return time.Duration(n) * time.Second }

// InNamespace lists the namespace's pods.
func InNamespace(ctx context.Context, c client.Reader, namespace string) ([]*corev1.Pod, error) {
	return kit.List[*corev1.Pod](ctx, c, &corev1.PodList{}, client.InNamespace(namespace))
}

// OfOwner lists the pods whose controller is owner, and those of its namespace that have no
// controller, which owner may want to adopt.
func OfOwner(ctx context.Context, c client.Reader, owner client.Object) ([]*corev1.Pod, error) {
	all, err := InNamespace(ctx, c, owner.GetNamespace())
	if err != nil {
		return nil, err
	}
	uid := owner.GetUID()
	return Filter(all, func(p *corev1.Pod) bool {
		ref := metav1.GetControllerOfNoCopy(p)
		return ref == nil || ref.UID == uid
	}), nil
}

// FromTemplate makes a pod of a template for owner, with a name to be generated from prefix;
// an empty prefix means the owner's name.
func FromTemplate(template *corev1.PodTemplateSpec, owner client.Object, ref *metav1.OwnerReference, prefix string) *corev1.Pod {
	if prefix == "" {
		prefix = GenerateName(owner.GetName())
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:       owner.GetNamespace(),
			GenerateName:    prefix,
			Labels:          maps.Clone(template.Labels),
			Annotations:     maps.Clone(template.Annotations),
			Finalizers:      append([]string(nil), template.Finalizers...),
			OwnerReferences: []metav1.OwnerReference{*ref},
		},
		Spec: *template.Spec.DeepCopy(),
	}
}

// GenerateName is the prefix of the names of an owner's pods: its name and a dash, or the name
// alone if no valid pod name starts with the two.
func GenerateName(owner string) string {
	prefix := owner + "-"
	if len(validation.NameIsDNSSubdomain(prefix, true)) != 0 {
		return owner
	}
	return prefix
}

// Control creates and deletes pods for owners and tells so by events.
type Control struct {
	Client   client.Client
	Recorder record.EventRecorder
}

// Create creates pod and records SuccessfulCreate or FailedCreate on owner. A namespace that is
// being deleted takes no pod, and that is no error: its end removes the owner too.
func (c Control) Create(ctx context.Context, pod *corev1.Pod, owner client.Object) error {
	if len(pod.Labels) == 0 {
		return fmt.Errorf("create pod of %s: the template has no labels", owner.GetName())
	}
	err := c.Client.Create(ctx, pod)
	if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		return nil
	}
	if err != nil {
		if !Quiet(err) {
			c.Recorder.Eventf(owner, corev1.EventTypeWarning, "FailedCreate", "Error creating: %v", err)
		}
		return fmt.Errorf("create pod of %s: %w", owner.GetName(), err)
	}
	c.Recorder.Eventf(owner, corev1.EventTypeNormal, "SuccessfulCreate", "Created pod: %v", pod.Name)
	return nil
}

// Delete deletes pod, if it is still the one that was seen, and records SuccessfulDelete or
// FailedDelete on owner. A pod that is gone or was replaced is no error.
func (c Control) Delete(ctx context.Context, pod *corev1.Pod, owner client.Object) error {
	err := c.Client.Delete(ctx, pod, client.Preconditions{UID: &pod.UID})
	switch {
	case err == nil:
		c.Recorder.Eventf(owner, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted pod: %v", pod.Name)
		return nil
	case apierrors.IsNotFound(err), apierrors.IsConflict(err) && c.replaced(ctx, pod):
		return nil
	}
	if !Quiet(err) {
		c.Recorder.Eventf(owner, corev1.EventTypeWarning, "FailedDelete", "Error deleting: %v", err)
	}
	return fmt.Errorf("delete pod %s: %w", pod.Name, err)
}

func (c Control) replaced(ctx context.Context, pod *corev1.Pod) bool {
	var now corev1.Pod
	err := c.Client.Get(ctx, client.ObjectKeyFromObject(pod), &now)
	return apierrors.IsNotFound(err) || err == nil && now.UID != pod.UID
}

// Quiet tells whether an error says that the work is over rather than that it failed: the
// namespace is being deleted, leadership was lost, or the context has ended.
func Quiet(err error) bool {
	return apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) || errors.Is(err, store.ErrFenced) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// Ordinal splits a name such as "web-3" into its parent's name and its number; ok is false for
// other names.
func Ordinal(name string) (parent string, ordinal int, ok bool) {
	i := strings.LastIndexByte(name, '-')
	if i < 0 || i == len(name)-1 {
		return "", 0, false
	}
	for _, c := range name[i+1:] {
		if c < '0' || c > '9' || ordinal > 1<<30/10 {
			return "", 0, false
		}
		ordinal = ordinal*10 + int(c-'0')
	}
	return name[:i], ordinal, true
}
