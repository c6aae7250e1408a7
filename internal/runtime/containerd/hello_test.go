package containerd

import (
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/examples"
	"barque.dev/internal/runtime/images"
	"barque.dev/internal/runtime/images/imagetest"
)

// TestSampleApplication checks that the sample's images in this binary run, each as the version
// it says, as an unprivileged user on a read-only file system.
func TestSampleApplication(t *testing.T) {
	checkLeaks(t)
	n := newNode(t)
	n.startApart(t)
	archive, err := examples.HelloImages()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = archive.Close() }()
	store, err := images.Open(n.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	imported, err := store.Import(n.ctx, archive)
	if err != nil || len(imported) != 2 {
		t.Fatalf("imported %+v, %v", imported, err)
	}
	imagetest.ImportBusybox(t, n.Socket())
	for version, image := range map[string]string{"v1": examples.HelloV1, "v2": examples.HelloV2} {
		config := n.sandbox(version)
		s, err := n.RunPodSandbox(n.ctx, &cri.RunPodSandboxRequest{Config: config})
		if err != nil {
			t.Fatal(err)
		}
		create := func(name, image string, args ...string) string {
			c, err := n.CreateContainer(n.ctx, &cri.CreateContainerRequest{
				PodSandboxId: s.PodSandboxId, SandboxConfig: config,
				Config: &cri.ContainerConfig{
					Metadata: &cri.ContainerMetadata{Name: name},
					Image:    &cri.ImageSpec{Image: image},
					Args:     args,
					LogPath:  version + "-" + name + ".log",
					Envs:     []*cri.KeyValue{{Key: "POD_NAME", Value: []byte("pod-of-" + version)}},
					Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
						NamespaceOptions: config.Linux.SecurityContext.NamespaceOptions,
						ReadonlyRootfs:   true,
						NoNewPrivs:       true,
						Capabilities:     &cri.Capability{DropCapabilities: []string{"ALL"}},
						Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
					}},
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := n.StartContainer(n.ctx, &cri.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
				t.Fatal(err)
			}
			return c.ContainerId
		}
		hello := create("hello", image, "-drain=10ms")
		client := create("client", imagetest.Busybox, "sleep", "1000")
		var answer string
		eventually(t, "the application answers", func() bool {
			r, err := n.ExecSync(n.ctx, &cri.ExecSyncRequest{ContainerId: client, Cmd: []string{"busybox", "wget", "-qO-", "http://127.0.0.1:8080/"}, Timeout: 5})
			answer = string(r.GetStdout())
			return err == nil && answer != ""
		})
		if !strings.HasPrefix(answer, "hello "+version+" from pod-of-"+version) {
			t.Errorf("%s answers %q", version, answer)
		}
		if _, err := n.StopContainer(n.ctx, &cri.StopContainerRequest{ContainerId: hello, Timeout: 20}); err != nil {
			t.Fatal(err)
		}
		if status := n.state(t, hello); status.ExitCode != 0 {
			t.Errorf("told to stop, %s ends with %d", version, status.ExitCode)
		}
	}
}
