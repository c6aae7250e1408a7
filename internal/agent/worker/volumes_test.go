package worker

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/podspec"
	"barque.dev/internal/agent/volume"
)

// node is a node without services.
type node struct{}

func (node) Object() *corev1.Node                                 { return nil }
func (node) Facts() podspec.Facts                                 { return podspec.Facts{} }
func (node) Services() ([]*corev1.Service, bool)                  { return nil, true }
func (node) Handler(context.Context, *corev1.Pod) (string, error) { return "", nil }

// coloured returns a version of a pod with a volume that shows the pod's labels.
func coloured(version, color string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u", ResourceVersion: version, Labels: map[string]string{"color": color}},
		Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "info", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
			Items: []corev1.DownwardAPIVolumeFile{{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}}},
		}}}}},
	}
}

// volumes plays the part of a worker's steps that keeps volumes up to date.
type volumes struct {
	*testing.T
	w        *worker
	observed cri.Pod
	at       time.Time
}

func newVolumes(t *testing.T, pod *corev1.Pod) *volumes {
	log := slog.New(slog.DiscardHandler)
	m := New(t.Context(), Config{Volumes: &volume.Manager{Root: t.TempDir(), Log: log}, Node: node{}, Log: log})
	return &volumes{T: t, w: newWorker(m, pod), observed: cri.Pod{Sandboxes: []cri.Sandbox{{ID: "s", Ready: true}}}, at: time.Unix(1000, 0)}
}

// step has the worker look after the volumes of a version of the pod, and tells whether it did
// anything. What it began has ended when step returns.
func (v *volumes) step(pod *corev1.Pod) (busy bool) {
	v.w.keepVolumes(v.Context(), pod, pod, v.observed, nil, v.at)
	busy = v.w.busy[taskVolumes] != nil
	v.w.tasks.Wait()
	v.w.collect()
	return busy
}

func (v *volumes) shown(uid types.UID) string {
	v.Helper()
	data, err := os.ReadFile(filepath.Join(v.w.m.Volumes.PodDir(uid), "volumes", "kubernetes.io~downward-api", "info", "labels"))
	if err != nil {
		v.Fatal(err)
	}
	return string(data)
}

// A version of the pod that comes while a step works on the one before is shown by the next step.
func TestVolumesShowAVersionThatCameDuringAStep(t *testing.T) {
	first, second := coloured("1", "blue"), coloured("2", "green")
	v := newVolumes(t, first)
	v.w.update(first)
	v.w.update(second) // the step under way has already taken the first
	if !v.step(first) || v.shown("u") != `color="blue"` {
		t.Fatalf("the first version is shown as %q", v.shown("u"))
	}
	if !v.step(second) || v.shown("u") != `color="green"` {
		t.Errorf("the second version is shown as %q", v.shown("u"))
	}
	if v.step(second) {
		t.Error("volumes are refreshed although nothing has changed")
	}
}

// A change that comes while volumes are being refreshed is shown by another refresh.
func TestVolumesShowAChangeThatCameDuringARefresh(t *testing.T) {
	first, second := coloured("1", "blue"), coloured("2", "green")
	v := newVolumes(t, first)
	v.w.update(first)
	v.w.keepVolumes(t.Context(), first, first, v.observed, nil, v.at)
	v.w.update(second)
	v.w.keepVolumes(t.Context(), second, second, v.observed, nil, v.at) // one at a time: this one waits
	v.w.tasks.Wait()
	v.w.collect()
	if got := v.shown("u"); got != `color="blue"` {
		t.Fatalf("the first version is shown as %q", got)
	}
	if !v.step(second) || v.shown("u") != `color="green"` {
		t.Errorf("the second version is shown as %q", v.shown("u"))
	}
}

// A refresh that failed is tried again when its delay is over, and not before.
func TestVolumesAreTriedAgain(t *testing.T) {
	pod := coloured("1", "blue")
	v := newVolumes(t, pod)
	blocker := filepath.Join(v.w.m.Volumes.Root, "pods")
	if err := os.WriteFile(blocker, nil, 0o600); err != nil { // where the pods' folders go
		t.Fatal(err)
	}
	v.w.update(pod)
	if !v.step(pod) {
		t.Fatal("nothing was begun")
	}
	if err := os.Remove(blocker); err != nil {
		t.Fatal(err)
	}
	retry := v.w.retries[taskVolumes].at
	if retry.IsZero() {
		t.Fatal("the failure is not known")
	}
	v.at = retry.Add(-time.Millisecond)
	if v.step(pod) {
		t.Error("tried again before the delay is over")
	}
	v.at = retry
	if !v.step(pod) || v.shown("u") != `color="blue"` {
		t.Error("not tried again")
	}
	if len(v.w.retries) != 0 {
		t.Errorf("left to try: %v", v.w.retries)
	}
}
