package agent

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/cri/critest"
	"barque.dev/internal/agent/podspec"
)

// An image that a container has as a volume is in use, though no container was made from it.
func TestMountedImages(t *testing.T) {
	rt := critest.New("i")
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u"}}
	pod.Spec.Containers = []corev1.Container{{Name: "a", Image: "i"}}
	pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "files"}}}}
	node := podspec.Node{LogRoot: t.TempDir()}
	sandbox, err := node.SandboxConfig(pod, 0, "/x")
	if err != nil {
		t.Fatal(err)
	}
	made, err := rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		t.Fatal(err)
	}
	config, err := node.ContainerConfig(pod, &pod.Spec.Containers[0], podspec.Launch{ImageRef: "i", Mounts: []*runtimeapi.Mount{
		{ContainerPath: "/files", Image: &runtimeapi.ImageSpec{Image: "sha256:files"}, Readonly: true}, {ContainerPath: "/host", HostPath: "/host"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: made.GetPodSandboxId(), Config: config, SandboxConfig: sandbox}); err != nil {
		t.Fatal(err)
	}
	list, err := rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := mountedImages(t.Context(), rt, []*corev1.Pod{pod}, list.GetContainers())
	if err != nil || !slices.Equal(got, []string{"sha256:files"}) {
		t.Errorf("mounted: %v, %v", got, err)
	}
}
