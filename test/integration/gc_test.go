package integration

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What is owned goes with its owner in the background, before it in the foreground, and stays as
// an orphan if that is wanted.
func TestGarbageCollection(t *testing.T) {
	s := newScene(t)
	maps := s.client.CoreV1().ConfigMaps(s.ns)
	create := func(name string, owner *corev1.ConfigMap, finalizers ...string) *corev1.ConfigMap {
		t.Helper()
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Finalizers: finalizers}}
		if owner != nil {
			block := true
			cm.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID, BlockOwnerDeletion: &block}}
		}
		out, err := maps.Create(t.Context(), cm, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	gone := func(name string) {
		t.Helper()
		eventually(t, patience, name+" is collected", func() error {
			_, err := maps.Get(t.Context(), name, metav1.GetOptions{})
			if err == nil {
				return fmt.Errorf("it is there")
			}
			return ignoreNotFound(err)
		})
	}
	remove := func(name string, how metav1.DeletionPropagation) {
		t.Helper()
		if err := maps.Delete(t.Context(), name, metav1.DeleteOptions{PropagationPolicy: &how}); err != nil {
			t.Fatal(err)
		}
	}
	create("back-child", create("back", nil))
	create("fore-child", create("fore", nil), "barque.dev/test")
	create("orphan-child", create("orphan", nil))
	create("stray", &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "nobody", UID: "00000000-0000-0000-0000-000000000000"}})

	remove("back", metav1.DeletePropagationBackground)
	remove("fore", metav1.DeletePropagationForeground)
	remove("orphan", metav1.DeletePropagationOrphan)
	gone("back")
	gone("back-child")
	gone("stray")
	gone("orphan")
	child, err := maps.Get(t.Context(), "orphan-child", metav1.GetOptions{})
	if err != nil || len(child.OwnerReferences) != 0 {
		t.Errorf("orphan: %v, owners %v", err, child.OwnerReferences)
	}
	eventually(t, patience, "the blocking child is being deleted", func() error {
		child, err := maps.Get(t.Context(), "fore-child", metav1.GetOptions{})
		if err == nil && child.DeletionTimestamp == nil {
			err = fmt.Errorf("it is not")
		}
		return err
	})
	owner, err := maps.Get(t.Context(), "fore", metav1.GetOptions{})
	if err != nil || len(owner.Finalizers) != 1 || owner.Finalizers[0] != metav1.FinalizerDeleteDependents {
		t.Errorf("the owner waits: %v, %v", err, owner.Finalizers)
	}
	if _, err := maps.Patch(t.Context(), "fore-child", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	gone("fore-child")
	gone("fore")
}

// A namespace goes with all that is in it, and waits for what has finalizers.
func TestNamespaceDeletion(t *testing.T) {
	t.Parallel()
	client := shared.client(t)
	const name = "t-deleted"
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s := &scene{T: t, ns: name, client: client}
	eventually(t, patience, "the default service account", func() error {
		_, err := client.CoreV1().ServiceAccounts(name).Get(t.Context(), "default", metav1.GetOptions{})
		return err
	})
	s.pod("p", "containers: [{name: c, command: [sleep, '1000']}]")
	s.apply(`{apiVersion: v1, kind: ConfigMap, metadata: {name: held, namespace: NS, finalizers: [barque.dev/test]}}`)
	if err := client.CoreV1().Namespaces().Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.gone("p")
	eventually(t, patience, "the namespace says what it waits for", func() error {
		ns, err := client.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range ns.Status.Conditions {
			if c.Type == corev1.NamespaceFinalizersRemaining && c.Status == corev1.ConditionTrue && ns.Status.Phase == corev1.NamespaceTerminating {
				return nil
			}
		}
		return fmt.Errorf("%+v", ns.Status)
	})
	_, err := client.CoreV1().ConfigMaps(name).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late"}}, metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) || !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		t.Errorf("creating in a namespace that ends: %v", err)
	}
	if _, err := client.CoreV1().ConfigMaps(name).Patch(t.Context(), "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the namespace is gone", func() error {
		_, err := client.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
		if err == nil {
			return fmt.Errorf("it is there")
		}
		return ignoreNotFound(err)
	})
}

// The node's own API answers only who proves who they are and may.
func TestNodeAPIAuthorization(t *testing.T) {
	s := newScene(t)
	token, err := s.client.CoreV1().ServiceAccounts(s.ns).CreateToken(t.Context(), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	ask := func(bearer string) int {
		t.Helper()
		// The test looks at what the node answers, not at who it is.
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
			DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+shared.Machines[1].IP.String()+":10250/pods", nil)
		if err != nil {
			t.Fatal(err)
		}
		if bearer != "" {
			req.Header.Set("Authorization", "Bearer "+bearer)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode
	}
	same(t, "nobody", ask(""), http.StatusUnauthorized)
	same(t, "a wrong token", ask("nonsense"), http.StatusUnauthorized)
	same(t, "a service account without rights", ask(token.Status.Token), http.StatusForbidden)
	binding := s.ns + "-kubelet"
	shared.kubectl(t, "create", "clusterrolebinding", binding, "--clusterrole=system:kubelet-api-admin", "--serviceaccount="+s.ns+":default")
	t.Cleanup(func() { shared.kubectl(t, "delete", "clusterrolebinding", binding) })
	eventually(t, patience, "a service account with rights", func() error {
		if code := ask(token.Status.Token); code != http.StatusOK {
			return fmt.Errorf("%d", code)
		}
		return nil
	})
}

// A server process that is killed leaves its containers running; the next one takes them over.
func TestAgentRestartKeepsContainers(t *testing.T) {
	s := &scene{T: t, ns: shared.namespace(t), client: shared.client(t)}
	lease, err := s.client.CoordinationV1().Leases("kube-system").Get(t.Context(), "kube-scheduler", metav1.GetOptions{})
	if err != nil || lease.Spec.HolderIdentity == nil {
		t.Fatalf("who leads: %v", err)
	}
	m := shared.Machines[0]
	if m.Name == *lease.Spec.HolderIdentity {
		m = shared.Machines[1]
	}
	s.pod("p", "nodeName: "+m.Name+"\ncontainers: [{name: c, command: [sh, -c, 'echo up; sleep 1000']}]")
	before := s.until("p", "runs", podReady)
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the process has ended", func() error {
		if m.Running() {
			return fmt.Errorf("it runs")
		}
		return nil
	})
	if err := shared.heal(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "exec works again", func() error {
		out, err := s.exec("p", "c", "echo", "hi")
		if err == nil && out != "hi\n" {
			err = fmt.Errorf("%q", out)
		}
		return err
	})
	after := s.until("p", "is ready", podReady)
	same(t, "container", statusOf(after, "c").ContainerID, statusOf(before, "c").ContainerID)
	same(t, "restarts", statusOf(after, "c").RestartCount, 0)
	same(t, "address", after.Status.PodIP, before.Status.PodIP)
	same(t, "log", s.logs("p", "c"), "up\n")
}
