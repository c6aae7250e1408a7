// Package protection keeps storage objects that are deleted until nothing uses them: claims until
// no pod does, volumes until they are no longer bound, classes of volume attributes until no
// claim or volume names them. The finalizers that hold them are set at admission; objects from
// before get theirs here.
package protection

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/admission"
	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

// guard holds one kind by one finalizer.
type guard struct {
	kit.Deps
	finalizer string
	empty     func() client.Object
	used      func(context.Context, client.Object) (bool, error)
}

// NewClaims makes the controller of claims.
func NewClaims(deps kit.Deps) kit.Controller {
	g := guard{
		Deps: deps, finalizer: admission.ClaimProtection,
		empty: func() client.Object { return &corev1.PersistentVolumeClaim{} },
		used: func(ctx context.Context, obj client.Object) (bool, error) {
			var pods corev1.PodList
			if err := deps.Client.List(ctx, &pods, client.InNamespace(obj.GetNamespace())); err != nil {
				return false, fmt.Errorf("list pods of namespace %s: %w", obj.GetNamespace(), err)
			}
			for i := range pods.Items {
				if usesClaim(&pods.Items[i], obj) {
					return true, nil
				}
			}
			return false, nil
		},
	}
	return kit.Controller{
		Name:    "persistentvolumeclaim-protection",
		Account: "pvc-protection-controller",
		Watches: []kit.Watch{
			{Kind: &corev1.PersistentVolumeClaim{}, Requests: kit.Self},
			{Kind: &corev1.Pod{}, Requests: claimsOf},
		},
		Reconcile: g.reconcile,
	}
}

// claimName is the claim that a volume of a pod stands for; empty if it is no claim.
func claimName(pod *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return pod.Name + "-" + v.Name
	}
	return ""
}

// usesClaim tells whether a pod holds a claim. One without a node does not: no node starts a pod
// whose claim is being deleted. A claim of the pod's own is free as soon as its node is done with
// the pod, since the pod may be waiting for the claim.
func usesClaim(pod *corev1.Pod, claim metav1.Object) bool {
	if pod.Spec.NodeName == "" {
		return false
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if claimName(pod, v) == claim.GetName() && (v.Ephemeral == nil || (!isDone(pod) && metav1.IsControlledBy(claim, pod))) {
			return true
		}
	}
	return false
}

func isDone(pod *corev1.Pod) bool {
	return pod.DeletionTimestamp != nil && pod.DeletionGracePeriodSeconds != nil && *pod.DeletionGracePeriodSeconds == 0
}

// claimsOf are the claims that a pod lets go, or may let go.
func claimsOf(e barqueclient.Event) []reconcile.Request {
	pod, _ := e.Old.(*corev1.Pod)
	now, _ := e.New.(*corev1.Pod)
	if pod == nil || (now != nil && now.UID == pod.UID && isDone(now) == isDone(pod)) {
		return nil
	}
	var requests []reconcile.Request
	for i := range pod.Spec.Volumes {
		if name := claimName(pod, &pod.Spec.Volumes[i]); name != "" {
			requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Namespace: pod.Namespace, Name: name}})
		}
	}
	return requests
}

// NewVolumes makes the controller of volumes.
func NewVolumes(deps kit.Deps) kit.Controller {
	g := guard{
		Deps: deps, finalizer: admission.VolumeProtection,
		empty: func() client.Object { return &corev1.PersistentVolume{} },
		used: func(_ context.Context, obj client.Object) (bool, error) {
			volume, ok := obj.(*corev1.PersistentVolume)
			return ok && volume.Status.Phase == corev1.VolumeBound, nil
		},
	}
	return kit.Controller{
		Name:      "persistentvolume-protection",
		Account:   "pv-protection-controller",
		Watches:   []kit.Watch{{Kind: &corev1.PersistentVolume{}, Requests: kit.Self}},
		Reconcile: g.reconcile,
	}
}

// NewVolumeAttributes makes the controller of classes of volume attributes.
func NewVolumeAttributes(deps kit.Deps) kit.Controller {
	g := guard{
		Deps: deps, finalizer: admission.VolumeAttributeProtection,
		empty: func() client.Object { return &storagev1.VolumeAttributesClass{} },
		used: func(ctx context.Context, obj client.Object) (bool, error) {
			return attributesUsed(ctx, deps.Client, obj.GetName())
		},
	}
	named := func(e barqueclient.Event) []reconcile.Request {
		var requests []reconcile.Request
		for _, name := range attributesOf(e.Old) {
			requests = append(requests, reconcile.Request{NamespacedName: types.NamespacedName{Name: name}})
		}
		return requests
	}
	return kit.Controller{
		Name:    "volumeattributesclass-protection",
		Account: "volumeattributesclass-protection-controller",
		Watches: []kit.Watch{
			{Kind: &storagev1.VolumeAttributesClass{}, Requests: kit.Self},
			{Kind: &corev1.PersistentVolumeClaim{}, Requests: named},
			{Kind: &corev1.PersistentVolume{}, Requests: named},
		},
		Reconcile: g.reconcile,
	}
}

func attributesUsed(ctx context.Context, c client.Reader, name string) (bool, error) {
	var claims corev1.PersistentVolumeClaimList
	if err := c.List(ctx, &claims); err != nil {
		return false, fmt.Errorf("list claims: %w", err)
	}
	var volumes corev1.PersistentVolumeList
	if err := c.List(ctx, &volumes); err != nil {
		return false, fmt.Errorf("list volumes: %w", err)
	}
	users := make([]client.Object, 0, len(claims.Items)+len(volumes.Items))
	for i := range claims.Items {
		users = append(users, &claims.Items[i])
	}
	for i := range volumes.Items {
		users = append(users, &volumes.Items[i])
	}
	for _, user := range users {
		for _, used := range attributesOf(user) {
			if used == name {
				return true, nil
			}
		}
	}
	return false, nil
}

// attributesOf are the classes of volume attributes that a claim or a volume has, wants or is on
// its way to.
func attributesOf(obj client.Object) []string {
	var named []*string
	switch o := obj.(type) {
	case *corev1.PersistentVolumeClaim:
		if o == nil {
			return nil
		}
		named = []*string{o.Spec.VolumeAttributesClassName, o.Status.CurrentVolumeAttributesClassName}
		if o.Status.ModifyVolumeStatus != nil {
			named = append(named, &o.Status.ModifyVolumeStatus.TargetVolumeAttributesClassName)
		}
	case *corev1.PersistentVolume:
		if o == nil {
			return nil
		}
		named = []*string{o.Spec.VolumeAttributesClassName}
	}
	var names []string
	for _, name := range named {
		if name != nil && *name != "" {
			names = append(names, *name)
		}
	}
	return names
}

// reconcile holds an object that lives, and lets go of one that is being deleted and not used.
func (g *guard) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	obj := g.empty()
	if err := g.Client.Get(ctx, req.NamespacedName, obj); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	held := controllerutil.ContainsFinalizer(obj, g.finalizer)
	if (obj.GetDeletionTimestamp() == nil) == held {
		return reconcile.Result{}, nil // held and alive, or let go and going
	}
	changed, ok := obj.DeepCopyObject().(client.Object)
	if !ok {
		return reconcile.Result{}, fmt.Errorf("%T is no object", obj)
	}
	if held {
		used, err := g.inUse(ctx, obj)
		if err != nil || used {
			return reconcile.Result{}, err
		}
		controllerutil.RemoveFinalizer(changed, g.finalizer)
	} else {
		controllerutil.AddFinalizer(changed, g.finalizer)
	}
	if err := client.IgnoreNotFound(g.Client.Update(ctx, changed)); err != nil {
		return reconcile.Result{}, fmt.Errorf("change the finalizers of %T %s: %w", obj, req.NamespacedName, err)
	}
	return reconcile.Result{}, nil
}

// inUse tells whether something uses an object that is about to go. What does may not have come to the image yet.
func (g *guard) inUse(ctx context.Context, obj client.Object) (bool, error) {
	if used, err := g.used(ctx, obj); err != nil || used {
		return used, err
	}
	if err := g.CatchUp(ctx); err != nil {
		return false, fmt.Errorf("make sure that nothing uses %T %s: %w", obj, obj.GetName(), err)
	}
	return g.used(ctx, obj)
}
