//lint:file-ignore SA1019 Endpoints is deprecated by upstream, and served all the same.

package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"barque.dev/internal/local"
)

// A pod reaches the API by its name, over TLS that its service account's authority vouches for,
// with its own token.
func testKubernetesService(t *testing.T, l *netLab) {
	for name := range l.pods {
		if out := l.must(t, name, "api", "/version"); !strings.HasPrefix(out, "200\n") || !strings.Contains(out, "gitVersion") {
			t.Errorf("%s: %q", name, out)
		}
	}
	out := l.must(t, "echo-1", "api", "/api/v1/namespaces/"+l.ns+"/secrets")
	if !strings.HasPrefix(out, "403\n") || !strings.Contains(out, "system:serviceaccount:"+l.ns+":default") {
		t.Errorf("what the account may not do: %q", out)
	}
	if got, want := kubernetesEndpoints(t, l.api), serverAddresses(l.cluster); !slices.Equal(got, want) {
		t.Errorf("the service kubernetes leads to %v, want %v", got, want)
	}
}

func serverAddresses(c *cluster) (addresses []string) {
	for _, m := range c.Machines[:c.servers] {
		addresses = append(addresses, m.IP.String())
	}
	slices.Sort(addresses)
	return addresses
}

func kubernetesEndpoints(t testing.TB, api kubernetes.Interface) (addresses []string) {
	t.Helper()
	slice, err := api.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range slice.Endpoints {
		addresses = append(addresses, e.Addresses...)
	}
	slices.Sort(addresses)
	return addresses
}

// Endpoints written by hand for a service without selector are mirrored into slices, by which
// traffic goes; they follow changes, and leave with them.
func testManualEndpoints(t *testing.T, l *netLab) {
	s := l.service(t, "by-hand", func(s *corev1.Service) { s.Spec.Ports = []corev1.ServicePort{{Name: "http", Port: 80}} })
	//nolint:staticcheck // the older kind is served too
	endpoints := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: l.ns, Name: s.Name}, Subsets: []corev1.EndpointSubset{{
		Addresses: []corev1.EndpointAddress{{IP: l.ip("echo-1")}}, Ports: []corev1.EndpointPort{{Name: "http", Port: 8080}},
	}}}
	api := l.api.CoreV1().Endpoints(l.ns)
	endpoints, err := api.Create(t.Context(), endpoints, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if host, _ := l.answers(t, l.Machines[1], url(s.Spec.ClusterIP, 80)); host != "echo-1" {
		t.Errorf("%s answers", host)
	}
	endpoints.Subsets[0].Addresses[0].IP = l.ip("echo-2")
	if _, err := api.Update(t.Context(), endpoints, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "the new address serves", func() error {
		host, _, err := l.get(t.Context(), l.Machines[1], url(s.Spec.ClusterIP, 80))
		if err == nil && host != "echo-2" {
			err = fmt.Errorf("%s answers", host)
		}
		return err
	})
	if err := api.Delete(t.Context(), s.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "no slices are left", func() error {
		list, err := l.api.DiscoveryV1().EndpointSlices(l.ns).List(t.Context(), metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + s.Name})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d are", len(list.Items))
		}
		return err
	})
}

// rolling is a Deployment that is meant to be replaced without its clients noticing.
func (l *netLab) rolling() *appsv1.Deployment {
	pod := withReadiness(l.probe("", nil, "app", "rolling"))
	delete(pod.Labels, "name")
	pod.Spec.TerminationGracePeriodSeconds = ptr.To(int64(10))
	pod.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 2}}}
	return &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: l.ns, Name: "rolling"}, Spec: appsv1.DeploymentSpec{
		Replicas: ptr.To(int32(3)), Selector: &metav1.LabelSelector{MatchLabels: pod.Labels},
		Strategy: appsv1.DeploymentStrategy{Type: appsv1.RollingUpdateDeploymentStrategyType, RollingUpdate: &appsv1.RollingUpdateDeployment{
			MaxUnavailable: ptr.To(intstr.FromInt32(0)), MaxSurge: ptr.To(intstr.FromInt32(1)),
		}},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec},
	}}
}

// A rolling update under constant requests, from a pod and from outside, loses none.
func testRollingUpdate(t *testing.T, l *netLab) {
	deployments := l.api.AppsV1().Deployments(l.ns)
	if _, err := deployments.Create(t.Context(), l.rolling(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s := l.service(t, "rolling", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }, "app", "rolling")
	l.kubectl(t, "rollout", "status", "-n", l.ns, "deployment/rolling", "--timeout=60s")
	for _, m := range l.Machines {
		l.answers(t, m, url(s.Spec.ClusterIP, 80))
	}
	ctx, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	var asked, failed atomic.Int64
	for _, address := range []netip.Addr{l.Machines[0].IP, l.Machines[2].IP} {
		clients.Go(func() {
			for ctx.Err() == nil {
				asked.Add(1)
				if _, _, err := l.get(context.WithoutCancel(ctx), nil, url(address.String(), s.Spec.Ports[0].NodePort)); err != nil {
					failed.Add(1)
					t.Errorf("a request to %s failed: %v", address, err)
				}
			}
		})
	}
	until, end := io.Pipe()
	var inside string
	var insideErr error
	clients.Go(func() {
		inside, insideErr = l.run(context.WithoutCancel(ctx), "echo-2", until, "load", url(s.Spec.ClusterIP, 80))
	})

	patch := `{"spec":{"template":{"metadata":{"annotations":{"version":"2"}}}}}`
	if _, err := deployments.Patch(t.Context(), "rolling", types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Error(err)
	}
	_, err := l.tryKubectl("", "rollout", "status", "-n", l.ns, "deployment/rolling", "--timeout=60s")
	if err == nil {
		err = l.awaitPods(t, "app=rolling", 3)
	}
	stop()
	_ = end.Close()
	clients.Wait()
	if err := errors.Join(err, insideErr); err != nil {
		t.Fatal(err)
	}
	var ok, lost int
	if _, err := fmt.Sscan(inside, &ok, &lost); err != nil || lost > 0 || ok < 100 {
		t.Errorf("from a pod, OK and failed: %q", inside)
	}
	t.Logf("outside: %d requests, %d failed; inside: %s", asked.Load(), failed.Load(), inside)
	if asked.Load() < 100 {
		t.Errorf("only %d requests from outside", asked.Load())
	}
}

// awaitPods waits until as many pods as that are left, terminating ones included.
func (l *netLab) awaitPods(t testing.TB, selector string, n int) (err error) {
	t.Helper()
	eventually(t, 30*time.Second, "the former pods are gone", func() error {
		pods, err := l.api.CoreV1().Pods(l.ns).List(t.Context(), metav1.ListOptions{LabelSelector: selector})
		if err == nil && len(pods.Items) != n {
			err = fmt.Errorf("%d pods", len(pods.Items))
		}
		return err
	})
	return nil
}

// When a server's process dies, the service through which pods reach the API soon leads to the
// others alone, and to all again when it is back, whichever server it is.
func TestKubernetesServiceFollowsServers(t *testing.T) {
	t.Cleanup(func() {
		if err := shared.heal(); err != nil {
			t.Errorf("heal: %v", err)
		}
	})
	for _, victim := range shared.Machines[:shared.servers] {
		other := slices.IndexFunc(shared.Machines, func(m *local.Machine) bool { return m != victim })
		api := shared.clientOf(t, shared.Machines[other])
		all := serverAddresses(shared)
		rest := slices.DeleteFunc(slices.Clone(all), func(a string) bool { return a == victim.IP.String() })
		eventually(t, 10*time.Second, "the service leads to all servers", func() error { return leadsTo(t, api, all) })
		if err := victim.Kill(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		eventually(t, 4*time.Second, "the dead server leaves", func() error { return leadsTo(t, api, rest) })
		t.Logf("%s left %v after its death", victim.Name, time.Since(began).Round(10*time.Millisecond))
		if err := shared.heal(); err != nil {
			t.Fatal(err)
		}
	}
}

func leadsTo(t testing.TB, api kubernetes.Interface, want []string) error {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	slice, err := api.DiscoveryV1().EndpointSlices(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return err
	}
	var got []string
	for _, e := range slice.Endpoints {
		got = append(got, e.Addresses...)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		return fmt.Errorf("it leads to %v, want %v", got, want)
	}
	return nil
}
