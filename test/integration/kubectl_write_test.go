package integration

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKubectlApply(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	four := manifest(t, strings.Replace(webManifest, "replicas: 2", "replicas: 4", 1))
	if out := k.runWith(webManifest, "apply", "-f", "-"); out != "deployment.apps/web created\nservice/web created\n" {
		t.Errorf("apply: %s", out)
	}
	if out := k.runWith(webManifest, "apply", "-f", "-"); out != "deployment.apps/web unchanged\nservice/web unchanged\n" {
		t.Errorf("apply again: %s", out)
	}
	k.refuse(1, `(?s)-  replicas: 2\n\+  replicas: 4`, "diff", "-f", four)
	k.expect(`deployment.apps/web configured \(server dry run\)`, "apply", "-f", four, "--dry-run=server")
	k.expect(`^2$`, "get", "deploy", "web", "-o", "jsonpath={.spec.replicas}")
	k.expect(`deployment.apps/web configured\nservice/web unchanged`, "apply", "-f", four)
	k.run("diff", "-f", four)

	k.run("scale", "deploy", "web", "--replicas=1")
	k.run("apply", "--server-side", "--force-conflicts", "-f", four)
	k.run("patch", "deploy", "web", "-p", `{"spec":{"replicas":1}}`, "--field-manager=somebody")
	k.refuse(1, `(?s)error: Apply failed with 1 conflict: conflict with "somebody" using apps/v1: .spec.replicas\n`, "apply", "--server-side", "-f", four)
	k.expect(`^1$`, "get", "deploy", "web", "-o", "jsonpath={.spec.replicas}")
	k.expect(`deployment.apps/web serverside-applied`, "apply", "--server-side", "--force-conflicts", "-f", four)
	k.expect(`^4 `, "get", "deploy", "web", "-o", "jsonpath={.spec.replicas} {.metadata.managedFields[*].manager}")
	k.run("diff", "--server-side", "-f", four)

	// What an applied manifest no longer has is removed; what others own stays.
	k.runWith("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: '1', b: '2'}\n", "apply", "--server-side", "-f", "-")
	k.run("patch", "configmap", "c", "-p", `{"data":{"mine":"3"}}`)
	k.runWith("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: '1'}\n", "apply", "--server-side", "-f", "-")
	k.expect(`^{"a":"1","mine":"3"}$`, "get", "configmap", "c", "-o", "jsonpath={.data}")
	if out := k.runWith("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: '5'}\n", "replace", "-f", "-"); out != "configmap/c replaced\n" {
		t.Errorf("replace: %s", out)
	}
	k.expect(`^{"a":"5"}$`, "get", "configmap", "c", "-o", "jsonpath={.data}")
}

func TestKubectlKustomize(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"kustomization.yaml": "namePrefix: k-\nlabels: [{pairs: {team: a}}]\nconfigMapGenerator: [{name: settings, literals: [a=b]}]\nresources: [sa.yaml]\n",
		"sa.yaml":            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: robot}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	k.expect(`(?s)serviceaccount/k-robot created.*configmap/k-settings-\w+ created`, "apply", "-k", dir)
	k.expect(`k-robot`, "get", "sa", "-l", "team=a", "-o", "name")
	k.expect(`(?s)unchanged.*unchanged`, "apply", "-k", dir)
	k.run("delete", "-k", dir)
}

// editor writes a program for KUBE_EDITOR that replaces text in the file it is given.
func editor(t testing.TB, from, to string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "editor")
	if err := os.WriteFile(file, []byte("#!/bin/sh\nsed -i 's/"+from+"/"+to+"/' \"$1\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return "KUBE_EDITOR=" + file
}

func TestKubectlChanges(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	k.run("create", "deployment", "web", "--image="+busyboxImage, "--replicas=0", "--", "sleep", "1000")
	replicas := func(want string) {
		t.Helper()
		k.expect("^"+want+"$", "get", "deploy", "web", "-o", "jsonpath={.spec.replicas}")
	}
	edit := k
	edit.env = []string{editor(t, "replicas: 0", "replicas: 1")}
	edit.expect(`^deployment.apps/web edited`, "edit", "deploy", "web")
	replicas("1")
	edit.expect(`Edit cancelled, no changes made`, "edit", "deploy", "web")
	edit.env = []string{editor(t, "\"replicas\": 1", "\"replicas\": 2")}
	edit.expect(`"replicas": 2,`, "edit", "deploy/web", "-o", "json")
	replicas("2")
	edit.env = []string{editor(t, "replicas: 2", "replicas: -2")}
	edit.refuse(1, `(?s)error: deployments.apps "web" is invalid.*Edit cancelled, no valid changes were saved`, "edit", "deploy", "web")

	k.run("patch", "deploy", "web", "-p", `{"spec":{"replicas":0}}`)
	replicas("0")
	k.run("patch", "deploy", "web", "--type=merge", "-p", `{"spec":{"replicas":1}}`)
	replicas("1")
	k.run("patch", "deploy", "web", "--type=json", "-p", `[{"op":"replace","path":"/spec/replicas","value":2}]`)
	replicas("2")
	k.expect(`scale.autoscaling/web patched`, "patch", "deploy", "web", "--subresource=scale", "--type=merge", "-p", `{"spec":{"replicas":0}}`)
	replicas("0")
	k.run("patch", "deploy", "web", "-p", `{"spec":{"template":{"spec":{"containers":[{"name":"second","image":"x"}]}}}}`)
	k.expect(`^second busybox$`, "get", "deploy", "web", "-o", "jsonpath={.spec.template.spec.containers[*].name}")
	k.expect(`patched \(no change\)`, "patch", "deploy", "web", "-p", `{"spec":{"replicas":0}}`)

	k.run("label", "deploy", "web", "tier=front")
	k.refuse(1, `error: 'tier' already has a value (front), and --overwrite is false`, "label", "deploy", "web", "tier=back")
	k.run("label", "deploy", "web", "tier=back", "--overwrite")
	k.expect(`web`, "get", "deploy", "-l", "tier=back", "-o", "name")
	k.expect(`unlabeled`, "label", "deploy", "web", "tier-")
	// On an object that no controller writes: a Deployment's status may change between the reading of the version and the write.
	k.run("create", "configmap", "quiet")
	k.expect(`annotated`, "annotate", "configmap", "quiet", "note=well", "--resource-version="+k.run("get", "configmap", "quiet", "-o", "jsonpath={.metadata.resourceVersion}"))
	k.refuse(1, `(?s)the object has been modified`, "annotate", "configmap", "quiet", "note=old", "--overwrite", "--resource-version=1")
	k.expect(`scaled`, "scale", "deploy", "web", "--replicas=1", "--current-replicas=0")
	k.expect(`autoscaled`, "autoscale", "deploy", "web", "--min=1", "--max=5", "--cpu=50%")
	k.expect(`Deployment/web +cpu: <unknown>/50% +1 +5`, "get", "hpa")
	k.expect(`image updated`, "set", "image", "deploy/web", "second="+busyboxImage)
	k.expect(`env updated`, "set", "env", "deploy/web", "A=B", "-c", "busybox")
	k.expect(`A=B`, "set", "env", "deploy/web", "--list")
	k.expect(`resource requirements updated`, "set", "resources", "deploy/web", "--limits=cpu=200m,memory=64Mi", "--requests=cpu=10m")
	k.expect(`serviceaccount updated`, "set", "serviceaccount", "deploy/web", "default")
	k.noNonsense()
}

// noNonsense looks for what a server logs when a caller or it itself has gone wrong.
func (k cli) noNonsense() {
	k.t.Helper()
	logs, _ := filepath.Glob(filepath.Join(shared.dir, "*.log"))
	for _, name := range logs {
		data, err := os.ReadFile(name)
		if err != nil {
			k.t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			if strings.Contains(line, "SHOULD NOT HAPPEN") || strings.Contains(line, "panic") {
				k.t.Errorf("%s: %s", filepath.Base(name), line)
			}
		}
	}
}

func TestKubectlRollout(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	k.web()
	image := []string{"get", "deploy", "web", "-o", "jsonpath={.spec.template.spec.containers[0].env[*].value}"}
	k.run("set", "env", "deploy/web", "A=2")
	k.run("annotate", "deploy", "web", "kubernetes.io/change-cause=second")
	k.expect(`successfully rolled out`, "rollout", "status", "deploy/web", "--timeout=40s")
	k.expect(`(?s)1 +<none>\n2 +second`, "rollout", "history", "deploy/web")
	k.expect(`(?s)with revision #2.*A:\s+2`, "rollout", "history", "deploy/web", "--revision=2")
	k.expect(`rolled back`, "rollout", "undo", "deploy/web")
	k.expect(`^$`, image...)
	k.expect(`successfully rolled out`, "rollout", "status", "deploy/web", "--timeout=40s")
	k.expect(`rolled back`, "rollout", "undo", "deploy/web", "--to-revision=2")
	k.expect(`^2$`, image...)
	k.refuse(1, `(?s)error: unable to find specified revision 99 in history`, "rollout", "undo", "deploy/web", "--to-revision=99")
	k.expect(`paused`, "rollout", "pause", "deploy/web")
	k.refuse(1, `error: deployments.apps "web" can't restart paused deployment (run rollout resume first)`, "rollout", "restart", "deploy/web")
	k.expect(`resumed`, "rollout", "resume", "deploy/web")
	k.expect(`restarted`, "rollout", "restart", "deploy/web")
	k.expect(`successfully rolled out`, "rollout", "status", "deploy/web", "--timeout=40s")
}

// Every common generator of `kubectl create`.
func TestKubectlCreate(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"deployment", "d", "--image=" + busyboxImage, "--replicas=0"},
		{"job", "j", "--image=" + busyboxImage, "--", "echo", "done"},
		{"cronjob", "c", "--image=" + busyboxImage, "--schedule=0 0 1 1 *", "--", "echo", "cron"},
		{"job", "from-cron", "--from=cronjob/c"},
		{"configmap", "m", "--from-literal=a=b", "--from-file=" + file},
		{"secret", "generic", "s", "--from-literal=a=b"},
		{"secret", "docker-registry", "pull", "--docker-server=a", "--docker-username=b", "--docker-password=c"},
		{"serviceaccount", "sa"},
		{"role", "r", "--verb=get,list", "--resource=pods,pods/log,deployments.apps"},
		{"rolebinding", "rb", "--role=r", "--serviceaccount=" + k.ns + ":sa"},
		{"ingress", "i", "--rule=example.com/path*=web:80", "--class=x"},
		{"quota", "q", "--hard=pods=50"},
		{"poddisruptionbudget", "p", "--selector=app=d", "--max-unavailable=1"},
		{"service", "clusterip", "ip", "--tcp=80:8080"},
		{"service", "clusterip", "headless", "--clusterip=None", "--tcp=80"},
		{"service", "nodeport", "np", "--tcp=80:8080"},
		{"service", "loadbalancer", "lb", "--tcp=80:8080"},
		{"service", "externalname", "en", "--external-name=example.com"},
	} {
		k.expect(` created\n$`, append([]string{"create"}, args...)...)
	}
	k.expect(`d exposed`, "expose", "deploy", "d", "--port=80", "--name=exposed")
	k.run("wait", "--for=condition=complete", "job/j", "job/from-cron", "--timeout=40s")
	k.expect(`^done\n$`, "logs", "job/j")
	k.expect(`(?s)np +NodePort +10\.43\.\d+\.\d+ +<none> +80:3\d{4}/TCP`, "get", "svc", "np")
	k.expect(`headless +ClusterIP +None`, "get", "svc", "headless")
	k.expect(`en +ExternalName +<none> +example.com`, "get", "svc", "en")
	k.expect(`^{"a":"b","file":"content"}$`, "get", "cm", "m", "-o", "jsonpath={.data}")
	k.expect(`kubernetes.io/dockerconfigjson`, "get", "secret", "pull")
	if parts := strings.Split(k.run("create", "token", "sa", "--duration=1h"), "."); len(parts) != 3 {
		t.Errorf("create token: %d parts", len(parts))
	}
}

func TestKubectlDelete(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	k.web()
	count := func(want int) {
		t.Helper()
		if got := strings.Fields(k.run("get", "rs,pods", "-o", "name")); len(got) != want {
			t.Errorf("%d are left, want %d: %v", len(got), want, got)
		}
	}
	k.expect(`deployment.apps "web" deleted`, "delete", "deploy", "web", "--cascade=orphan")
	count(3)
	k.runWith(webManifest, "apply", "-f", "-") // adopts them
	count(3)
	k.expect(`^Deployment$`, "get", "rs", "-o", "jsonpath={.items[0].metadata.ownerReferences[0].kind}")
	k.expect(`deleted .*\(server dry run\)`, "delete", "deploy", "web", "--dry-run=server")
	k.run("delete", "deploy", "web", "--cascade=foreground", "--timeout=40s")
	count(0)
	k.web()
	k.run("delete", "deploy", "web", "--cascade=background")
	k.run("wait", "--for=delete", "pods", "-l", "app=web", "--timeout=40s")
	count(0)

	stubborn := func() {
		t.Helper()
		k.run("run", "stubborn", "--image="+busyboxImage, "--restart=Never", "--", "sh", "-c", `trap "" TERM; while true; do usleep 100000; done`)
		k.run("wait", "--for=condition=Ready", "pod/stubborn", "--timeout=40s")
	}
	stubborn()
	k.run("delete", "pod", "stubborn", "--wait=false")
	k.expect(`stubborn +1/1 +Terminating`, "get", "pod", "stubborn")
	k.run("delete", "pod", "stubborn", "--grace-period=1")
	stubborn()
	k.expect(`force deleted`, "delete", "pod", "stubborn", "--force")
	k.refuse(1, `Error from server (NotFound): pods "stubborn" not found`, "delete", "pod", "stubborn")
	k.expect(`^$`, "delete", "pod", "stubborn", "--ignore-not-found")
	k.run("create", "configmap", "one")
	k.expect(`configmap "one" deleted`, "delete", "configmaps", "--all")
}
