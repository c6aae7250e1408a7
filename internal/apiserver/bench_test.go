package apiserver_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	"barque.dev/internal/testkit"
)

// benchPod is an ordinary pod, written as a client writes it.
func benchPod(tb testing.TB, name string) []byte {
	tb.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "bench", "pod-template-hash": "5d4f8c"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "main", Image: "example.org/bench:v1", Args: []string{"--serve", "--port=8080"},
			Ports:     []corev1.ContainerPort{{ContainerPort: 8080}},
			Env:       []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("10m"), "memory": resource.MustParse("32Mi")}},
		}}},
	}
	info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), "application/vnd.kubernetes.protobuf")
	if !ok {
		tb.Fatal("no protobuf")
	}
	var b bytes.Buffer
	if err := scheme.Codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion).Encode(pod, &b); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// load is a control plane with a namespace for load, and clients of it with a connection each.
func load(b *testing.B, connections int) (*cluster, []*http.Client) {
	c := start(b, nil)
	c.wait(b)
	account := []byte(`{"metadata":{"name":"default"}}`)
	if a := do(b, c.admin(b), "POST", c.url+"/api/v1/namespaces/default/serviceaccounts", bytes.NewReader(account), "Content-Type", "application/json"); a.code != 201 {
		b.Fatal(a)
	}
	clients := make([]*http.Client, connections)
	for i := range clients {
		clients[i] = c.admin(b)
	}
	return c, clients
}

func (c *cluster) createPods(b *testing.B, clients []*http.Client, n int) {
	var next atomic.Int64
	var group sync.WaitGroup
	for _, client := range clients {
		group.Go(func() {
			for {
				i := next.Add(1)
				if i > int64(n) {
					return
				}
				request(b, client, "POST", c.url+"/api/v1/namespaces/default/pods", benchPod(b, fmt.Sprintf("p-%d", i)), http.StatusCreated)
			}
		})
	}
	group.Wait()
}

// request sends a request and reads the answer without looking at it.
func request(b *testing.B, client *http.Client, method, url string, body []byte, code int) int64 {
	req, err := http.NewRequest(method, url, bytes.NewReader(body))
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Accept", "application/vnd.kubernetes.protobuf")
	req.Header.Set("Content-Type", "application/vnd.kubernetes.protobuf")
	resp, err := client.Do(req)
	if err != nil {
		b.Error(err)
		return 0
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || resp.StatusCode != code {
		b.Errorf("%s %s: %d (%v)", method, url, resp.StatusCode, err)
	}
	return n
}

func BenchmarkCreatePods(b *testing.B) {
	for _, writers := range []int{1, 16} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			c, clients := load(b, writers)
			b.ReportAllocs()
			b.ResetTimer()
			c.createPods(b, clients, b.N)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "creates/s")
		})
	}
}

// BenchmarkPatchPods sets a label.
func BenchmarkPatchPods(b *testing.B) {
	const writers, pods = 16, 500
	c, clients := load(b, writers)
	c.createPods(b, clients, pods)
	b.ReportAllocs()
	b.ResetTimer()
	var next atomic.Int64
	var group sync.WaitGroup
	for _, client := range clients {
		group.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				body := fmt.Appendf(nil, `{"metadata":{"labels":{"round":"%d"}}}`, i)
				req, err := http.NewRequestWithContext(b.Context(), "PATCH", fmt.Sprintf("%s/api/v1/namespaces/default/pods/p-%d", c.url, 1+i%pods), bytes.NewReader(body))
				if err != nil {
					b.Error(err)
					return
				}
				req.Header.Set("Accept", "application/vnd.kubernetes.protobuf")
				req.Header.Set("Content-Type", "application/strategic-merge-patch+json")
				resp, err := client.Do(req)
				if err != nil {
					b.Error(err)
					return
				}
				if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
					b.Errorf("%s: %v", resp.Status, err)
				}
				resp.Body.Close()
			}
		})
	}
	group.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "patches/s")
}

func BenchmarkGetPod(b *testing.B) {
	const readers = 16
	c, clients := load(b, readers)
	c.createPods(b, clients, 100)
	b.ReportAllocs()
	b.ResetTimer()
	var next atomic.Int64
	var group sync.WaitGroup
	for _, client := range clients {
		group.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				request(b, client, "GET", fmt.Sprintf("%s/api/v1/namespaces/default/pods/p-%d", c.url, 1+i%100), nil, http.StatusOK)
			}
		})
	}
	group.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "gets/s")
}

func BenchmarkListPods(b *testing.B) {
	const pods = 2500
	c, clients := load(b, 8)
	c.createPods(b, clients, pods)
	for _, accept := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		b.Run(accept, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				resp, err := clients[0].Do(must(b, c.url+"/api/v1/pods", accept))
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err != nil {
					b.Fatal(err)
				}
				b.SetBytes(n)
			}
		})
	}
}

func must(b *testing.B, url, accept string) *http.Request {
	req, err := http.NewRequestWithContext(b.Context(), "GET", url, nil)
	if err != nil {
		b.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	return req
}

// BenchmarkWatch measures an event's way to all watchers; an operation is one event delivered to one of them.
func BenchmarkWatch(b *testing.B) {
	const watchers, connections = 200, 4
	c, clients := load(b, connections)
	var received atomic.Int64
	var group sync.WaitGroup
	for i := range watchers {
		resp, err := clients[i%connections].Do(must(b, c.url+"/api/v1/namespaces/default/pods?watch=1", "application/vnd.kubernetes.protobuf"))
		if err != nil {
			b.Fatal(err)
		}
		group.Go(func() {
			defer resp.Body.Close()
			head := make([]byte, 4)
			for {
				if _, err := io.ReadFull(resp.Body, head); err != nil {
					return
				}
				n := int64(head[0])<<24 | int64(head[1])<<16 | int64(head[2])<<8 | int64(head[3])
				if _, err := io.CopyN(io.Discard, resp.Body, n); err != nil {
					return
				}
				received.Add(1)
			}
		})
	}
	events := b.N/watchers + 1
	b.ResetTimer()
	c.createPods(b, clients, events)
	testkit.Eventually(b, time.Minute, "all events are received", testkit.Holds(func() bool {
		return received.Load() >= int64(events*watchers)
	}))
	b.StopTimer()
	b.ReportMetric(float64(events*watchers)/b.Elapsed().Seconds(), "events/s")
	c.stop()
	group.Wait()
}
