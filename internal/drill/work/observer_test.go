package work

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"barque.dev/internal/testkit"
)

func TestSight(t *testing.T) {
	named := func(name string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, UID: "u", ResourceVersion: "7"}
	}
	pod := func(change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: named("p")}
		p.Labels = map[string]string{label: Deployment}
		change(p)
		return p
	}
	now := metav1.Now()
	for name, c := range map[string]struct {
		object runtime.Object
		want   Sight
	}{
		"a pod that is to come": {pod(func(*corev1.Pod) {}), Sight{Kind: Pod, Of: Deployment, Active: true}},
		"a pod about to end":    {pod(func(p *corev1.Pod) { p.DeletionTimestamp = &now }), Sight{Kind: Pod, Of: Deployment}},
		"a pod that failed":     {pod(func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }), Sight{Kind: Pod, Of: Deployment}},
		"a pod of a job": {pod(func(p *corev1.Pod) {
			p.Status.Phase = corev1.PodSucceeded
			p.OwnerReferences = []metav1.OwnerReference{{Kind: "Job", UID: "job", Controller: new(true)}}
		}), Sight{Kind: Pod, Of: "job", Succeeded: true}},
		"a job": {&batchv1.Job{ObjectMeta: named("p"), Status: batchv1.JobStatus{Succeeded: 2}}, Sight{Kind: Job, Completions: 2}},
		"a service": {&corev1.Service{ObjectMeta: named("p"), Spec: corev1.ServiceSpec{
			ClusterIPs: []string{"10.43.0.7"}, Ports: []corev1.ServicePort{{NodePort: 30007, Protocol: "TCP"}, {Port: 80}},
		}}, Sight{Kind: Service, Takes: []string{"cluster IP 10.43.0.7", "node port 30007/TCP"}}},
		"a service without an address": {&corev1.Service{ObjectMeta: named("p"), Spec: corev1.ServiceSpec{ClusterIPs: []string{"None"}}}, Sight{Kind: Service}},
	} {
		c.want.Name, c.want.UID, c.want.Revision = "p", "u", 7
		if got, err := sight(c.object); err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %+v, %v, want %+v", name, got, err, c.want)
		}
	}
	if _, err := sight(&corev1.Node{ObjectMeta: named("n")}); err == nil {
		t.Error("a node was looked at")
	}
}

// TestObserver: nothing is missed where a watch ends and is taken up again, and where it can't be, what was missed is said.
func TestObserver(t *testing.T) {
	const pods = "/api/v1/namespaces/ns/pods"
	pod := func(name string, revision int) string {
		return fmt.Sprintf(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":%q,"uid":%q,"resourceVersion":"%d"}}`, name, name, revision)
	}
	var mu sync.Mutex
	lists := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		say := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
		from := r.URL.Query().Get("resourceVersion")
		switch watching := r.URL.Query().Has("watch"); {
		case !watching && r.URL.Path == pods:
			mu.Lock()
			defer mu.Unlock()
			if lists++; lists == 1 {
				say(`{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"5"},"items":[%s]}`, pod("a", 3))
				return
			}
			say(`{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"20"},"items":[]}`)
		case !watching:
			say(`{"metadata":{"resourceVersion":"5"},"items":[]}`)
		case r.URL.Path == pods && from == "5":
			say(`{"type":"ADDED","object":%s}{"type":"DELETED","object":%s}`, pod("b", 6), pod("a", 7))
		case r.URL.Path == pods && from == "7":
			say(`{"type":"BOOKMARK","object":%s}`, pod("", 9))
		case r.URL.Path == pods && from == "9":
			say(`{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Expired","code":410}}`)
		default:
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	}))
	defer server.Close()
	client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, QPS: -1})
	if err != nil {
		t.Fatal(err)
	}
	o := NewObserver(client, "ns", func() ([]string, error) { return []string{"a"}, errors.New("nobody knows") })
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); o.Run(ctx) }()
	seen := func() (all []string) {
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, s := range o.record.Sights {
			if s.Kind == Pod {
				all = append(all, fmt.Sprintf("%d %s%t%t", s.Revision, s.Name, s.Reset, s.Gone))
			}
		}
		return all
	}
	const want = "5 truefalse, 5 afalsefalse, 6 bfalsefalse, 7 afalsetrue, 20 truefalse"
	err = testkit.Poll(20*time.Second, testkit.Holds(func() bool { return len(seen()) >= 5 }))
	stop()
	<-done
	if got := strings.Join(seen(), ", "); err != nil || got != want {
		t.Errorf("seen: %s, want %s (%v)", got, want, err)
	}
	record, err := o.Record()
	if err == nil || len(record.Samples) == 0 || record.Samples[0].Running[0] != "a" {
		t.Errorf("samples %v, %v", record.Samples, err)
	}
}
