package statefulset

import (
	"bytes"
	"context"

	appsv1 "k8s.io/api/apps/v1"

	"barque.dev/internal/controllers/history"
	"barque.dev/internal/controllers/kit"
)

// revisions are a set's: all in order, and the two that its pods are made of.
type revisions struct {
	all             []*appsv1.ControllerRevision
	current, update *appsv1.ControllerRevision
	collisions      int32
}

// revisions finds the revision of the set's template, or makes it: the latest if it has the
// same content, else an older one that has, which becomes the latest, else a new one.
func (r *reconciler) revisions(ctx context.Context, set *appsv1.StatefulSet) (revisions, error) {
	var rs revisions
	var err error
	if rs.all, err = history.List(ctx, r.Client, set, kind, kit.Selector(set.Spec.Selector)); err != nil {
		return rs, err
	}
	content, err := history.TemplatePatch(&set.Spec.Template)
	if err != nil {
		return rs, err
	}
	if set.Status.CollisionCount != nil {
		rs.collisions = *set.Status.CollisionCount
	}
	number := history.Next(rs.all)
	equal := lastEqual(rs.all, content)
	last := len(rs.all) - 1
	switch {
	case equal >= 0 && bytes.Equal(rs.all[last].Data.Raw, content):
		rs.update = rs.all[last]
	case equal >= 0:
		rs.update, err = history.Renumber(ctx, r.Client, rs.all[equal], number)
	case last >= 0 && r.sameAfterDefaulting(set, rs.all[last], content):
		rs.update = rs.all[last]
	default:
		rs.update, err = r.newRevision(ctx, set, content, number, &rs.collisions)
	}
	if err != nil {
		return rs, err
	}
	rs.current = rs.update
	for _, cr := range rs.all {
		if cr.Name == set.Status.CurrentRevision {
			rs.current = cr
		}
	}
	return rs, nil
}

func lastEqual(all []*appsv1.ControllerRevision, content []byte) int {
	for i := len(all) - 1; i >= 0; i-- {
		if bytes.Equal(all[i].Data.Raw, content) {
			return i
		}
	}
	return -1
}

// sameAfterDefaulting tells whether a revision means the same as content once today's defaults
// are filled in, as after an upgrade that brought new ones: such a set must not roll.
func (r *reconciler) sameAfterDefaulting(set *appsv1.StatefulSet, cr *appsv1.ControllerRevision, content []byte) bool {
	template, err := history.Template(cr)
	if err != nil {
		return false
	}
	restored := set.DeepCopy()
	restored.Spec.Template = *template
	r.Client.Scheme().Default(restored)
	defaulted, err := history.TemplatePatch(&restored.Spec.Template)
	return err == nil && bytes.Equal(defaulted, content)
}

// newRevision makes a revision under a name that is free.
func (r *reconciler) newRevision(ctx context.Context, set *appsv1.StatefulSet, content []byte, number int64, collisions *int32) (*appsv1.ControllerRevision, error) {
	label := history.Hash(content, collisions)
	for {
		hash := history.Hash(content, collisions)
		cr, collision, err := history.Create(ctx, r.Client, history.New(
			set, kind, history.Name(set.Name, hash), set.Spec.Template.Labels, history.HashLabel, label, content, number))
		if err != nil || !collision {
			return cr, err
		}
		*collisions++
	}
}

// truncate deletes the oldest revisions that nothing uses, beyond the history limit.
func (r *reconciler) truncate(ctx context.Context, v view, rs revisions) error {
	inUse := map[string]bool{rs.current.Name: true, rs.update.Name: true}
	for _, p := range v.pods {
		inUse[revisionOf(p)] = true
	}
	var idle []*appsv1.ControllerRevision
	for _, cr := range rs.all {
		if !inUse[cr.Name] {
			idle = append(idle, cr)
		}
	}
	if v.set.Spec.RevisionHistoryLimit == nil || *v.set.Spec.RevisionHistoryLimit < 0 {
		return nil
	}
	return history.Truncate(ctx, r.Client, idle, int(*v.set.Spec.RevisionHistoryLimit), func(*appsv1.ControllerRevision) bool { return false })
}
