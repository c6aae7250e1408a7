// Package history keeps the revisions of DaemonSets and StatefulSets: one ControllerRevision
// for each pod template that an object has had, numbered in the order of their use. Contents
// and names are those that kube-controller-manager makes, so that a cluster that moves here
// finds its revisions, and rolls nothing.
package history

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/rand"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/controllers/kit"
)

// HashLabel holds the hash of a StatefulSet's revision.
const HashLabel = "controller.kubernetes.io/hash"

// TemplatePatch is the content of a revision: a strategic merge patch that replaces an object's
// spec.template. Its bytes are compared, so keys are sorted as encoding/json sorts a map's.
func TemplatePatch(template *corev1.PodTemplateSpec) ([]byte, error) {
	encoded, err := json.Marshal(template)
	if err != nil {
		return nil, fmt.Errorf("encode pod template: %w", err)
	}
	var fields map[string]any
	if err := json.Unmarshal(encoded, &fields); err != nil {
		return nil, fmt.Errorf("decode pod template: %w", err)
	}
	fields["$patch"] = "replace"
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"template": fields}})
	if err != nil {
		return nil, fmt.Errorf("encode revision: %w", err)
	}
	return patch, nil
}

// Template reads a revision's content back.
func Template(revision *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var patch struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(revision.Data.Raw, &patch); err != nil {
		return nil, fmt.Errorf("decode ControllerRevision %s: %w", revision.Name, err)
	}
	return &patch.Spec.Template, nil
}

// Hash is the hash that names a StatefulSet's revision: FNV-1 of its content, then of the
// collision count in decimal, if any.
func Hash(content []byte, collisions *int32) string {
	h := fnv.New32()
	h.Write(content)
	if collisions != nil {
		h.Write([]byte(strconv.Itoa(int(*collisions))))
	}
	return rand.SafeEncodeString(fmt.Sprint(h.Sum32()))
}

// Name is a revision's name; a long prefix is cut.
func Name(prefix, hash string) string {
	const room = 223
	if len(prefix) > room {
		prefix = prefix[:room]
	}
	return prefix + "-" + hash
}

// New makes a revision of owner that is not created yet.
func New(owner client.Object, kind schema.GroupVersionKind, name string, templateLabels map[string]string, label, hash string, content []byte, number int64) *appsv1.ControllerRevision {
	l := maps.Clone(templateLabels)
	if l == nil {
		l = map[string]string{}
	}
	l[label] = hash
	return &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Name:            name,
			Namespace:       owner.GetNamespace(),
			Labels:          l,
			Annotations:     maps.Clone(owner.GetAnnotations()),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner, kind)},
		},
		Data:     runtime.RawExtension{Raw: content},
		Revision: number,
	}
}

// List returns owner's revisions by number, having adopted and released.
func List(ctx context.Context, c client.Client, owner client.Object, kind schema.GroupVersionKind, selector labels.Selector) ([]*appsv1.ControllerRevision, error) {
	all, err := kit.List[*appsv1.ControllerRevision](ctx, c, &appsv1.ControllerRevisionList{}, client.InNamespace(owner.GetNamespace()))
	if err != nil {
		return nil, err
	}
	own, err := kit.Claim(ctx, kit.Claimer{Client: c, Owner: owner, OwnerKind: kind, Selector: selector}, all)
	if err != nil {
		return nil, fmt.Errorf("claim ControllerRevisions: %w", err)
	}
	slices.SortStableFunc(own, Compare)
	return own, nil
}

// Compare orders revisions by number, then by creation and name.
func Compare(a, b *appsv1.ControllerRevision) int {
	return cmp.Or(cmp.Compare(a.Revision, b.Revision), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

// Next is the number after the highest.
func Next(revisions []*appsv1.ControllerRevision) int64 {
	var highest int64
	for _, r := range revisions {
		highest = max(highest, r.Revision)
	}
	return highest + 1
}

// Renumber gives a revision that is in use again the highest number, and returns its new version.
func Renumber(ctx context.Context, c client.Client, r *appsv1.ControllerRevision, number int64) (*appsv1.ControllerRevision, error) {
	if r.Revision == number {
		return r, nil
	}
	changed := r.DeepCopy()
	changed.Revision = number
	if err := c.Update(ctx, changed); err != nil {
		return nil, fmt.Errorf("renumber ControllerRevision %s to %d: %w", r.Name, number, err)
	}
	return changed, nil
}

// Create creates r. If its name is taken, by what has the same content, that is returned; by
// other content, collision is true and the caller chooses another name.
func Create(ctx context.Context, c client.Client, r *appsv1.ControllerRevision) (created *appsv1.ControllerRevision, collision bool, err error) {
	err = c.Create(ctx, r)
	if err == nil {
		return r, false, nil
	}
	if !apierrors.IsAlreadyExists(err) {
		return nil, false, fmt.Errorf("create ControllerRevision %s: %w", r.Name, err)
	}
	var there appsv1.ControllerRevision
	if err := c.Get(ctx, client.ObjectKeyFromObject(r), &there); err != nil {
		return nil, false, fmt.Errorf("get ControllerRevision %s: %w", r.Name, err)
	}
	return &there, !bytes.Equal(there.Data.Raw, r.Data.Raw), nil
}

// Truncate deletes the oldest of old, which are in order, until limit are left, sparing those
// that are in use.
func Truncate(ctx context.Context, c client.Client, old []*appsv1.ControllerRevision, limit int, inUse func(*appsv1.ControllerRevision) bool) error {
	for _, r := range surplus(old, limit, inUse) {
		if err := c.Delete(ctx, r, client.Preconditions{UID: &r.UID}); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete ControllerRevision %s: %w", r.Name, err)
		}
	}
	return nil
}

func surplus(old []*appsv1.ControllerRevision, limit int, inUse func(*appsv1.ControllerRevision) bool) []*appsv1.ControllerRevision {
	var s []*appsv1.ControllerRevision
	for _, r := range old {
		if len(old)-len(s) <= limit {
			break
		}
		if !inUse(r) {
			s = append(s, r)
		}
	}
	return s
}
