package job

import (
	"fmt"
	"slices"
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/storage/names"

	"barque.dev/internal/controllers/pods"
)

const indexVariable = "JOB_COMPLETION_INDEX"

// newPod makes a pod for the index; noIndex for a job without.
func (s *state) newPod(index int) *corev1.Pod {
	ref := metav1.NewControllerRef(s.job, kind)
	if index == noIndex {
		return withFinalizer(pods.FromTemplate(&s.job.Spec.Template, s.job, ref, ""))
	}
	number := strconv.Itoa(index)
	pod := withFinalizer(pods.FromTemplate(&s.job.Spec.Template, s.job, ref, indexedPrefix(s.job.Name, number)))
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Annotations[batchv1.JobCompletionIndexAnnotation] = number
	pod.Labels[batchv1.JobCompletionIndexAnnotation] = number
	pod.Spec.Hostname = s.job.Name + "-" + number
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			list[i].Env = withIndexVariable(list[i].Env)
		}
	}
	if s.job.Spec.BackoffLimitPerIndex != nil {
		s.inheritFailures(pod, s.last[index])
	}
	return pod
}

func withFinalizer(pod *corev1.Pod) *corev1.Pod {
	if !tracked(pod) {
		pod.Finalizers = append(pod.Finalizers, batchv1.JobTrackingFinalizer)
	}
	return pod
}

// indexedPrefix is job-index-, the job's name cut so that the index stays whole.
func indexedPrefix(job, number string) string {
	suffix := "-" + number + "-"
	if room := names.MaxGeneratedNameLength - len(suffix); len(job) > room {
		job = job[:room]
	}
	return job + suffix
}

func withIndexVariable(env []corev1.EnvVar) []corev1.EnvVar {
	if slices.ContainsFunc(env, func(v corev1.EnvVar) bool { return v.Name == indexVariable }) {
		return env
	}
	return append(env, corev1.EnvVar{Name: indexVariable, ValueFrom: &corev1.EnvVarSource{
		FieldRef: &corev1.ObjectFieldSelector{FieldPath: fmt.Sprintf("metadata.labels['%s']", batchv1.JobCompletionIndexAnnotation)},
	}})
}

// inheritFailures notes in a pod how often its index failed before, by the pod that it replaces.
func (s *state) inheritFailures(pod, replaced *corev1.Pod) {
	var failures, ignored int32
	if replaced != nil {
		failures = annotated(replaced, batchv1.JobIndexFailureCountAnnotation)
		ignored = annotated(replaced, batchv1.JobIndexIgnoredFailureCountAnnotation)
		if judge(s.job.Spec.PodFailurePolicy, replaced).counted() {
			failures++
		} else {
			ignored++
		}
	}
	pod.Annotations[batchv1.JobIndexFailureCountAnnotation] = strconv.Itoa(int(failures))
	if ignored > 0 {
		pod.Annotations[batchv1.JobIndexIgnoredFailureCountAnnotation] = strconv.Itoa(int(ignored))
	}
}
