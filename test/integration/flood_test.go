package integration

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	flooders = 300 // requests of the flood at a time, far more than their level has seats
	flooding = 25 * time.Second
	// floodPatience is that of everybody but the flood, however slow the machine is.
	floodPatience = 10 * time.Second
)

// A user floods one server with requests for long lists. That user has to wait. Nodes renew their leases and stay ready,
// the administrator is answered, and so is, in time, another user of the same level.
func TestFloodHurtsItselfAlone(t *testing.T) {
	server := shared.Machines[0]
	admin := shared.clientOf(t, server)
	ns := shared.namespace(t)
	fillWithConfigMaps(t, admin, ns)
	mayList(t, admin, ns, "flood", "quiet")
	before := renewals(t, admin)

	as := func(user string) *rest.Config {
		config, err := shared.MachineConfig(server)
		if err != nil {
			t.Fatal(err)
		}
		config.QPS, config.Burst, config.Timeout = -1, -1, time.Minute
		config.Impersonate = rest.ImpersonationConfig{UserName: user}
		return config
	}
	ctx, cancel := context.WithTimeout(t.Context(), flooding)
	defer cancel()
	var flood sync.WaitGroup
	var refused atomic.Int64
	var mu sync.Mutex
	var flooded []time.Duration
	client, err := rest.HTTPClientFor(as("flood"))
	if err != nil {
		t.Fatal(err)
	}
	lists := as("flood").Host + "/api/v1/namespaces/" + ns + "/configmaps"
	for range flooders {
		flood.Go(func() {
			for ctx.Err() == nil {
				started := time.Now()
				switch ask(ctx, client, lists) {
				case http.StatusOK:
					mu.Lock()
					flooded = append(flooded, time.Since(started))
					mu.Unlock()
				case http.StatusTooManyRequests:
					refused.Add(1)
				}
			}
		})
	}

	var quiet, exempt []time.Duration
	for user, took := range map[string]*[]time.Duration{"quiet": &quiet, "": &exempt} {
		other := clientFor(t, as(user))
		flood.Go(func() {
			for ctx.Err() == nil {
				started := time.Now()
				if _, err := other.CoreV1().ConfigMaps(ns).Get(t.Context(), "c-0", metav1.GetOptions{}); err != nil {
					t.Errorf("%q, who floods nobody: %v", user, err)
				}
				*took = append(*took, time.Since(started))
			}
		})
	}
	flood.Wait()

	t.Logf("the flood: %s, %d refused; quiet: %s; administrator: %s", sum(flooded), refused.Load(), sum(quiet), sum(exempt))
	if q, f := quantile(quiet, 0.5), quantile(flooded, 0.5); q > f/2 {
		t.Errorf("the flood's requests take %v, and those of another user of the same level %v", f, q)
	}
	if p := quantile(quiet, 0.99); p > floodPatience {
		t.Errorf("another user of the same level waited for %v", p)
	}
	if p := quantile(exempt, 0.99); p > floodPatience {
		t.Errorf("the administrator waited for %v", p)
	}
	waited := metric(t, admin, `apiserver_flowcontrol_request_queue_length_after_enqueue_sum{flow_schema="global-default",priority_level="global-default"}`)
	if waited == 0 {
		t.Error("nobody had to wait: that was no flood")
	}
	for name, at := range renewals(t, admin) {
		if !at.After(before[name]) {
			t.Errorf("node %s did not renew its lease during the flood", name)
		}
	}
	nodes, err := admin.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes.Items {
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
				t.Errorf("node %s is not ready: %s", node.Name, c.Message)
			}
		}
	}
}

// ask sends a request, reads the answer and returns its code; 0 if there was none.
func ask(ctx context.Context, client *http.Client, url string) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0
	}
	return resp.StatusCode
}

// fillWithConfigMaps makes lists of a namespace long.
func fillWithConfigMaps(t *testing.T, admin kubernetes.Interface, ns string) {
	t.Helper()
	text := strings.Repeat("barque ", 500)
	for i := range 200 {
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("c-", i)}, Data: map[string]string{"text": text}}
		if _, err := admin.CoreV1().ConfigMaps(ns).Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

// mayList lets users read configmaps of a namespace.
func mayList(t *testing.T, admin kubernetes.Interface, ns string, users ...string) {
	t.Helper()
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: "reader"}, Rules: []rbacv1.PolicyRule{{
		APIGroups: []string{""}, Resources: []string{"configmaps"}, Verbs: []string{"get", "list"}}}}
	binding := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "reader"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "reader"}}
	for _, user := range users {
		binding.Subjects = append(binding.Subjects, rbacv1.Subject{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: user})
	}
	if _, err := admin.RbacV1().Roles(ns).Create(t.Context(), role, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.RbacV1().RoleBindings(ns).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// renewals is when each node last renewed its lease.
func renewals(t *testing.T, admin kubernetes.Interface) map[string]time.Time {
	t.Helper()
	leases, err := admin.CoordinationV1().Leases(corev1.NamespaceNodeLease).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]time.Time{}
	for _, l := range leases.Items {
		if l.Spec.RenewTime != nil {
			out[l.Name] = l.Spec.RenewTime.Time
		}
	}
	if len(out) != len(shared.Machines) {
		t.Fatalf("%d leases of %d nodes", len(out), len(shared.Machines))
	}
	return out
}

// metric is the value of a series that a server shows.
func metric(t *testing.T, admin kubernetes.Interface, series string) float64 {
	t.Helper()
	text, err := admin.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no metric %s", series)
	return 0
}

func quantile(took []time.Duration, q float64) time.Duration {
	if len(took) == 0 {
		return time.Hour
	}
	sorted := slices.Sorted(slices.Values(took))
	return sorted[int(q*float64(len(sorted)-1))]
}

func sum(took []time.Duration) string {
	return fmt.Sprintf("%d answers, median %v, 99%% %v", len(took), quantile(took, 0.5).Round(time.Millisecond), quantile(took, 0.99).Round(time.Millisecond))
}
