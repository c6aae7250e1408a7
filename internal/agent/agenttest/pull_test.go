package agenttest

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/runtime/images/imagetest"
)

// createPullSecret makes a secret with which a registry is asked.
func (m *machine) createPullSecret(name, registry, user, password string) {
	m.Helper()
	config, err := json.Marshal(map[string]any{"auths": map[string]any{registry: map[string]string{"username": user, "password": password}}})
	if err != nil {
		m.Fatal(err)
	}
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", ResourceVersion: "1"},
		Type:       corev1.SecretTypeDockerConfigJson,
		Data:       map[string][]byte{corev1.DockerConfigJsonKey: config},
	}
	if _, err := m.client.CoreV1().Secrets("default").Create(m.Context(), secret, metav1.CreateOptions{}); err != nil {
		m.Fatal(err)
	}
}

// waiting returns why the pod's container waits, if it does.
func (m *machine) waiting(name string) corev1.ContainerStateWaiting {
	if p := m.pod(name); p != nil && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil {
		return *p.Status.ContainerStatuses[0].State.Waiting
	}
	return corev1.ContainerStateWaiting{}
}

// TestPullSecrets: an image that its registry shows to few runs for a pod that names a secret which
// opens the registry, whatever else it names, and for no other.
func TestPullSecrets(t *testing.T) {
	m := newMachine(t)
	registry := imagetest.NewRegistry(t, "ann", "right")
	m.createPullSecret("right", registry.Host, "ann", "right")
	m.createPullSecret("wrong", registry.Host+"/private", "ann", "wrong")
	m.createPullSecret("elsewhere", "registry.example.com", "ann", "right")
	m.start()
	for _, tt := range []struct {
		name    string
		secrets []string
		why     string
		refused bool // the registry sees a password that is not right
	}{
		{"without", nil, "no basic auth credentials", false},
		{"elsewhere", []string{"elsewhere", "missing"}, "no basic auth credentials", false},
		{"wrong", []string{"wrong"}, "401 Unauthorized", true},
	} {
		before := registry.Refused()
		m.run(tt.name, registry.Image, "exec sleep 1000", tt.secrets...)
		m.eventually(tt.name+" waits for its image", func() bool {
			return slices.Contains([]string{"ErrImagePull", "ImagePullBackOff"}, m.waiting(tt.name).Reason)
		})
		if message := m.waiting(tt.name).Message; !strings.Contains(message, registry.Image) || !strings.Contains(message, tt.why) {
			t.Errorf("%s: the message does not say what is wrong: %s", tt.name, message)
		}
		if refused := registry.Refused() > before; refused != tt.refused {
			t.Errorf("%s: the registry saw a wrong password: %v", tt.name, refused)
		}
	}
	// The wrong one is for a part of the registry, and so tried first.
	m.run("both", registry.Image, "exec sleep 1000", "missing", "wrong", "right")
	m.eventually("the pod with the right secret is ready", func() bool { return m.ready("both") })
	if got := m.pod("both").Status.ContainerStatuses[0].Image; got != registry.Image {
		t.Errorf("the container's image is %s", got)
	}
}

// TestImageVolume: an image that a pod has as a volume is pulled with the pod's secrets, and its files
// are there for every container that mounts it, to be read and not to be written.
func TestImageVolume(t *testing.T) {
	m := newMachine(t)
	registry := imagetest.NewRegistry(t, "ann", "right")
	m.createPullSecret("right", registry.Host, "ann", "right")
	m.start()
	p := m.define("files", imagetest.Busybox, "exec sleep 1000", "right")
	p.Spec.Volumes = []corev1.Volume{{Name: "files", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: registry.Image, PullPolicy: corev1.PullIfNotPresent}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "files", MountPath: "/files"}, {Name: "files", MountPath: "/etc-of-it", SubPath: "etc"}}
	second := *p.Spec.Containers[0].DeepCopy()
	second.Name = "second"
	p.Spec.Containers = append(p.Spec.Containers, second)
	m.create(p)
	m.eventually("the pod is ready", func() bool { return m.ready("files") })
	for _, container := range []string{"main", "second"} {
		for _, path := range []string{"/files/etc/passwd", "/etc-of-it/passwd"} {
			if got := m.exec("files", container, "", "cat", path); !strings.HasPrefix(got, "root:x:0:0:") {
				t.Errorf("%s of container %s: %q", path, container, got)
			}
		}
		if got := m.exec("files", container, "", "sh", "-c", "echo x 2>&1 > /files/new || echo refused"); !strings.Contains(got, "refused") {
			t.Errorf("the volume can be written by container %s: %q", container, got)
		}
	}

	none := m.define("none", imagetest.Busybox, "exec sleep 1000")
	none.Spec.Volumes = p.Spec.Volumes
	none.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "files", MountPath: "/files", SubPath: "no/such"}}
	m.create(none)
	m.eventually("the pod that wants what the image has not waits", func() bool { return m.waiting("none").Reason == "CreateContainerError" })
}
