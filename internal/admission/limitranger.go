package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/admission"
	resourcehelper "k8s.io/component-helpers/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// limitRangerAnnotation tells users of a pod what LimitRanger has set.
const limitRangerAnnotation = "kubernetes.io/limit-ranger"

// LimitRanger gives containers the requests and limits that their namespace's LimitRanges have
// for those without, and holds containers, pods and claims to the ranges, as the stock plugin does.
type LimitRanger struct {
	*admission.Handler
	reader client.Reader
}

var (
	_ admission.MutationInterface   = (*LimitRanger)(nil)
	_ admission.ValidationInterface = (*LimitRanger)(nil)
)

// NewLimitRanger makes the plugin.
func NewLimitRanger(reader client.Reader) *LimitRanger {
	return &LimitRanger{Handler: admission.NewHandler(admission.Create, admission.Update), reader: reader}
}

// Admit implements admission.MutationInterface. Every LimitRange is asked, in the order of names;
// what one has set the next leaves alone.
func (l *LimitRanger) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, ok := a.GetObject().(*corev1.Pod)
	if !ok || !limited(a) {
		return nil
	}
	ranges, err := l.ranges(ctx, a)
	if err != nil {
		return err
	}
	for i := range ranges {
		setDefaults(pod, &ranges[i])
	}
	return nil
}

// Validate implements admission.ValidationInterface.
func (l *LimitRanger) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if !limited(a) {
		return nil
	}
	ranges, err := l.ranges(ctx, a)
	if err != nil {
		return err
	}
	for i := range ranges {
		var broken []error
		switch obj := a.GetObject().(type) {
		case *corev1.Pod:
			broken = checkPod(obj, &ranges[i])
		case *corev1.PersistentVolumeClaim:
			broken = checkClaim(obj, &ranges[i])
		}
		if err := utilerrors.NewAggregate(broken); err != nil {
			return admission.NewForbidden(a, err)
		}
	}
	return nil
}

// limited tells whether LimitRanges have a say: in new pods and claims, claims that change, and
// pods that are resized, unless they are on their way out.
func limited(a admission.Attributes) bool {
	switch {
	case isPod(a) && a.GetOperation() == admission.Update && a.GetSubresource() != "resize",
		isPod(a) && a.GetOperation() == admission.Create && a.GetSubresource() != "",
		!isPod(a) && !isClaim(a), isClaim(a) && a.GetSubresource() != "":
		return false
	}
	if old := a.GetOldObject(); old != nil {
		if m, err := meta.Accessor(old); err != nil || m.GetDeletionTimestamp() != nil {
			return false
		}
	}
	return true
}

func (l *LimitRanger) ranges(ctx context.Context, a admission.Attributes) ([]corev1.LimitRange, error) {
	var list corev1.LimitRangeList
	if err := l.reader.List(ctx, &list, client.InNamespace(a.GetNamespace())); err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("list LimitRanges of namespace %s: %w", a.GetNamespace(), err))
	}
	return list.Items, nil
}

// setDefaults gives each container what the range has for those that do not say, and notes it.
func setDefaults(pod *corev1.Pod, limits *corev1.LimitRange) {
	requests, most := corev1.ResourceList{}, corev1.ResourceList{}
	for i := range limits.Spec.Limits {
		if item := &limits.Spec.Limits[i]; item.Type == corev1.LimitTypeContainer {
			fill(requests, item.DefaultRequest, true)
			fill(most, item.Default, true)
		}
	}
	if len(requests) == 0 && len(most) == 0 {
		return
	}
	var notes []string
	note := func(kind string, c *corev1.Container) {
		into := &c.Resources
		if into.Limits == nil {
			into.Limits = corev1.ResourceList{}
		}
		if into.Requests == nil {
			into.Requests = corev1.ResourceList{}
		}
		set := fill(into.Limits, most, false)
		if asked := fill(into.Requests, requests, false); len(asked) > 0 {
			notes = append(notes, fmt.Sprintf("%s request for %s %s", strings.Join(asked, ", "), kind, c.Name))
		}
		if len(set) > 0 {
			notes = append(notes, fmt.Sprintf("%s limit for %s %s", strings.Join(set, ", "), kind, c.Name))
		}
	}
	for i := range pod.Spec.Containers {
		note("container", &pod.Spec.Containers[i])
	}
	for i := range pod.Spec.InitContainers {
		note("init container", &pod.Spec.InitContainers[i])
	}
	if len(notes) > 0 {
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations[limitRangerAnnotation] = "LimitRanger plugin set: " + strings.Join(notes, "; ")
	}
}

// fill adds to a list what it lacks, or everything, and returns the names of what it added.
func fill(into, from corev1.ResourceList, over bool) []string {
	var added []string
	for name, quantity := range from {
		if _, has := into[name]; !has || over {
			into[name] = quantity.DeepCopy()
			added = append(added, string(name))
		}
	}
	slices.Sort(added)
	return added
}

func checkPod(pod *corev1.Pod, limits *corev1.LimitRange) []error {
	var broken []error
	// A pod's overhead is not its user's to limit, and its status says nothing of its spec.
	opts := resourcehelper.PodResourcesOptions{ExcludeOverhead: true}
	for i := range limits.Spec.Limits {
		item := &limits.Spec.Limits[i]
		switch item.Type {
		case corev1.LimitTypeContainer:
			for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
				for j := range list {
					broken = append(broken, check(item, list[j].Resources.Requests, list[j].Resources.Limits)...)
				}
			}
		case corev1.LimitTypePod:
			broken = append(broken, check(item, resourcehelper.PodRequests(pod, opts), resourcehelper.PodLimits(pod, opts))...)
		}
	}
	return broken
}

func checkClaim(claim *corev1.PersistentVolumeClaim, limits *corev1.LimitRange) []error {
	var broken []error
	for i := range limits.Spec.Limits {
		item := &limits.Spec.Limits[i]
		if item.Type != corev1.LimitTypePersistentVolumeClaim {
			continue
		}
		requests := claim.Spec.Resources.Requests
		for _, name := range sortedNames(item.Min) {
			broken = append(broken, atLeast(item.Type, name, item.Min[name], requests, nil))
		}
		for _, name := range sortedNames(item.Max) {
			broken = append(broken, requestAtMost(item.Type, name, item.Max[name], requests))
		}
	}
	return broken
}

// check holds requests and limits to one item of a range.
func check(item *corev1.LimitRangeItem, requests, limits corev1.ResourceList) []error {
	var broken []error
	for _, name := range sortedNames(item.Min) {
		broken = append(broken, atLeast(item.Type, name, item.Min[name], requests, limits))
	}
	for _, name := range sortedNames(item.Max) {
		broken = append(broken, atMost(item.Type, name, item.Max[name], requests, limits))
	}
	for _, name := range sortedNames(item.MaxLimitRequestRatio) {
		broken = append(broken, ratioAtMost(item.Type, name, item.MaxLimitRequestRatio[name], requests, limits))
	}
	return broken
}

// sortedNames are a list's resources in order, so that equal requests get equal answers.
func sortedNames(list corev1.ResourceList) []corev1.ResourceName {
	out := make([]corev1.ResourceName, 0, len(list))
	for name := range list {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
