package job

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
)

// A stray is a pod that holds the finalizer although no unfinished job counts it: its job is
// gone or has ended, or has let go of it. Without its finalizer it can be deleted. Its request
// has the pod's name behind a prefix that no job's name can have.
const strayPrefix = "stray/"

func strayName(req reconcile.Request) (string, bool) { return strings.CutPrefix(req.Name, strayPrefix) }

func strayRequest(pod *corev1.Pod) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Namespace: pod.Namespace, Name: strayPrefix + pod.Name}}
}

// strayFrom requests the pod itself if it may be a stray.
func (r *reconciler) strayFrom(e barqueclient.Event) []reconcile.Request {
	pod, _ := e.New.(*corev1.Pod)
	if pod == nil || !tracked(pod) {
		return nil
	}
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil {
		return []reconcile.Request{strayRequest(pod)}
	}
	if ref.Kind != kind.Kind {
		return nil
	}
	var job batchv1.Job
	err := r.Client.Get(context.Background(), types.NamespacedName{Namespace: pod.Namespace, Name: ref.Name}, &job)
	if apierrors.IsNotFound(err) || err == nil && (job.UID != ref.UID || finished(&job) != nil) {
		return []reconcile.Request{strayRequest(pod)}
	}
	return nil
}

// releaseStray releases the named pod if it is a stray.
func (r *reconciler) releaseStray(ctx context.Context, namespace, name string) error {
	var pod corev1.Pod
	if err := r.Client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, &pod); err != nil {
		return client.IgnoreNotFound(err)
	}
	stray, err := r.stray(ctx, &pod)
	if err != nil || !stray {
		return err
	}
	return r.release(ctx, &pod)
}

// releaseFormer releases the pods of a job that is gone or has ended.
func (r *reconciler) releaseFormer(ctx context.Context, job types.NamespacedName) error {
	all, err := pods.InNamespace(ctx, r.Client, job.Namespace)
	if err != nil {
		return err
	}
	former := pods.Filter(all, func(p *corev1.Pod) bool {
		ref := metav1.GetControllerOfNoCopy(p)
		return tracked(p) && ref != nil && ref.Kind == kind.Kind && ref.Name == job.Name
	})
	return kit.Each(len(former), func(i int) error {
		stray, err := r.stray(ctx, former[i])
		if err != nil || !stray {
			return err
		}
		return r.release(ctx, former[i])
	})
}

func (r *reconciler) stray(ctx context.Context, pod *corev1.Pod) (bool, error) {
	if !tracked(pod) {
		return false, nil
	}
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil {
		return true, nil
	}
	if ref.Kind != kind.Kind || ref.APIVersion != batchv1.SchemeGroupVersion.String() {
		return false, nil
	}
	var job batchv1.Job
	switch err := r.Client.Get(ctx, types.NamespacedName{Namespace: pod.Namespace, Name: ref.Name}, &job); {
	case apierrors.IsNotFound(err):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("get Job %s/%s: %w", pod.Namespace, ref.Name, err)
	case job.UID != ref.UID:
		return true, nil
	}
	return finished(&job) != nil && !external(&job), nil
}

// release removes the pod's finalizer, and nothing else, whatever else changed. A pod that is
// gone needs none.
func (r *reconciler) release(ctx context.Context, pod *corev1.Pod) error {
	if !tracked(pod) {
		return nil
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid":                                 pod.UID,
		"$deleteFromPrimitiveList/finalizers": []string{batchv1.JobTrackingFinalizer},
	}})
	if err != nil {
		return fmt.Errorf("encode patch: %w", err)
	}
	target := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}}
	err = r.Client.Patch(ctx, target, client.RawPatch(types.StrategicMergePatchType, patch))
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove finalizer of pod %s: %w", pod.Name, err)
	}
	return nil
}
