// Package drain empties a node for good: it takes no new pods, and those that it has are evicted, as their
// PodDisruptionBudgets permit, and come up elsewhere.
//
// It does what kubectl drain does, with the rights of the node itself. Pods of DaemonSets and static pods stay: they belong to
// the machine. What is in an emptyDir goes with its pod.
package drain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"barque.dev/internal/run"
)

// retry is the pause between attempts to evict, and between looks whether pods are gone.
const retry = time.Second

// Config says what to drain.
type Config struct {
	// Client may cordon the node, and list and evict its pods.
	Client kubernetes.Interface
	Node   string
	// Bare evicts pods too that no controller will make again.
	Bare bool
	// Say gets a line for each step; never nil.
	Say func(format string, args ...any)
}

// ErrBare: the node has pods that nobody would make again.
var ErrBare = errors.New("nobody would make them again elsewhere")

// Drain cordons the node and evicts its pods; it returns when they are gone. When ctx ends first, the error names
// those that are left, and why. The node stays cordoned then. A node that isn't registered is drained.
func Drain(ctx context.Context, cfg Config) error {
	pods, err := cfg.pods(ctx)
	if err != nil {
		return err
	}
	if bare := named(pods, isBare); len(bare) > 0 && !cfg.Bare {
		return fmt.Errorf("drain node %s: pods %s belong to no controller: %w", cfg.Node, strings.Join(bare, ", "), ErrBare)
	}
	patch := []byte(`{"spec":{"unschedulable":true}}`)
	_, err = cfg.Client.CoreV1().Nodes().Patch(ctx, cfg.Node, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cordon node %s: %w", cfg.Node, err)
	}
	cfg.Say("node %s takes no new pods", cfg.Node)
	return cfg.evictAll(ctx)
}

// evictAll asks again and again until no pod is left.
func (c Config) evictAll(ctx context.Context) error {
	said := map[types.UID]bool{}
	refusals := map[types.UID]string{}
	var left []corev1.Pod
	for {
		pods, err := c.pods(ctx)
		if err == nil {
			left = slices.DeleteFunc(pods, func(p corev1.Pod) bool { return !goes(&p) })
			if len(left) == 0 {
				return nil
			}
			for i := range left {
				c.evict(ctx, &left[i], said, refusals)
			}
		}
		if !run.Pause(ctx, retry) {
			return c.unfinished(left, refusals, err)
		}
	}
}

// evict asks for one pod's eviction, unless it is on its way.
func (c Config) evict(ctx context.Context, p *corev1.Pod, said map[types.UID]bool, refusals map[types.UID]string) {
	if p.DeletionTimestamp != nil {
		refusals[p.UID] = "it has not ended yet"
		return
	}
	uid := p.UID
	err := c.Client.PolicyV1().Evictions(p.Namespace).Evict(ctx, &policyv1.Eviction{
		ObjectMeta:    metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}},
	})
	switch {
	case err == nil:
		c.Say("evicted pod %s/%s", p.Namespace, p.Name)
		refusals[uid] = "it has not ended yet"
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err):
	case ctx.Err() == nil:
		refusals[uid] = err.Error()
		if !said[uid] {
			said[uid] = true
			c.Say("pod %s/%s has to wait: %v", p.Namespace, p.Name, err)
		}
	}
}

// unfinished is the error when time is up.
func (c Config) unfinished(left []corev1.Pod, refusals map[types.UID]string, err error) error {
	if err != nil && len(left) == 0 {
		return err
	}
	const shown = 5
	var lines []string
	for i := range left[:min(shown, len(left))] {
		lines = append(lines, fmt.Sprintf("%s/%s (%s)", left[i].Namespace, left[i].Name, refusals[left[i].UID]))
	}
	if len(left) > shown {
		lines = append(lines, fmt.Sprintf("and %d more", len(left)-shown))
	}
	return fmt.Errorf("drain node %s: time is up, and pods are left: %s", c.Node, strings.Join(lines, ", "))
}

func (c Config) pods(ctx context.Context) ([]corev1.Pod, error) {
	list, err := c.Client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("spec.nodeName", c.Node).String(),
	})
	if err != nil {
		return nil, fmt.Errorf("list the pods of node %s: %w", c.Node, err)
	}
	return list.Items, nil
}

// goes tells whether a pod has to leave the node.
func goes(p *corev1.Pod) bool {
	if _, static := p.Annotations[corev1.MirrorPodAnnotationKey]; static {
		return false
	}
	owner := metav1.GetControllerOf(p)
	return owner == nil || owner.Kind != "DaemonSet"
}

// isBare tells whether a pod would be lost for good: it has to leave, is not done, and no controller has it.
func isBare(p *corev1.Pod) bool {
	done := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	return goes(p) && !done && p.DeletionTimestamp == nil && metav1.GetControllerOf(p) == nil
}

// named are the names of the pods that are so.
func named(pods []corev1.Pod, so func(*corev1.Pod) bool) []string {
	var names []string
	for i := range pods {
		if so(&pods[i]) {
			names = append(names, pods[i].Namespace+"/"+pods[i].Name)
		}
	}
	return names
}
