package integration

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// All the ways in which `kubectl get` shows things.
func TestKubectlGet(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	pods := k.web()
	k.run("create", "configmap", "settings", "--from-literal=a=b")
	tests := []struct {
		want string
		args []string
	}{
		{`(?m)^NAME +READY +STATUS +RESTARTS +AGE\nweb-\S+ +1/1 +Running +0 +\d+s$`, []string{"get", "pods"}},
		{`(?m)IP +NODE +NOMINATED NODE +READINESS GATES\n.* 10\.\d+\.\d+\.\d+ +server-\d +<none> +<none>$`, []string{"get", "pods", "-o", "wide"}},
		{`web +2/2 +2 +2 +\d+s +main +` + busyboxImage + ` +app=web`, []string{"get", "deploy", "-o", "wide"}},
		{`(?s)pod/web-.*service/web +ClusterIP +10\.43\.\d+\.\d+ +<none> +80/TCP.*deployment.apps/web.*replicaset.apps/web-`, []string{"get", "all"}},
		{`endpointslice.discovery.k8s.io/web-\w+ +IPv4 +8080 +10\.42\.\d+\.\d+,10\.42\.\d+\.\d+`, []string{"get", "endpointslices,svc"}},
		{`^pod/` + pods[0] + "\n" + `pod/` + pods[1] + "\n$", []string{"get", "pods", "-o", "name", "-l", "app=web", "--chunk-size=1", "--sort-by=metadata.name"}},
		{`^Running Running$`, []string{"get", "pods", "-o", "jsonpath={.items[*].status.phase}"}},
		{`^web:2$`, []string{"get", "deploy", "web", "-o", "go-template={{.metadata.name}}:{{.spec.replicas}}"}},
		{`^NAME +IP\n` + pods[0] + ` +10\.42\.`, []string{"get", "pods", "-o", "custom-columns=NAME:.metadata.name,IP:.status.podIP"}},
		{`app=web,pod-template-hash=`, []string{"get", "pods", "--show-labels"}},
		{`(?m)APP\nweb-.* web$`, []string{"get", "pods", "-L", "app"}},
		{`(?m)^` + k.ns + ` +` + pods[0], []string{"get", "pods", "-A"}},
		{`^` + pods[0], []string{"get", "pods", "--no-headers", "-l", "app in (web,other),!absent"}},
		{`^No resources found in ` + k.ns + ` namespace.\n$`, []string{"get", "pods", "-l", "app!=web"}},
		{`^pod/` + pods[1] + "\n$", []string{"get", "pods", "-o", "name", "--field-selector", "metadata.name=" + pods[1] + ",status.phase=Running"}},
		{`^configmap/settings\n$`, []string{"get", "cm", "-o", "name", "--field-selector=metadata.name!=kube-root-ca.crt"}},
		{`server-1 +Ready +control-plane +\S+ +v1\.37\.\d+\S* +10\.\d+\.\d+\.\d+ .*containerd://`, []string{"get", "nodes", "-o", "wide"}},
		{`(?s)managedFields:.*manager: kubectl-client-side-apply`, []string{"get", "deploy", "web", "-o", "yaml", "--show-managed-fields"}},
		{`(?m)^replicas: 2$`, []string{"get", "deploy", "web", "--subresource=scale", "-o", "jsonpath=replicas: {.spec.replicas}"}},
		{`(?m)^NAME +DESIRED +AVAILABLE +AGE\nweb +2 +2 +\d+s$`, []string{"get", "deploy", "web", "--subresource=scale"}},
	}
	for _, tt := range tests {
		k.expect(tt.want, tt.args...)
	}
	var fromJSON, fromYAML map[string]any
	if err := json.Unmarshal([]byte(k.run("get", "svc", "web", "-o", "json")), &fromJSON); err != nil || fromJSON["kind"] != "Service" {
		t.Errorf("get -o json: %v, %v", fromJSON, err)
	}
	if err := yaml.Unmarshal([]byte(k.run("get", "svc", "web", "-o", "yaml")), &fromYAML); err != nil || fromYAML["apiVersion"] != "v1" {
		t.Errorf("get -o yaml: %v, %v", fromYAML, err)
	}
}

// A watch shows what comes, changes and goes, as a table and otherwise.
func TestKubectlGetWatch(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	k.run("create", "configmap", "first")
	table := k.start("get", "configmaps", "--watch", "--output-watch-events")
	names := k.start("get", "configmaps", "--watch-only", "-o", "jsonpath={.metadata.name}={.data.a};")
	table.see(`(?m)^ADDED +first +0`)
	eventually(t, 20e9, "the second watch", func() error {
		k.run("create", "configmap", "probe", "--from-literal=a=0")
		k.run("delete", "configmap", "probe")
		if !strings.Contains(names.output(), "probe=0;") {
			return os.ErrNotExist
		}
		return nil
	})
	k.run("create", "configmap", "second", "--from-literal=a=1")
	k.run("patch", "configmap", "second", "-p", `{"data":{"a":"2","b":"3"}}`)
	k.run("delete", "configmap", "second")
	table.see(`(?s)ADDED +second +1 .*MODIFIED +second +2 .*DELETED +second +2 `)
	names.see(`second=1;second=2;second=2;`)
}

func TestKubectlDescribe(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	pods := k.web()
	k.run("autoscale", "deploy", "web", "--min=1", "--max=3", "--cpu=50%")
	k.expect(`(?s)Name: +`+pods[0]+`.*Node: +server-\d/10\..*Controlled By: +ReplicaSet/web-.*State: +Running.*Readiness: +http-get http://:http/.*Ready +True.*QoS Class: +BestEffort.*Events:.*Scheduled.*default-scheduler.*Pulled.*kubelet.*Started`, "describe", "pod", pods[0])
	k.expect(`(?s)Replicas: +2 desired \| 2 updated \| 2 total \| 2 available \| 0 unavailable.*Available +True +MinimumReplicasAvailable.*NewReplicaSet: +web-\w+ \(2/2 replicas created\).*ScalingReplicaSet.*from 0 to 2`, "describe", "deploy", "web")
	k.expect(`(?s)Type: +ClusterIP.*IP: +10\.43\..*Endpoints: +10\.42\.\d+\.\d+:8080,10\.42\.\d+\.\d+:8080`, "describe", "svc", "web")
	k.expect(`(?s)Capacity:.*pods: +110.*Kubelet Version: +v1\.37\..*PodCIDR: +10\.42\.\d+\.0/24.*Non-terminated Pods:`, "describe", "node", "server-1")
	k.expect(`Replicas: +2 current / 2 desired`, "describe", "rs", "-l", "app=web")
	k.expect(`(?s)Reference: +Deployment/web.*Max replicas: +3`, "describe", "hpa", "web")
	for _, kind := range []string{"namespace/" + k.ns, "configmap/kube-root-ca.crt", "serviceaccount/default", "clusterrole/admin", "endpointslice"} {
		k.run("describe", kind)
	}
	k.refuse(1, `Error from server (NotFound): pods "nothing" not found`, "describe", "pod", "nothing")
}

func TestKubectlDiscovery(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	k.expect(`(?s)KIND: +Pod.*FIELD: livenessProbe <Probe>.*failureThreshold\s+<integer>`, "explain", "pods.spec.containers.livenessProbe")
	k.expect(`(?s)GROUP: +apps\nKIND: +Deployment.*spec\t<DeploymentSpec>.*template\t<PodTemplateSpec>.*containers\t<\[\]Container> -required-`, "explain", "deployments", "--recursive")
	k.expect(`VERSION: +v1\n`, "explain", "horizontalpodautoscalers", "--api-version=autoscaling/v1")
	k.refuse(1, "(?s)error: field \"nothing\" does not exist$", "explain", "pods.spec.nothing")
	k.expect(`(?m)^deployments +deploy +apps/v1 +true +Deployment +create,delete,deletecollection,get,list,patch,update,watch +all$`, "api-resources", "-o", "wide")
	k.expect(`(?m)^nodes\n(.*\n)*clusterroles.rbac.authorization.k8s.io$`, "api-resources", "--namespaced=false", "-o", "name")
	k.expect(`(?m)^apps/v1\n(.*\n)*v1$`, "api-versions")
	k.expect(`control plane.* is running at .*https://10\.`, "cluster-info")
	k.expect(`^ok$`, "get", "--raw", "/readyz")
	k.expect(`(?s)\[\+\]etcd ok.*readyz check passed`, "get", "--raw", "/readyz?verbose")
	k.refuse(1, `error: Metrics API not available`, "top", "nodes")
}

// What a user who errs is told is what a stock cluster says.
func TestKubectlErrors(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	k.run("create", "configmap", "taken")
	k.run("create", "deployment", "web", "--image="+busyboxImage, "--replicas=0")
	for _, tt := range []struct {
		want string
		args []string
	}{
		{`Error from server (NotFound): pods "nothing" not found`, []string{"get", "pod", "nothing"}},
		{`error: the server doesn't have a resource type "nothings"`, []string{"get", "nothings"}},
		{`Error from server (BadRequest): Unable to find "/v1, Resource=pods" that match label selector "", field selector "foo=bar": field label not supported: foo`, []string{"get", "pods", "--field-selector=foo=bar"}},
		{`error: failed to create configmap: configmaps "taken" already exists`, []string{"create", "configmap", "taken"}},
		{`Error from server (AlreadyExists): namespaces "default" already exists`, []string{"create", "namespace", "default"}},
		{`(?m)^Error from server \(Forbidden\): namespaces "default" is forbidden: this namespace may not be deleted`, []string{"delete", "namespace", "default"}},
		{`^error: failed to create deployment: Deployment.apps "A_b" is invalid: metadata.name: Invalid value: "A_b": a lowercase RFC 1123 subdomain must consist of`, []string{"create", "deployment", "A_b", "--image=x"}},
		{`^The Deployment "web" is invalid: spec.replicas: Invalid value: -1: must be greater than or equal to 0`, []string{"patch", "deploy", "web", "-p", `{"spec":{"replicas":-1}}`}},
		{`^The Deployment "web" is invalid: spec.selector: Invalid value: .*: field is immutable`, []string{"patch", "deploy", "web", "--type=merge", "-p", `{"spec":{"selector":{"matchLabels":{"app":"x"}},"template":{"metadata":{"labels":{"app":"x"}}}}}`}},
		{`The request is invalid: the server rejected our request due to an error in our request`, []string{"patch", "deploy", "web", "--type=json", "-p", `[{"op":"test","path":"/spec/replicas","value":9}]`}},
		{`The request is invalid: patch: Invalid value: "map[spec:map[replicas:x]]": unrecognized type: int32`, []string{"patch", "deploy", "web", "-p", `{"spec":{"replicas":"x"}}`}},
		{`Error from server (Forbidden): pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "` + k.ns + `"`, []string{"get", "pods", "--as=jane"}},
		{`Error from server (Forbidden): nodes is forbidden: User "jane" cannot list resource "nodes" in API group "" at the cluster scope`, []string{"get", "nodes", "--as=jane"}},
		{`error: Expected replicas to be 9, was 0`, []string{"scale", "deploy", "web", "--replicas=1", "--current-replicas=9"}},
		{`error: failed to create configmap: namespaces "nothing" not found`, []string{"create", "configmap", "a", "-n", "nothing"}},
		{`error: timed out waiting for the condition on deployments/web`, []string{"wait", "--for=condition=Nothing", "deploy/web", "--timeout=1s"}},
		{`error: failed to create ClusterIP service: Service "bad" is invalid: spec.clusterIPs: Invalid value: ["10.99.0.1"]: failed to allocate IP 10.99.0.1: the provided IP is not in the valid range. The range of valid IPs is [10.43.0.0/16]`, []string{"create", "service", "clusterip", "bad", "--tcp=80", "--clusterip=10.99.0.1"}},
	} {
		k.refuse(1, tt.want, tt.args...)
	}
	const bad = "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec: {containers: [{name: c, imagee: x}]}\n"
	k.refuseWith(bad, 1, `Error from server (BadRequest): error when creating "STDIN": Pod in version "v1" cannot be handled as a Pod: strict decoding error: unknown field "spec.containers[0].imagee"`, "apply", "-f", "-")
	k.refuseWith(bad, 1, `The Pod "bad" is invalid: spec.containers[0].image: Required value`, "create", "-f", "-", "--validate=false")
	k.refuseWith("apiVersion: foo/v1\nkind: Foo\nmetadata: {name: a}\n", 1, `^error: resource mapping not found for name: "a" namespace: "" from "STDIN": no matches for kind "Foo" in version "foo/v1"`, "apply", "-f", "-")
	k.refuseWith(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"taken","resourceVersion":"1"},"data":{"a":"b"}}`, 1,
		`Error from server (Conflict): error when replacing "STDIN": Operation cannot be fulfilled on configmaps "taken": the object has been modified; please apply your changes to the latest version and try again`, "replace", "-f", "-")
}

// The kubectl inside the binary, and the machine's own (an older one, if it has one), do the same.
func TestOtherKubectls(t *testing.T) {
	t.Parallel()
	programs := map[string][]string{"embedded": {program, "kubectl"}}
	if _, err := os.Stat("/usr/bin/kubectl"); err == nil {
		programs["installed"] = []string{"/usr/bin/kubectl"}
	}
	for name, command := range programs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newCLI(t)
			k.program = command
			pods := k.web()
			k.expect(`web-\S+ +1/1 +Running`, "get", "pods", "-o", "wide")
			k.expect(`2 desired \| 2 updated`, "describe", "deploy", "web")
			k.expect(`KIND: +Pod`, "explain", "pods")
			k.expect(`deployments +deploy`, "api-resources")
			k.expect(`tick`, "logs", "deploy/web", "--tail=2")
			if out, err := k.try("", "exec", pods[0], "--", "sh", "-c", "echo out; exit 7"); exitCode(err) != 7 || !strings.Contains(out, "out") {
				t.Errorf("exec: %v\n%s", err, out)
			}
			k.expect(`deployment.apps/web scaled`, "scale", "deploy", "web", "--replicas=1")
			k.expect(`serverside-applied`, "apply", "--server-side", "--force-conflicts", "-f", manifest(t, webManifest))
			k.expect(`deployment.apps/web restarted`, "rollout", "restart", "deploy/web")
			k.expect(`successfully rolled out`, "rollout", "status", "deploy/web", "--timeout=40s")
			k.refuse(1, `error: the server doesn't have a resource type "nothings"`, "get", "nothings")
			k.expect(`deployment.apps "web" deleted`, "delete", "deploy", "web", "--cascade=foreground")
			k.expect(`^No resources found`, "get", "rs")
		})
	}
}

// manifest writes a file with a manifest.
func manifest(t testing.TB, text string) string {
	t.Helper()
	file := t.TempDir() + "/manifest.yaml"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
