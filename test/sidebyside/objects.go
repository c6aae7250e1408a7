package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
)

// The load's namespace, and where its objects are.
const (
	loadNamespace = "load"
	podsPath      = "/api/v1/namespaces/" + loadNamespace + "/pods"
	leasesPath    = "/apis/coordination.k8s.io/v1/namespaces/" + loadNamespace + "/leases"
)

// prepare makes the namespace, and waits for its service account, which pods need. Where no
// controllers run it makes that too.
func (p *plane) prepare(ctx context.Context, bare bool) error {
	l := newLoader(p, 1)
	defer l.close()
	body := fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":%q}}`, loadNamespace)
	if _, err := l.clients[0].do(ctx, http.MethodPost, "/api/v1/namespaces", mediaJSON, mediaJSON, body, http.StatusCreated); err != nil {
		return err
	}
	const accounts = "/api/v1/namespaces/" + loadNamespace + "/serviceaccounts"
	return p.Poll(ctx, "the namespace's service account", func(ctx context.Context) error {
		_, err := l.clients[0].do(ctx, http.MethodGet, accounts+"/default", mediaJSON, "", nil, http.StatusOK)
		if err == nil || !bare {
			return err
		}
		account := []byte(`{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"default"}}`)
		_, err = l.clients[0].do(ctx, http.MethodPost, accounts, mediaJSON, mediaJSON, account, http.StatusCreated)
		return err
	})
}

func podName(i int) string { return fmt.Sprintf("pod-%06d", i) }

// newPod is an ordinary pod of a scheduler that does not exist, in two shapes that a selector tells
// apart.
func newPod(i int) *corev1.Pod {
	tier := "front"
	if i%10 == 0 {
		tier = "back"
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: podName(i), Labels: map[string]string{"app": "load", "tier": tier, "pod-template-hash": "5d4f8c"}},
		Spec: corev1.PodSpec{
			SchedulerName: "nobody",
			Containers: []corev1.Container{{
				Name: "main", Image: "example.org/load:v1", Args: []string{"--serve", "--port=8080"},
				Ports:     []corev1.ContainerPort{{ContainerPort: 8080}},
				Env:       []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}},
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("10m"), "memory": resource.MustParse("32Mi")}},
			}},
		},
	}
}

// newLease is a node's, renewed at the time.
func newLease(i int, at time.Time) *coordinationv1.Lease {
	holder, seconds := fmt.Sprintf("node-%d", i), int32(40)
	renewed := metav1.NewMicroTime(at)
	return &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: holder, Namespace: loadNamespace},
		Spec:       coordinationv1.LeaseSpec{HolderIdentity: &holder, LeaseDurationSeconds: &seconds, RenewTime: &renewed},
	}
}

// encode is an object in protobuf.
func encode(obj runtime.Object, version schema.GroupVersion) ([]byte, error) {
	info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), mediaProtobuf)
	if !ok {
		return nil, errors.New("client-go speaks no protobuf")
	}
	return runtime.Encode(scheme.Codecs.EncoderForVersion(info.Serializer, version), obj)
}

// encodePods encodes pods first to first+n-1.
func encodePods(first, n int) ([][]byte, error) {
	bodies := make([][]byte, n)
	for i := range bodies {
		var err error
		if bodies[i], err = encode(newPod(first+i), corev1.SchemeGroupVersion); err != nil {
			return nil, err
		}
	}
	return bodies, nil
}

// createPods creates pods first to first+n-1 by so many workers.
func createPods(ctx context.Context, l *loader, workers, first, n int) ([]time.Duration, error) {
	bodies, err := encodePods(first, n)
	if err != nil {
		return nil, err
	}
	return l.each(workers, n, func(c *lean, i int) error {
		_, err := c.do(ctx, http.MethodPost, podsPath, mediaProtobuf, mediaProtobuf, bodies[i], http.StatusCreated)
		return err
	})
}

func patchPod(ctx context.Context, c *lean, i int, value string) error {
	body := fmt.Appendf(nil, `{"metadata":{"labels":{"round":%q}}}`, value)
	_, err := c.do(ctx, http.MethodPatch, podsPath+"/"+podName(i), mediaProtobuf, "application/strategic-merge-patch+json", body, http.StatusOK)
	return err
}

// deletePod ends a pod at once: no node would confirm its end.
func deletePod(ctx context.Context, c *lean, i int) error {
	_, err := c.do(ctx, http.MethodDelete, podsPath+"/"+podName(i)+"?gracePeriodSeconds=0", mediaProtobuf, "", nil, http.StatusOK)
	return err
}

// countPods tells how many pods there are, and that all of the load's labels are there.
func countPods(ctx context.Context, c *lean, selector string) (int, string, error) {
	var list listMeta
	if err := c.ask(ctx, podsPath+"?limit=1&labelSelector="+selector, &list); err != nil {
		return 0, "", err
	}
	// Lists by selector do not tell what remains: those are counted page by page.
	n := len(list.Items)
	revision := list.Metadata.ResourceVersion
	for list.Metadata.Continue != "" {
		next := podsPath + "?limit=1000&labelSelector=" + selector + "&continue=" + list.Metadata.Continue
		list = listMeta{}
		if err := c.ask(ctx, next, &list); err != nil {
			return 0, "", err
		}
		n += len(list.Items)
	}
	return n, revision, nil
}

// expectPods checks the state after a phase.
func expectPods(ctx context.Context, l *loader, selector string, want int) error {
	for _, c := range l.clients[:min(len(l.clients), len(l.plane.urls))] {
		got, _, err := countPods(ctx, c, selector)
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("%s has %d pods with %q, want %d", c.url, got, selector, want)
		}
	}
	return nil
}
