package tainteviction

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func TestDeadline(t *testing.T) {
	now := time.Unix(1000, 0)
	added := metav1.NewTime(now.Add(-100 * time.Second))
	taint := corev1.Taint{Key: "k", Effect: corev1.TaintEffectNoExecute, TimeAdded: &added}
	other := corev1.Taint{Key: "o", Effect: corev1.TaintEffectNoExecute, TimeAdded: &added}
	tolerate := func(key string, seconds *int64) corev1.Toleration {
		return corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists, TolerationSeconds: seconds}
	}
	tests := []struct {
		name        string
		taints      []corev1.Taint
		tolerations []corev1.Toleration
		after       time.Duration // since now
		stays       bool
	}{
		{name: "no taint", stays: true},
		{name: "not tolerated", taints: []corev1.Taint{taint}},
		{name: "tolerated for ever", taints: []corev1.Taint{taint}, tolerations: []corev1.Toleration{tolerate("k", nil)}, stays: true},
		{name: "tolerated for a while", taints: []corev1.Taint{taint}, tolerations: []corev1.Toleration{tolerate("k", ptr.To[int64](300))}, after: 200 * time.Second},
		{name: "longest toleration of a taint", taints: []corev1.Taint{taint}, tolerations: []corev1.Toleration{tolerate("k", ptr.To[int64](1)), tolerate("k", ptr.To[int64](150))}, after: 50 * time.Second},
		{name: "earliest taint", taints: []corev1.Taint{taint, other}, tolerations: []corev1.Toleration{tolerate("k", ptr.To[int64](300)), tolerate("o", ptr.To[int64](120))}, after: 20 * time.Second},
		{name: "one of two not tolerated", taints: []corev1.Taint{taint, other}, tolerations: []corev1.Toleration{tolerate("k", nil)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			at, evict := deadline(tt.taints, tt.tolerations, now)
			if evict == tt.stays || evict && at.Sub(now) != tt.after {
				t.Errorf("after %v, %v; want %v, %v", at.Sub(now), evict, tt.after, !tt.stays)
			}
		})
	}
}
