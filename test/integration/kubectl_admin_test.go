package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestKubectlAuth(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	k.run("create", "serviceaccount", "robot")
	k.run("create", "role", "reader", "--verb=get,list", "--resource=pods")
	k.run("create", "rolebinding", "reader", "--role=reader", "--serviceaccount="+k.ns+":robot")
	robot := "system:serviceaccount:" + k.ns + ":robot"
	k.expect(`^yes\n$`, "auth", "can-i", "*", "*")
	k.expect(`^yes\n$`, "auth", "can-i", "list", "pods", "--as="+robot)
	k.refuse(1, "no", "auth", "can-i", "delete", "pods", "--as="+robot)
	k.refuse(1, "no", "auth", "can-i", "list", "pods", "--as="+robot, "-n", "default")
	k.expect(`(?m)^pods +\[\] +\[\] +\[get list\]$`, "auth", "can-i", "--list", "--as="+robot)
	k.expect(`(?s)Username +kubernetes-admin\nGroups +\[system:masters system:authenticated\]`, "auth", "whoami")
	k.expect(`(?s)Username +jane\nGroups +\[dev system:authenticated\]`, "auth", "whoami", "--as=jane", "--as-group=dev")

	token := strings.TrimSpace(k.run("create", "token", "robot"))
	asRobot := k.as("--token=" + token)
	out, err := asRobot.output("auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}")
	if want := robot + ` ["system:serviceaccounts","system:serviceaccounts:` + k.ns + `","system:authenticated"]`; err != nil || out != want {
		t.Errorf("whoami with a token: %v\n%s", err, out)
	}
	if out, err := asRobot.output("get", "secrets", "-n", k.ns); err == nil || !strings.Contains(out, `User "`+robot+`" cannot list resource "secrets" in API group "" in the namespace "`+k.ns+`"`) {
		t.Errorf("secrets with a token: %v\n%s", err, out)
	}
}

// as is a kubectl without the administrator's kubeconfig, with other credentials.
func (k cli) as(credentials ...string) cli {
	k.t.Helper()
	server := strings.TrimSpace(k.run("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"))
	k.program = append([]string{kubectl, "--kubeconfig=/dev/null", "--insecure-skip-tls-verify", "--server=" + server}, credentials...)
	return k
}

// output runs a command of k.program as it is.
func (k cli) output(args ...string) (string, error) {
	cmd := k.command(k.t.Context())
	cmd.Args = append(append([]string{}, k.program...), args...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// A person's certificate: requested, approved, signed, used.
func TestKubectlCertificate(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "bob", Organization: []string{"dev"}}}, key)
	if err != nil {
		t.Fatal(err)
	}
	encoded := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request}))
	name := k.ns + "-bob"
	t.Cleanup(func() {
		if out, err := shared.tryKubectl("", "delete", "csr", name, name+"-denied", "--ignore-not-found"); err != nil {
			t.Errorf("delete the requests: %v\n%s", err, out)
		}
	})
	for _, n := range []string{name, name + "-denied"} {
		k.runWith(fmt.Sprintf(`
apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: %s}
spec: {request: %s, signerName: kubernetes.io/kube-apiserver-client, usages: [client auth]}
`, n, encoded), "apply", "-f", "-")
	}
	k.expect(`kube-apiserver-client +kubernetes-admin +<none> +Pending`, "get", "csr", name)
	k.expect(`approved`, "certificate", "approve", name)
	k.run("wait", "--for=jsonpath={.status.certificate}", "csr/"+name, "--timeout=20s")
	k.expect(`Approved,Issued`, "get", "csr", name)
	k.run("certificate", "deny", name+"-denied")
	k.expect(`Denied`, "get", "csr", name+"-denied")
	k.refuse(1, `error: certificate signing request "`+name+`" is already Approved`, "certificate", "deny", name)

	cert, err := base64.StdEncoding.DecodeString(k.run("get", "csr", name, "-o", "jsonpath={.status.certificate}"))
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for file, data := range map[string][]byte{"crt": cert, "key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bob := k.as("--client-certificate="+filepath.Join(dir, "crt"), "--client-key="+filepath.Join(dir, "key"))
	if out, err := bob.output("auth", "whoami", "-o", "jsonpath={.status.userInfo.username} {.status.userInfo.groups}"); err != nil || out != `bob ["dev","system:authenticated"]` {
		t.Errorf("whoami with the certificate: %v\n%s", err, out)
	}
}

// A budget's status follows its pods, and eviction obeys it.
func TestDisruptionBudget(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	pods := k.web()
	k.run("create", "pdb", "web", "--selector=app=web", "--max-unavailable=1")
	status := func(want string) {
		t.Helper()
		k.run("wait", "--for=jsonpath={.status.disruptionsAllowed}="+want, "pdb/web", "--timeout=20s")
	}
	status("1")
	k.expect(`web +N/A +1 +1 `, "get", "pdb", "web")
	k.expect(`(?s)Allowed disruptions: +1\n +Current: +2\n +Desired: +1\n +Total: +2`, "describe", "pdb", "web")
	k.expect(`True SufficientPods`, "get", "pdb", "web", "-o", "jsonpath={.status.conditions[0].status} {.status.conditions[0].reason}")

	evict := func(pod string) (string, error) {
		return k.try(fmt.Sprintf(`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"name":%q,"namespace":%q}}`, pod, k.ns),
			"create", "--raw", "/api/v1/namespaces/"+k.ns+"/pods/"+pod+"/eviction", "-f", "-")
	}
	k.run("patch", "pdb", "web", "--type=merge", "-p", `{"spec":{"maxUnavailable":0}}`)
	status("0")
	if out, err := evict(pods[0]); err == nil || !strings.Contains(out, "Cannot evict pod as it would violate the pod's disruption budget.") {
		t.Errorf("an eviction that the budget forbids: %v\n%s", err, out)
	}
	k.run("patch", "pdb", "web", "--type=merge", "-p", `{"spec":{"maxUnavailable":1}}`)
	status("1")
	if out, err := evict(pods[0]); err != nil {
		t.Errorf("an eviction that the budget allows: %v\n%s", err, out)
	}
	k.run("wait", "--for=delete", "pod/"+pods[0], "--timeout=40s")
	status("1") // once the replacement is ready
	k.expect(`^$`, "get", "pdb", "web", "-o", "jsonpath={.status.disruptedPods}")
}

// Draining empties a node as far as budgets allow and brings it back. No test runs beside this
// one, since pods may not come to the node meanwhile.
func TestKubectlDrain(t *testing.T) {
	k := newCLI(t)
	pods := k.web()
	k.run("create", "pdb", "web", "--selector=app=web", "--min-available=2")
	k.run("wait", "--for=jsonpath={.status.currentHealthy}=2", "pdb/web", "--timeout=20s")
	node := k.run("get", "pod", pods[0], "-o", "jsonpath={.spec.nodeName}")
	t.Cleanup(func() {
		if out, err := shared.tryKubectl("", "uncordon", node); err != nil {
			t.Errorf("uncordon: %v\n%s", err, out)
		}
	})
	k.expect(`tainted`, "taint", "node", node, "test=a:PreferNoSchedule")
	k.refuse(1, `error: node `+node+` already has test taint(s) with same effect(s) and --overwrite is false`, "taint", "node", node, "test=b:PreferNoSchedule")
	k.expect(`untainted`, "taint", "node", node, "test-")

	drain := []string{"drain", node, "--pod-selector=app=web", "--ignore-daemonsets", "--delete-emptydir-data", "--force"}
	k.refuse(1, `(?s)cordoned.*error when evicting pods/"`+pods[0]+`".*Cannot evict pod as it would violate the pod's disruption budget`, append(drain, "--timeout=2s")...)
	k.expect(`Ready,SchedulingDisabled`, "get", "node", node)
	k.run("patch", "pdb", "web", "--type=merge", "-p", `{"spec":{"minAvailable":1}}`)
	k.expect(`(?s)evicting pod `+k.ns+`/`+pods[0]+`.*node/`+node+` drained`, append(drain, "--timeout=40s")...)
	k.run("rollout", "status", "deploy/web", "--timeout=40s")
	if out := k.run("get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.nodeName}"); strings.Contains(out, node) {
		t.Errorf("pods on %s after it was drained: %s", node, out)
	}
	k.expect(`uncordoned`, "uncordon", node)
	k.expect(node+` +Ready +`, "get", "node", node)
	eventually(t, 20*time.Second, "events of the drain", func() error {
		out := k.run("events", "--for", "pod/"+pods[0])
		if !strings.Contains(out, "Killing") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
}
