package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// What each kind of volume looks like from inside, and that what changes in the API changes there.
func TestVolumesOfObjects(t *testing.T) {
	s := newScene(t)
	s.apply(`
{apiVersion: v1, kind: ConfigMap, metadata: {name: conf, namespace: NS}, data: {a: one, b: two}, binaryData: {bin: AAEC}}
---
{apiVersion: v1, kind: Secret, metadata: {name: sec, namespace: NS}, stringData: {key: hidden}}
---
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: NS, labels: {colour: blue}}
spec:
  terminationGracePeriodSeconds: 0
  volumes:
  - {name: conf, configMap: {name: conf}}
  - {name: items, configMap: {name: conf, defaultMode: 0400, items: [{key: a, path: deep/er, mode: 0440}]}}
  - {name: none, configMap: {name: nothing, optional: true}}
  - {name: sec, secret: {secretName: sec}}
  - {name: down, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: cpu, resourceFieldRef: {containerName: c, resource: limits.cpu}}]}}
  - name: all
    projected:
      sources:
      - {configMap: {name: conf, items: [{key: a, path: conf}]}}
      - {secret: {name: sec}}
      - {downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
      - {serviceAccountToken: {path: token, audience: elsewhere, expirationSeconds: 600}}
  containers:
  - name: c
    image: BUSYBOX
    command: [sleep, "1000"]
    resources: {limits: {cpu: "2"}}
    volumeMounts:
    - {name: conf, mountPath: /conf}
    - {name: conf, mountPath: /single, subPath: a}
    - {name: items, mountPath: /items}
    - {name: none, mountPath: /none}
    - {name: sec, mountPath: /sec, readOnly: true}
    - {name: down, mountPath: /down}
    - {name: all, mountPath: /all}
`)
	s.until("p", "runs", podReady)
	cat := func(path string) string { return s.run("p", "c", "cat", path) }
	for path, want := range map[string]string{
		"/conf/a": "one", "/conf/b": "two", "/single": "one", "/items/deep/er": "one", "/sec/key": "hidden", "/down/labels": `colour="blue"`,
		"/down/cpu": "2", "/all/conf": "one", "/all/key": "hidden", "/all/name": "p",
	} {
		same(t, path, cat(path), want)
	}
	same(t, "items", s.run("p", "c", "ls", "/items"), "deep")
	same(t, "mode", s.run("p", "c", "stat", "-Lc", "%a", "/items/deep/er"), "440")
	same(t, "an optional map that is not there", s.run("p", "c", "ls", "/none"), "")
	same(t, "bytes", s.run("p", "c", "stat", "-Lc", "%s", "/conf/bin"), "3")
	if mounts := cat("/proc/mounts"); !strings.Contains(mounts, "tmpfs /sec tmpfs ro") {
		t.Errorf("the secret is not in memory:\n%s", mounts)
	}
	if parts := strings.Split(cat("/all/token"), "."); len(parts) != 3 {
		t.Errorf("a token of %d parts", len(parts))
	}

	patch := func(kind, name, body string) {
		shared.kubectl(t, "-n", s.ns, "patch", kind, name, "--type=merge", "-p", body)
	}
	patch("configmap", "conf", `{"data":{"a":"three","b":null}}`)
	patch("secret", "sec", `{"stringData":{"key":"changed"}}`)
	patch("pod", "p", `{"metadata":{"labels":{"colour":"red"}}}`)
	for path, want := range map[string]string{"/conf/a": "three", "/sec/key": "changed", "/all/conf": "three", "/all/key": "changed", "/down/labels": `colour="red"`} {
		eventually(t, 2*patience, path+" follows", func() error {
			if got := cat(path); got != want {
				return fmt.Errorf("it is %q", got)
			}
			return nil
		})
	}
	if out, err := s.exec("p", "c", "cat", "/conf/b"); err == nil {
		t.Errorf("a key that was removed is there: %s", out)
	}
	same(t, "a subPath, which stays", cat("/single"), "one")
}

// Folders of a pod's own and of the machine.
func TestVolumesOfFiles(t *testing.T) {
	s := newScene(t)
	dir := hostDir(t)
	if err := os.WriteFile(filepath.Join(dir, "there"), []byte("host"), 0o644); err != nil {
		t.Fatal(err)
	}
	out := s.script("p", strings.ReplaceAll(`
volumes:
- {name: disk, emptyDir: {}}
- {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
- {name: made, hostPath: {path: DIR/made, type: DirectoryOrCreate}}
- {name: file, hostPath: {path: DIR/there, type: File}}
- {name: touched, hostPath: {path: DIR/touched, type: FileOrCreate}}
- {name: "null", hostPath: {path: /dev/null, type: CharDevice}}
containers:
- name: c
  command: [sh, -c, "grep ' /memory ' /proc/mounts; df -k /memory | tail -n 1; cat /file; echo; echo x > /touched; echo y > /made/f; echo z > /disk/f; cat /sub/f; touch /ro/f 2>&1; ls -l /null; true"]
  env: [{name: NAME, value: part}]
  volumeMounts:
  - {name: disk, mountPath: /disk, subPath: part}
  - {name: disk, mountPath: /sub, subPathExpr: $(NAME)}
  - {name: disk, mountPath: /ro, readOnly: true}
  - {name: memory, mountPath: /memory}
  - {name: made, mountPath: /made}
  - {name: file, mountPath: /file}
  - {name: touched, mountPath: /touched}
  - {name: "null", mountPath: /null}
`, "DIR", dir))
	for _, want := range []string{"tmpfs /memory tmpfs", "8192", "host\n", "z\n", "Read-only file system", "crw"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	same(t, "a made folder's file", readFile(t, filepath.Join(dir, "made", "f")), "y\n")
	same(t, "a made file", readFile(t, filepath.Join(dir, "touched")), "x\n")

	s.pod("wrong", `
volumes: [{name: v, hostPath: {path: `+dir+`/nothing, type: Directory}}]
containers: [{name: c, command: [sleep, "1000"], volumeMounts: [{name: v, mountPath: /v}]}]
`)
	s.event("wrong", "FailedMount", "hostPath type check failed: "+dir+"/nothing ")
}

// The default service account's token works against the API from inside a pod, no further than
// its rights; a pod that wants none has none.
func TestServiceAccountInPod(t *testing.T) {
	s := newScene(t)
	s.tool()
	s.pod("api", "containers: [{name: c, image: '"+toolImage+"', command: [busybox, sleep, '1000']}]")
	s.pod("none", "automountServiceAccountToken: false\ncontainers: [{name: c, command: [sleep, '1000']}]")
	s.until("api", "runs", podReady)
	path := "/api/v1/namespaces/" + s.ns + "/configmaps/kube-root-ca.crt"
	if out := s.run("api", "c", "/tool", "api", path); !strings.HasPrefix(out, "403 Forbidden") || !strings.Contains(out, "system:serviceaccount:"+s.ns+":default") {
		t.Errorf("without rights: %s", out)
	}
	shared.kubectl(t, "-n", s.ns, "create", "rolebinding", "view", "--clusterrole=view", "--serviceaccount="+s.ns+":default")
	eventually(t, patience, "the right has come", func() error {
		if out := s.run("api", "c", "/tool", "api", path); !strings.HasPrefix(out, "200 OK") || !strings.Contains(out, "BEGIN CERTIFICATE") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	s.until("none", "runs", podReady)
	if out, err := s.exec("none", "c", "ls", "/var/run/secrets/kubernetes.io"); err == nil {
		t.Errorf("a token that was not wanted: %s", out)
	}
	// What every namespace has comes back when it is deleted.
	before, err := s.client.CoreV1().ServiceAccounts(s.ns).Get(t.Context(), "default", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	shared.kubectl(t, "-n", s.ns, "delete", "serviceaccount/default", "configmap/kube-root-ca.crt")
	eventually(t, patience, "both are back", func() error {
		sa, err := s.client.CoreV1().ServiceAccounts(s.ns).Get(t.Context(), "default", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if sa.UID == before.UID || sa.UID == types.UID("") {
			return fmt.Errorf("it is the old one")
		}
		_, err = s.client.CoreV1().ConfigMaps(s.ns).Get(t.Context(), "kube-root-ca.crt", metav1.GetOptions{})
		return err
	})
}
