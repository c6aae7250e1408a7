package deployment

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
)

// sets lists the deployment's ReplicaSets by creation, having adopted and released.
func (r *reconciler) sets(ctx context.Context, d *appsv1.Deployment) ([]*appsv1.ReplicaSet, error) {
	all, err := kit.List[*appsv1.ReplicaSet](ctx, r.Client, &appsv1.ReplicaSetList{}, client.InNamespace(d.Namespace))
	if err != nil {
		return nil, err
	}
	own, err := kit.Claim(ctx, kit.Claimer{Client: r.Client, Owner: d, OwnerKind: kind, Selector: kit.Selector(d.Spec.Selector)}, all)
	if err != nil {
		return nil, fmt.Errorf("claim ReplicaSets: %w", err)
	}
	slices.SortFunc(own, compareCreation)
	return own, nil
}

// look sorts the sets into the newest, which is the oldest that has the deployment's template,
// and the others.
func look(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) view {
	v := view{d: d}
	for _, s := range sets {
		if v.newest == nil && pods.EqualTemplates(&s.Spec.Template, &d.Spec.Template) {
			v.newest = s
		} else {
			v.old = append(v.old, s)
		}
	}
	return v
}

// syncNewest brings the newest set's annotations and minReadySeconds up to date, and notes its
// revision in the deployment.
func (r *reconciler) syncNewest(ctx context.Context, v *view) error {
	s := v.newest.DeepCopy()
	changed := annotateNewest(v.d, s, nextRevision(v.old))
	if changed || s.Spec.MinReadySeconds != v.d.Spec.MinReadySeconds {
		s.Spec.MinReadySeconds = v.d.Spec.MinReadySeconds
		if err := r.Client.Update(ctx, s); err != nil {
			return fmt.Errorf("update ReplicaSet %s: %w", s.Name, err)
		}
		v.newest = s
	}
	setRevision(v.d, v.newest.Annotations[revisionAnnotation])
	if hasDeadline(v.d) && condition(&v.d.Status, appsv1.DeploymentProgressing) == nil {
		setCondition(&v.d.Status, newCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonSetFound,
			fmt.Sprintf("Found new replica set %q", v.newest.Name), r.Clock.Now()))
	}
	return nil
}

// createNewest creates the newest set with as many replicas as there is room for. Its name is
// made of the template's hash, so that a second attempt finds the first; another template with
// the same hash makes the deployment's collision count, and with it the name, change.
func (r *reconciler) createNewest(ctx context.Context, v *view) error {
	s := newestSet(*v)
	err := r.Client.Create(ctx, s)
	switch {
	case apierrors.IsAlreadyExists(err):
		var there appsv1.ReplicaSet
		if err := r.Client.Get(ctx, client.ObjectKeyFromObject(s), &there); err != nil {
			return fmt.Errorf("get ReplicaSet %s: %w", s.Name, err)
		}
		if metav1.IsControlledBy(&there, v.d) && pods.EqualTemplates(&there.Spec.Template, &v.d.Spec.Template) {
			v.newest = &there
			return r.syncNewest(ctx, v)
		}
		v.d.Status.CollisionCount = new(ptr.Deref(v.d.Status.CollisionCount, 0) + 1)
		return fmt.Errorf("create ReplicaSet %s: the name is another's: %w", s.Name, err)
	case err != nil:
		if !pods.Quiet(err) {
			message := fmt.Sprintf("Failed to create new replica set %q: %v", s.Name, err)
			if hasDeadline(v.d) {
				setCondition(&v.d.Status, newCondition(appsv1.DeploymentProgressing, corev1.ConditionFalse, reasonCreateError, message, r.Clock.Now()))
			}
			r.recorder.Event(v.d, corev1.EventTypeWarning, reasonCreateError, message)
		}
		return fmt.Errorf("create ReplicaSet %s: %w", s.Name, err)
	}
	v.newest = s
	if *s.Spec.Replicas > 0 {
		r.recorder.Eventf(v.d, corev1.EventTypeNormal, "ScalingReplicaSet", "Scaled up replica set %s from 0 to %d", s.Name, *s.Spec.Replicas)
	}
	setRevision(v.d, s.Annotations[revisionAnnotation])
	if hasDeadline(v.d) {
		setCondition(&v.d.Status, newCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonSetCreated,
			fmt.Sprintf("Created new replica set %q", s.Name), r.Clock.Now()))
	}
	return nil
}

// newestSet is the ReplicaSet for the deployment's template.
func newestSet(v view) *appsv1.ReplicaSet {
	d := v.d
	hash := pods.TemplateHash(&d.Spec.Template, d.Status.CollisionCount)
	template := *d.Spec.Template.DeepCopy()
	template.Labels = withLabel(template.Labels, hash)
	selector := d.Spec.Selector.DeepCopy()
	selector.MatchLabels = withLabel(selector.MatchLabels, hash)
	size := v.newestSize()
	s := &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name:            setName(d.Name, hash),
			Namespace:       d.Namespace,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(d, kind)},
			Labels:          maps.Clone(template.Labels),
		},
		Spec: appsv1.ReplicaSetSpec{
			Replicas:        &size,
			MinReadySeconds: d.Spec.MinReadySeconds,
			Selector:        selector,
			Template:        template,
		},
	}
	annotateNewest(d, s, nextRevision(v.old))
	annotateSizes(d, s)
	return s
}

func withLabel(labels map[string]string, hash string) map[string]string {
	c := maps.Clone(labels)
	if c == nil {
		c = map[string]string{}
	}
	c[appsv1.DefaultDeploymentUniqueLabelKey] = hash
	return c
}

// setName cuts a deployment's name that leaves no room for the hash.
func setName(deployment, hash string) string {
	if room := validation.DNS1123SubdomainMaxLength - 1 - len(hash); len(deployment) > room {
		deployment = deployment[:room]
	}
	return deployment + "-" + hash
}

// apply carries out the steps and puts the changed sets into the view.
func (r *reconciler) apply(ctx context.Context, v *view, steps []resize) error {
	for _, step := range steps {
		before := wanted(step.set)
		s := step.set.DeepCopy()
		s.Spec.Replicas = &step.replicas
		if annotated := annotateSizes(v.d, s); !annotated && before == step.replicas {
			continue
		}
		if err := r.Client.Update(ctx, s); err != nil {
			return fmt.Errorf("scale ReplicaSet %s to %s: %w", s.Name, strconv.Itoa(int(step.replicas)), err)
		}
		v.replace(s)
		direction := "up"
		switch {
		case before == step.replicas:
			continue
		case before > step.replicas:
			direction = "down"
		}
		r.recorder.Eventf(v.d, corev1.EventTypeNormal, "ScalingReplicaSet", "Scaled %s replica set %s from %d to %d", direction, s.Name, before, step.replicas)
	}
	return nil
}

func (v *view) replace(s *appsv1.ReplicaSet) {
	if v.newest != nil && v.newest.UID == s.UID {
		v.newest = s
	}
	for i := range v.old {
		if v.old[i].UID == s.UID {
			v.old[i] = s
		}
	}
}

// cleanUp deletes old sets beyond the history limit.
func (r *reconciler) cleanUp(ctx context.Context, v *view) error {
	for _, s := range v.surplus() {
		err := r.Client.Delete(ctx, s, client.Preconditions{UID: &s.UID, ResourceVersion: &s.ResourceVersion})
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete ReplicaSet %s: %w", s.Name, err)
		}
		v.old = slices.DeleteFunc(v.old, func(o *appsv1.ReplicaSet) bool { return o.UID == s.UID })
	}
	return nil
}
