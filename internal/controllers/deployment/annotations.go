package deployment

import (
	"math"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

// Annotations that kubectl and other tools know.
const (
	revisionAnnotation = "deployment.kubernetes.io/revision"
	historyAnnotation  = "deployment.kubernetes.io/revision-history"
	desiredAnnotation  = "deployment.kubernetes.io/desired-replicas"
	maxAnnotation      = "deployment.kubernetes.io/max-replicas"

	// maxHistoryLength bounds the revision history, in bytes.
	maxHistoryLength = 2000
)

// revision reads an object's revision; one without the annotation has 0.
func revision(s *appsv1.ReplicaSet) (int64, bool) {
	v, has := s.Annotations[revisionAnnotation]
	if !has {
		return 0, true
	}
	n, err := strconv.ParseInt(v, 10, 64)
	return n, err == nil
}

// nextRevision is one more than that of any old set.
func nextRevision(old []*appsv1.ReplicaSet) int64 {
	var highest int64
	for _, s := range old {
		if n, ok := revision(s); ok {
			highest = max(highest, n)
		}
	}
	return highest + 1
}

func annotatedSize(s *appsv1.ReplicaSet, annotation string) (int32, bool) {
	n, err := strconv.ParseUint(s.Annotations[annotation], 10, 32)
	if err != nil || n > math.MaxInt32 {
		return 0, false
	}
	return int32(n), true
}

// copied tells whether a deployment's annotation goes to its ReplicaSets too.
func copied(annotation string) bool {
	switch annotation {
	case corev1.LastAppliedConfigAnnotation, revisionAnnotation, historyAnnotation, desiredAnnotation, maxAnnotation,
		appsv1.DeprecatedRollbackTo:
		return false
	}
	return true
}

// annotateNewest gives the newest set the deployment's annotations and the revision next,
// unless its own is higher; a revision that it had is remembered in its history. It tells
// whether it changed anything.
func annotateNewest(d *appsv1.Deployment, s *appsv1.ReplicaSet, next int64) bool {
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	changed := false
	for k, v := range d.Annotations {
		if had, has := s.Annotations[k]; copied(k) && (!has || had != v) {
			s.Annotations[k] = v
			changed = true
		}
	}
	old, had := s.Annotations[revisionAnnotation]
	current, ok := revision(s)
	if !ok && old != "" || current >= next {
		return changed
	}
	s.Annotations[revisionAnnotation] = strconv.FormatInt(next, 10)
	if had {
		if h, fits := appendHistory(s.Annotations[historyAnnotation], old); fits {
			s.Annotations[historyAnnotation] = h
		}
	}
	return true
}

// appendHistory drops the oldest entries when there is no room.
func appendHistory(history, entry string) (string, bool) {
	if history == "" {
		return entry, true
	}
	entries := append(strings.Split(history, ","), entry)
	for len(strings.Join(entries, ",")) > maxHistoryLength {
		if entries = entries[1:]; len(entries) == 0 {
			return "", false
		}
	}
	return strings.Join(entries, ","), true
}

// annotateSizes notes the deployment's size and largest size in its set, by which a later change
// of the size is noticed and shared. It tells whether it changed anything.
func annotateSizes(d *appsv1.Deployment, s *appsv1.ReplicaSet) bool {
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	surge, _ := bounds(d)
	desired := strconv.Itoa(int(*d.Spec.Replicas))
	largest := strconv.Itoa(int(*d.Spec.Replicas + surge))
	changed := s.Annotations[desiredAnnotation] != desired || s.Annotations[maxAnnotation] != largest
	s.Annotations[desiredAnnotation], s.Annotations[maxAnnotation] = desired, largest
	return changed
}

// setRevision notes the revision in the deployment.
func setRevision(d *appsv1.Deployment, revision string) {
	if d.Annotations[revisionAnnotation] == revision {
		return
	}
	if d.Annotations == nil {
		d.Annotations = map[string]string{}
	}
	d.Annotations[revisionAnnotation] = revision
}
