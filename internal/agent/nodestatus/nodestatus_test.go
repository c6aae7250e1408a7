package nodestatus_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/cri/critest"
	"barque.dev/internal/agent/nodestatus"
	"barque.dev/internal/testkit"
)

func TestCollect(t *testing.T) {
	f, err := nodestatus.Collect(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if f.CPUs < 1 || f.Memory < 1<<20 || f.Available > f.Memory || f.Disk < f.DiskFree || f.PIDs < 1 || f.Processes < 1 || f.Kernel == "" || f.BootID == "" {
		t.Errorf("%+v", f)
	}
}

func TestConditions(t *testing.T) {
	good := nodestatus.Facts{Memory: 1 << 30, Available: 1 << 29, Disk: 250 << 30, DiskFree: 125 << 30, Inodes: 100, InodesFree: 50, PIDs: 1000, Processes: 10}
	r := nodestatus.DefaultReserved()
	now := time.Unix(1000, 0)
	state := func(f nodestatus.Facts, h nodestatus.Health) map[corev1.NodeConditionType]corev1.ConditionStatus {
		out := map[corev1.NodeConditionType]corev1.ConditionStatus{}
		for _, c := range nodestatus.Conditions(f, r, h, nil, now) {
			out[c.Type] = c.Status
		}
		return out
	}
	low, full, busy := good, good, good
	low.Available, full.DiskFree, busy.Processes = 50<<20, 24<<30, 950
	for _, tt := range []struct {
		name                     string
		facts                    nodestatus.Facts
		health                   nodestatus.Health
		memory, disk, pid, ready corev1.ConditionStatus
	}{
		{"good", good, nodestatus.Health{}, "False", "False", "False", "True"},
		{"memory", low, nodestatus.Health{}, "True", "False", "False", "True"},
		{"disk", full, nodestatus.Health{}, "False", "True", "False", "True"},
		{"processes", busy, nodestatus.Health{}, "False", "False", "True", "True"},
		{"runtime", good, nodestatus.Health{Problems: []string{"down"}}, "False", "False", "False", "False"},
	} {
		got := state(tt.facts, tt.health)
		if got[corev1.NodeMemoryPressure] != tt.memory || got[corev1.NodeDiskPressure] != tt.disk || got[corev1.NodePIDPressure] != tt.pid || got[corev1.NodeReady] != tt.ready {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
	for _, c := range nodestatus.Conditions(full, r, nodestatus.Health{}, nil, now) {
		if c.Type == corev1.NodeDiskPressure && !strings.Contains(c.Message, "less than 25Gi of the disk") {
			t.Errorf("what is to be freed is not said: %s", c.Message)
		}
	}
	before := nodestatus.Conditions(good, r, nodestatus.Health{}, []corev1.NodeCondition{{Type: "Other", Status: "True"}}, now)
	after := nodestatus.Conditions(good, r, nodestatus.Health{Problems: []string{"x"}}, before, now.Add(time.Hour))
	if len(after) != 5 || !after[0].LastTransitionTime.Time.Equal(now) || !after[3].LastTransitionTime.Time.Equal(now.Add(time.Hour)) {
		t.Errorf("%+v", after)
	}
}

func TestResources(t *testing.T) {
	r := nodestatus.Reserved{CPU: resource.MustParse("500m"), Memory: resource.MustParse("1Gi"), EvictMemory: resource.MustParse("100Mi"), EvictDisk: 10}
	capacity, allocatable := nodestatus.Resources(nodestatus.Facts{CPUs: 2, Memory: 4 << 30, Disk: 1000}, r, 110)
	if capacity.Cpu().MilliValue() != 2000 || allocatable.Cpu().MilliValue() != 1500 || allocatable.Memory().Value() != 3<<30-100<<20 || allocatable.StorageEphemeral().Value() != 900 || allocatable.Pods().Value() != 110 {
		t.Errorf("capacity %v, allocatable %v", capacity, allocatable)
	}
	if _, a := nodestatus.Resources(nodestatus.Facts{Memory: 1}, r, 1); a.Memory().Sign() != 0 || a.Cpu().Sign() != 0 {
		t.Errorf("less than nothing: %v", a)
	}
}

func TestImageList(t *testing.T) {
	var images []corev1.ContainerImage
	for i := range 60 {
		images = append(images, corev1.ContainerImage{Names: []string{fmt.Sprint(i), "b", "c", "d", "e", "f"}, SizeBytes: int64(i)})
	}
	got := nodestatus.ImageList(images)
	if len(got) != 50 || got[0].SizeBytes != 59 || len(got[0].Names) != 5 {
		t.Errorf("%d images, first %+v", len(got), got[0])
	}
}

// TestReporter: the status is sent when something changed and not otherwise, and a node that was
// deleted is registered again.
func TestReporter(t *testing.T) {
	client := fake.NewClientset()
	var patches atomic.Int32
	client.PrependReactor("patch", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
		patches.Add(1)
		return false, nil, nil
	})
	rt := critest.New("a")
	r := newReporter(t, client, rt)
	run(t, r)
	sent := patches.Load()
	r.Wake()
	r.Wake()
	eventually(t, "images are reported", func() bool {
		n, err := client.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
		return err == nil && len(n.Status.Images) == 1 && slices.Equal(n.Status.DeclaredFeatures, []string{"InPlacePodVerticalScalingInitContainers"})
	})
	if got := patches.Load(); got != sent {
		t.Errorf("%d patches without a change", got-sent)
	}
	if _, err := rt.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "b"}}); err != nil {
		t.Fatal(err)
	}
	r.Wake()
	eventually(t, "the new image is reported", func() bool {
		n, err := client.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
		return err == nil && len(n.Status.Images) == 2
	})
	if err := client.CoreV1().Nodes().Delete(t.Context(), "n", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r.Lost()
	eventually(t, "registered again", func() bool {
		_, err := client.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
		return err == nil
	})
}

// TestAnAnswerFromBeforeALossDoesNotHideIt: the node is deleted while an answer that still has it
// is on its way.
func TestAnAnswerFromBeforeALossDoesNotHideIt(t *testing.T) {
	client := fake.NewClientset()
	rt := critest.New("a")
	r := newReporter(t, client, rt)
	nodes := corev1.SchemeGroupVersion.WithResource("nodes")
	var once sync.Once
	client.PrependReactor("patch", "nodes", func(clienttesting.Action) (handled bool, answer runtime.Object, err error) {
		once.Do(func() {
			handled = true
			if answer, err = client.Tracker().Get(nodes, "", "n"); err == nil {
				err = client.Tracker().Delete(nodes, "", "n")
			}
			r.Lost() // the watch is faster than the answer
		})
		return handled, answer, err
	})
	run(t, r)
	eventually(t, "registered again", func() bool {
		_, err := client.Tracker().Get(nodes, "", "n")
		return err == nil
	})
}

func newReporter(t *testing.T, client *fake.Clientset, rt *critest.Runtime) *nodestatus.Reporter {
	t.Helper()
	r, err := nodestatus.New(nodestatus.Config{
		Client: client, NodeName: "n", Addresses: []string{"192.0.2.1"}, Hostname: "n", Runtime: rt, Images: rt, Dir: t.TempDir(), Port: 10250, MaxPods: 110,
		Version: "v1", Reserved: nodestatus.DefaultReserved(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// run runs the reporter until the test ends, and returns when it has registered the node.
func run(t *testing.T, r *nodestatus.Reporter) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	registered, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- r.Run(ctx, func() { close(registered) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-registered
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	testkit.Eventually(t, 10*time.Second, what, testkit.Holds(f))
}
