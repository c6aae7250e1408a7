//lint:file-ignore SA1019 Nodes may not set the deprecated configSource, so it is read.

package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	kubeletapis "k8s.io/kubelet/pkg/apis"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// nodeUserPrefix starts the user name of a node.
const nodeUserPrefix = "system:node:"

// NodeRestriction keeps a node to itself where the path of a request does not tell: its own
// Node, Lease and CSINode, the status and eviction of its own pods, tokens for its own pods,
// certificates of its own name, and no labels or taints by which it could draw other's pods to
// itself. It is the stock plugin's counterpart and goes with the node authorizer.
type NodeRestriction struct {
	reader client.Reader
}

var (
	_ admission.MutationInterface   = (*NodeRestriction)(nil)
	_ admission.ValidationInterface = (*NodeRestriction)(nil)
)

// NewNodeRestriction makes the plugin.
func NewNodeRestriction(reader client.Reader) *NodeRestriction {
	return &NodeRestriction{reader: reader}
}

// Handles implements admission.Interface.
func (*NodeRestriction) Handles(op admission.Operation) bool {
	return op == admission.Create || op == admission.Update || op == admission.Delete
}

// Admit implements admission.MutationInterface. It alters nothing: a request is refused before
// other plugins work on it.
func (n *NodeRestriction) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	return n.Validate(ctx, a, nil)
}

// Validate implements admission.ValidationInterface: what other plugins made of the request
// must be allowed too.
func (n *NodeRestriction) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	node, isNode := nodeOf(a.GetUserInfo())
	if !isNode {
		return nil
	}
	err := n.restrict(ctx, a, node)
	if err != nil {
		return admission.NewForbidden(a, err)
	}
	return nil
}

func nodeOf(u user.Info) (string, bool) {
	if u == nil || !slices.Contains(u.GetGroups(), user.NodesGroup) {
		return "", false
	}
	return strings.CutPrefix(u.GetName(), nodeUserPrefix)
}

func (n *NodeRestriction) restrict(ctx context.Context, a admission.Attributes, node string) error {
	if node == "" {
		return fmt.Errorf("could not determine node from user %q", a.GetUserInfo().GetName())
	}
	switch a.GetResource().GroupResource() {
	case schema.GroupResource{Resource: "pods"}:
		return n.pod(ctx, a, node)
	case schema.GroupResource{Resource: "nodes"}:
		return ownNode(a, node)
	case schema.GroupResource{Resource: "persistentvolumeclaims"}:
		return claimStatus(a, node)
	case schema.GroupResource{Resource: "serviceaccounts"}:
		return n.token(ctx, a, node)
	case schema.GroupResource{Group: coordinationv1.GroupName, Resource: "leases"}:
		if a.GetNamespace() != corev1.NamespaceNodeLease {
			return fmt.Errorf("can only access leases in the %q system namespace", corev1.NamespaceNodeLease)
		}
		return ownName(a, node)
	case schema.GroupResource{Group: storagev1.GroupName, Resource: "csinodes"}:
		return ownName(a, node)
	case schema.GroupResource{Group: resourcev1.GroupName, Resource: "resourceslices"}:
		return ownSlice(a, node)
	case schema.GroupResource{Group: certificatesv1.GroupName, Resource: "certificatesigningrequests"}:
		return ownCertificate(a, node)
	}
	return nil
}

func (n *NodeRestriction) pod(ctx context.Context, a admission.Attributes, node string) error {
	switch sub, op := a.GetSubresource(), a.GetOperation(); {
	case sub == "" && op == admission.Create:
		return n.mirror(ctx, a, node)
	case sub == "" && op == admission.Delete, sub == "eviction" && op == admission.Create:
		name := a.GetName()
		if eviction, ok := a.GetObject().(*policyv1.Eviction); ok && name == "" {
			name = eviction.Name
		}
		_, err := n.ownPod(ctx, a.GetNamespace(), name, node)
		return err
	case sub == "status" && op == admission.Update:
		return podStatus(a, node)
	}
	return fmt.Errorf("unexpected operation %q on pods/%s by node %q", a.GetOperation(), a.GetSubresource(), node)
}

// ownPod reads a pod that must be bound to the node.
func (n *NodeRestriction) ownPod(ctx context.Context, namespace, name, node string) (*corev1.Pod, error) {
	var pod corev1.Pod
	if err := n.reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &pod); err != nil {
		return nil, err
	}
	if pod.Spec.NodeName != node {
		return nil, fmt.Errorf("node %q can only act on pods with spec.nodeName set to itself", node)
	}
	return &pod, nil
}

// mirror allows the one kind of pod that a node may create: the picture of one that runs there
// by a file, owned by the node and referring to nothing else in the API.
func (n *NodeRestriction) mirror(ctx context.Context, a admission.Attributes, node string) error {
	pod, ok := a.GetObject().(*corev1.Pod)
	if !ok {
		return fmt.Errorf("unexpected type %T", a.GetObject())
	}
	if _, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]; !ok {
		return fmt.Errorf("pod does not have %q annotation, node %q can only create mirror pods", corev1.MirrorPodAnnotationKey, node)
	}
	if pod.Spec.NodeName != node {
		return fmt.Errorf("node %q can only create pods with spec.nodeName set to itself", node)
	}
	if len(pod.OwnerReferences) != 1 {
		return fmt.Errorf("node %q can only create pods with a single owner reference set to itself", node)
	}
	owner := pod.OwnerReferences[0]
	switch {
	case owner.APIVersion != "v1" || owner.Kind != "Node" || owner.Name != node:
		return fmt.Errorf("node %q can only create pods with an owner reference set to itself", node)
	case owner.Controller == nil || !*owner.Controller:
		return fmt.Errorf("node %q can only create pods with a controller owner reference set to itself", node)
	case owner.BlockOwnerDeletion != nil && *owner.BlockOwnerDeletion:
		return fmt.Errorf("node %q must not set blockOwnerDeletion on an owner reference", node)
	}
	var self corev1.Node
	if err := n.reader.Get(ctx, client.ObjectKey{Name: node}, &self); err != nil {
		return fmt.Errorf("error looking up node %s to verify uid: %w", node, err)
	}
	if self.UID != owner.UID {
		return fmt.Errorf("node %s UID mismatch: expected %s got %s", node, owner.UID, self.UID)
	}
	if what := refersTo(pod); what != "" {
		return fmt.Errorf("node %q can not create pods that reference %s", node, what)
	}
	return nil
}

// refersTo names what of the API a pod refers to, if anything. Volumes are allowed by kind, so
// that new kinds are refused.
func refersTo(pod *corev1.Pod) string {
	switch {
	case pod.Spec.ServiceAccountName != "":
		return "serviceaccounts"
	case len(pod.Spec.ImagePullSecrets) > 0 || len(envSecrets(&pod.Spec, true)) > 0:
		return "secrets"
	case len(pod.Spec.ResourceClaims) > 0:
		return "resourceclaims"
	}
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			for _, from := range containers[i].EnvFrom {
				if from.ConfigMapRef != nil {
					return "configmaps"
				}
			}
			for _, env := range containers[i].Env {
				if env.ValueFrom != nil && env.ValueFrom.ConfigMapKeyRef != nil {
					return "configmaps"
				}
			}
		}
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i].VolumeSource
		if v.EmptyDir == nil && v.HostPath == nil && v.DownwardAPI == nil && v.Image == nil {
			return "volumes of this kind: " + pod.Spec.Volumes[i].Name
		}
	}
	return ""
}

func podStatus(a admission.Attributes, node string) error {
	pod, ok := a.GetObject().(*corev1.Pod)
	old, okOld := a.GetOldObject().(*corev1.Pod)
	if !ok || !okOld {
		return fmt.Errorf("unexpected type %T", a.GetObject())
	}
	switch {
	case old.Spec.NodeName != node:
		return fmt.Errorf("node %q can only update pod status for pods with spec.nodeName set to itself", node)
	case !equality.Semantic.DeepEqual(pod.Labels, old.Labels):
		return fmt.Errorf("node %q cannot update labels through pod status", node)
	case !equality.Semantic.DeepEqual(pod.Status.ResourceClaimStatuses, old.Status.ResourceClaimStatuses),
		!equality.Semantic.DeepEqual(pod.Status.ExtendedResourceClaimStatus, old.Status.ExtendedResourceClaimStatus),
		!equality.Semantic.DeepEqual(pod.Status.NodeAllocatableResourceClaimStatuses, old.Status.NodeAllocatableResourceClaimStatuses):
		return fmt.Errorf("node %q cannot update resource claim statuses", node)
	}
	return nil
}

func ownNode(a admission.Attributes, node string) error {
	name := a.GetName()
	obj, _ := a.GetObject().(*corev1.Node)
	if name == "" && obj != nil {
		name = obj.Name
	}
	if name != node {
		return fmt.Errorf("node %q is not allowed to modify node %q", node, name)
	}
	if a.GetOperation() == admission.Delete || obj == nil {
		return nil
	}
	old := &corev1.Node{}
	if a.GetOperation() == admission.Update {
		var ok bool
		if old, ok = a.GetOldObject().(*corev1.Node); !ok {
			return fmt.Errorf("unexpected type %T", a.GetOldObject())
		}
		if !equality.Semantic.DeepEqual(obj.Spec.Taints, old.Spec.Taints) {
			return fmt.Errorf("node %q is not allowed to modify taints", node)
		}
		if !equality.Semantic.DeepEqual(obj.OwnerReferences, old.OwnerReferences) {
			return fmt.Errorf("node %q is not allowed to modify ownerReferences", node)
		}
	}
	if obj.Spec.ConfigSource != nil && !equality.Semantic.DeepEqual(obj.Spec.ConfigSource, old.Spec.ConfigSource) {
		return fmt.Errorf("node %q is not allowed to set configSource", node)
	}
	if labels := forbiddenLabels(obj.Labels, old.Labels); len(labels) > 0 {
		return fmt.Errorf("is not allowed to modify labels: %s", strings.Join(labels, ", "))
	}
	return nil
}

// forbiddenLabels lists the changed labels that are not a node's to change: those of
// Kubernetes' own domains, but for the well-known ones by which nodes describe themselves.
func forbiddenLabels(now, before map[string]string) []string {
	var out []string
	check := func(key string) {
		domain, _, ok := strings.Cut(key, "/")
		if !ok {
			return
		}
		within := func(d string) bool { return domain == d || strings.HasSuffix(domain, "."+d) }
		if within(corev1.LabelNamespaceNodeRestriction) ||
			(within("kubernetes.io") || within("k8s.io")) && !kubeletapis.IsKubeletLabel(key) {
			out = append(out, key)
		}
	}
	for key, value := range now {
		if was, ok := before[key]; !ok || was != value {
			check(key)
		}
	}
	for key := range before {
		if _, ok := now[key]; !ok {
			check(key)
		}
	}
	slices.Sort(out)
	return out
}

// claimStatus allows a node to report a claim's capacity and conditions, and nothing else.
func claimStatus(a admission.Attributes, node string) error {
	claim, ok := a.GetObject().(*corev1.PersistentVolumeClaim)
	old, okOld := a.GetOldObject().(*corev1.PersistentVolumeClaim)
	if a.GetSubresource() != "status" || a.GetOperation() != admission.Update || !ok || !okOld {
		return errors.New("may only update PVC status")
	}
	claim, old = claim.DeepCopy(), old.DeepCopy()
	for _, c := range []*corev1.PersistentVolumeClaim{claim, old} {
		c.ResourceVersion, c.ManagedFields = "", nil
		c.Status.Capacity, c.Status.Conditions = nil, nil
		c.Status.AllocatedResources, c.Status.AllocatedResourceStatuses = nil, nil
	}
	if !equality.Semantic.DeepEqual(claim.ObjectMeta, old.ObjectMeta) || !equality.Semantic.DeepEqual(claim.Spec, old.Spec) ||
		!equality.Semantic.DeepEqual(claim.Status, old.Status) {
		return fmt.Errorf("node %q is not allowed to update fields other than status.capacity and status.conditions", node)
	}
	return nil
}

func ownName(a admission.Attributes, node string) error {
	name := a.GetName()
	if obj, err := meta.Accessor(a.GetObject()); err == nil && a.GetOperation() == admission.Create {
		name = obj.GetName()
	}
	if name != node {
		return fmt.Errorf("can only access an object with the same name as the requesting node, not %q", name)
	}
	return nil
}

func ownSlice(a admission.Attributes, node string) error {
	if a.GetOperation() != admission.Create {
		return nil
	}
	slice, ok := a.GetObject().(*resourcev1.ResourceSlice)
	if !ok {
		return fmt.Errorf("unexpected type %T", a.GetObject())
	}
	if slice.Spec.NodeName == nil || *slice.Spec.NodeName != node {
		return errors.New("can only create ResourceSlice with the same NodeName as the requesting node")
	}
	return nil
}
