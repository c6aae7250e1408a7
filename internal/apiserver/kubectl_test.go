package apiserver_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/pki"
)

// kubectls are the programs to test with: the one of our Kubernetes release, built from its module, and the
// machine's own, if there is one.
func kubectls(t *testing.T) map[string]string {
	t.Helper()
	built := filepath.Join(t.TempDir(), "kubectl")
	// kubectl refuses to compare itself with a server as long as it does not know its own version.
	flags := "-X k8s.io/component-base/version.gitVersion=" + apiserver.KubernetesVersion
	build := exec.CommandContext(t.Context(), "go", "build", "-ldflags", flags, "-o", built, "k8s.io/kubernetes/cmd/kubectl")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build kubectl: %v: %s", err, out)
	}
	found := map[string]string{"module": built}
	if own, err := exec.LookPath("kubectl"); err == nil {
		found["installed"] = own
	}
	return found
}

// kubectl runs a kubectl against a cluster.
type kubectl struct {
	t       *testing.T
	program string
	home    string
	config  string
}

func newKubectl(t *testing.T, c *cluster, program string) *kubectl {
	t.Helper()
	k := &kubectl{t: t, program: program, home: t.TempDir()}
	k.config = filepath.Join(k.home, "config")
	config := c.config(t, pki.UserAdmin, pki.GroupMasters)
	kubeconfig := clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: c.url, CertificateAuthorityData: config.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {ClientCertificateData: config.CertData, ClientKeyData: config.KeyData}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}
	if err := clientcmd.WriteToFile(kubeconfig, k.config); err != nil {
		t.Fatal(err)
	}
	return k
}

func (k *kubectl) run(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(k.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, k.program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+k.config, "HOME="+k.home, "KUBE_EDITOR=sed -i s/blue/green/", "PATH="+os.Getenv("PATH"))
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// step is a command and what it says.
type step struct {
	args  string // split at spaces
	stdin string
	want  string // regular expression, for all of the output
	fails bool
}

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {color: blue}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: example.org/web:v1
        resources: {limits: {memory: 64Mi, cpu: 100m}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  minReplicas: 1
  maxReplicas: 3
  metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}]
`

func steps() []step {
	changed := strings.ReplaceAll(deployment, "replicas: 2", "replicas: 3")
	return []step{
		{args: "version", want: `Server Version: v1\.37\.1\+barque`},
		{args: "get namespaces", want: `NAME +STATUS +AGE\ndefault +Active +\S+\nkube-node-lease +Active .*\nkube-public +Active .*\nkube-system +Active`},
		{args: "api-resources", want: `deployments +deploy +apps/v1 +true +Deployment\n`},
		{args: "api-versions", want: `apps/v1\n(.*\n)*rbac\.authorization\.k8s\.io/v1\n`},
		{args: "apply -f -", stdin: deployment, want: `deployment\.apps/web created\nservice/web created\nhorizontalpodautoscaler\.autoscaling/web created`},
		{args: "apply -f -", stdin: deployment, want: `deployment\.apps/web unchanged\nservice/web unchanged\nhorizontalpodautoscaler\.autoscaling/web unchanged`},
		{args: "diff -f -", stdin: changed, want: `-  replicas: 2\n\+  replicas: 3\n`, fails: true},
		{args: "apply -f -", stdin: changed, want: `deployment\.apps/web configured`},
		{args: "apply --server-side --force-conflicts -f -", stdin: deployment, want: `deployment\.apps/web serverside-applied\n`},
		{args: "apply --server-side -f -", stdin: deployment, want: `deployment\.apps/web serverside-applied\n`},
		{args: "get deployment web -o jsonpath={.spec.replicas}", want: `^2$`},
		{args: "get deployment,service", want: `deployment\.apps/web +0/2 +0 +0 +\S+\n\nNAME +TYPE +CLUSTER-IP .*\nservice/kubernetes +ClusterIP +10\.43\.0\.1 +<none> +443/TCP .*\nservice/web +ClusterIP +10\.43\.\d+\.\d+ `},
		{args: "get horizontalpodautoscalers.v1.autoscaling web -o jsonpath={.apiVersion}:{.spec.targetCPUUtilizationPercentage}", want: `^autoscaling/v1:50$`},
		{args: "get hpa web -o jsonpath={.apiVersion}", want: `^autoscaling/v2$`},
		{args: "get deploy -l color=blue -o name", want: `^deployment\.apps/web\n$`},
		{args: "get deploy -l color=red -o name", want: `^$`},
		{args: "get deploy web -o yaml --show-managed-fields", want: `manager: kubectl\n    operation: Apply`},
		{args: "describe deployment web", want: `Replicas: +2 desired \| 0 updated \| 0 total`},
		{args: "edit deployment web", want: `deployment\.apps/web edited`},
		{args: "get deploy web -o jsonpath={.metadata.labels.color}", want: `^green$`},
		{args: `patch deployment web -p {"spec":{"template":{"spec":{"containers":[{"name":"web","image":"example.org/web:v2"}]}}}}`, want: `patched`},
		{args: `patch deployment web --type=json -p [{"op":"add","path":"/metadata/annotations/a","value":"b"}]`, want: `patched`},
		{args: `patch deployment web --type=merge -p {"metadata":{"annotations":{"a":null}}}`, want: `patched`},
		{args: `patch deployment web --subresource=status --type=merge -p {"status":{"replicas":2,"readyReplicas":1,"conditions":[{"type":"Available","status":"True"}]}}`, want: `patched`},
		{args: "get deploy web -o jsonpath={.spec.template.spec.containers[0].image}:{.spec.template.spec.containers[0].resources.limits.memory}:{.metadata.annotations.a}:{.status.readyReplicas}", want: `^example\.org/web:v2:64Mi::1$`},
		{args: "wait --for=condition=Available deployment/web --timeout=10s", want: `condition met`},
		{args: "label deployment web tier=front", want: `labeled`},
		{args: "annotate deployment web note=x", want: `annotated`},
		{args: "scale deployment web --replicas=5", want: `scaled`},
		{args: "get deploy web -o jsonpath={.spec.replicas}", want: `^5$`},
		{args: "get --raw /apis/apps/v1/namespaces/default/deployments/web/scale", want: `"kind":"Scale","apiVersion":"autoscaling/v1"`},
		{args: "rollout pause deployment/web", want: `paused`},
		{args: "set image deployment/web web=example.org/web:v3", want: `image updated`},
		{args: "explain deployment.spec.replicas", want: `(?s)KIND: +Deployment.*FIELD: replicas <integer>`},
		{args: "explain pod.spec.containers --api-version=v1", want: `(?s)FIELDS:.*livenessProbe`},
		{args: "auth can-i create pods", want: `^yes\n$`},
		{args: "auth can-i create pods --as=jane", want: `no`, fails: true},
		{args: "auth whoami", want: `kubernetes-admin`},
		{args: "auth can-i --list --as=jane", want: `selfsubjectreviews`},
		{args: "create configmap c --from-literal=a=1", want: `configmap/c created`},
		{args: "create configmap c --from-literal=a=1", want: `configmaps "c" already exists`, fails: true},
		{args: "create secret generic s --from-literal=a=1", want: `secret/s created`},
		{args: "create serviceaccount robot", want: `serviceaccount/robot created`},
		{args: "create token robot", want: `^ey[\w-]+\.[\w-]+\.[\w-]+$`},
		{args: "create clusterrole r --verb=get --resource=pods", want: `clusterrole\.rbac\.authorization\.k8s\.io/r created`},
		{args: "create rolebinding b --clusterrole=r --serviceaccount=default:robot", want: `created`},
		{args: "auth can-i get pods --as=system:serviceaccount:default:robot", want: `^yes\n$`},
		{args: "create deployment bad --image=x --replicas=-1", want: `spec\.replicas: Invalid value: -1: must be greater than or equal to 0`, fails: true},
		{args: "apply -f -", stdin: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: d}\nspec: {}\n", want: `unknown field "spec"`, fails: true},
		{args: "replace -f -", stdin: "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: \"2\"}\n", want: `configmap/c replaced`},
		{args: "get cm c -o custom-columns=A:.data.a --no-headers", want: `^2\n$`},
		{args: "get cm --all-namespaces --chunk-size=1 -o name", want: `configmap/c\n`},
		{args: "get pods", want: `^No resources found in default namespace\.\n$`},
		{args: "get pods missing", want: `Error from server \(NotFound\): pods "missing" not found`, fails: true},
		{args: "get nothings", want: `the server doesn't have a resource type "nothings"`, fails: true},
		{args: "cluster-info", want: `Kubernetes control plane`},
		{args: "delete configmap c", want: `configmap "c" deleted`},
		{args: "delete configmap c", want: `configmaps "c" not found`, fails: true},
		{args: "delete deployment,service,hpa web", want: `deployment\.apps "web" deleted`},
		{args: "delete secrets --all", want: `secret "s" deleted`},
		{args: "wait --for=delete deployment/web --timeout=10s", want: ``},
		{args: "get deploy", want: `No resources found`},
	}
}

func TestKubectl(t *testing.T) {
	for name, program := range kubectls(t) {
		t.Run(name, func(t *testing.T) {
			c := start(t, nil)
			c.wait(t)
			c.bootstrap(t)
			k := newKubectl(t, c, program)
			for _, s := range steps() {
				out, err := k.run(s.stdin, strings.Fields(s.args)...)
				switch {
				case (err != nil) != s.fails:
					t.Errorf("kubectl %s: %v\n%s", s.args, err, out)
				case !regexp.MustCompile(s.want).MatchString(out):
					t.Errorf("kubectl %s says\n%swant %s", s.args, out, s.want)
				}
			}
		})
	}
}

// kubectl get --watch shows rows as objects change.
func TestKubectlWatch(t *testing.T) {
	for name, program := range kubectls(t) {
		t.Run(name, func(t *testing.T) {
			c := start(t, nil)
			c.wait(t)
			k := newKubectl(t, c, program)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			cmd := exec.CommandContext(ctx, k.program, "get", "configmaps", "--watch", "--no-headers")
			cmd.Env = append(os.Environ(), "KUBECONFIG="+k.config, "HOME="+k.home)
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := make(chan string)
			go func() {
				defer close(lines)
				for rows := bufio.NewScanner(stdout); rows.Scan(); {
					lines <- rows.Text()
				}
			}()
			for i := range 3 {
				if out, err := k.run("", "create", "configmap", fmt.Sprintf("c%d", i)); err != nil {
					t.Fatal(out)
				}
				select {
				case line := <-lines:
					if !strings.HasPrefix(line, fmt.Sprintf("c%d ", i)) {
						t.Errorf("row %q, want c%d", line, i)
					}
				case <-time.After(10 * time.Second):
					t.Fatal("no row")
				}
			}
			cancel()
			for range lines {
			}
			_ = cmd.Wait() // killed, by us
		})
	}
}
