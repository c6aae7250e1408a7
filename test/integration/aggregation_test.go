package integration

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/cert"

	"barque.dev/internal/local"
)

const buoyService = `
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.GROUP}
spec:
  group: GROUP
  version: v1
  groupPriorityMinimum: 1500
  versionPriority: 15
  caBundle: BUNDLE
  service: {namespace: NAMESPACE, name: buoys, port: 443}
`

// An API that is served by a pod is part of the cluster's API on every master, with the user's name and watches, for kubectl
// too; its APIService says whether its server is there; and everything is as before when it is gone.
func TestAggregatedAPI(t *testing.T) {
	s := newScene(t)
	if err := buildTool(); err != nil {
		t.Fatal(err)
	}
	k := cli{t: t, program: []string{kubectl}, ns: s.ns}
	group := s.ns + ".example.com"
	k.expect(`(?s)v1\. +Local +True .*v1\.apps +Local +True`, "get", "apiservices")
	manifest := strings.NewReplacer("GROUP", group, "NAMESPACE", s.ns, "BUNDLE", s.extensionCertificate("buoys")).Replace(buoyService)
	api := "apiservice/v1." + group
	// No namespace goes while a server does not say what it keeps there: a test that fails must not leave one.
	t.Cleanup(func() {
		if out, err := shared.tryKubectl("", "delete", "--ignore-not-found", api); err != nil {
			t.Errorf("delete %s: %v\n%s", api, err, out)
		}
	})
	k.runWith(manifest, "apply", "-f", "-")
	k.run("wait", "--for=condition=Available=false", "--timeout=60s", api)
	k.expect(`MissingEndpoints|EndpointsNotFound`, "get", api)
	k.refuse(1, `(?s)(currently unable to handle the request|ServiceUnavailable|no endpoints available)`, "get", "--raw", "/apis/"+group+"/v1/namespaces/"+s.ns+"/buoys")

	s.extensionPod("buoys", group)
	k.run("wait", "--for=condition=Available", "--timeout=60s", api)
	gvr := schema.GroupVersionResource{Group: group, Version: "v1", Resource: "buoys"}
	at := func(m *local.Machine) dynamic.ResourceInterface {
		config, err := shared.MachineConfig(m)
		if err != nil {
			t.Fatal(err)
		}
		return dynamic.NewForConfigOrDie(config).Resource(gvr).Namespace(s.ns)
	}
	events, err := at(shared.Machines[0]).Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer events.Stop()
	for _, m := range shared.Machines {
		eventually(s, patience, "a buoy by "+m.Name, func() error {
			buoy := &unstructured.Unstructured{Object: map[string]any{"apiVersion": group + "/v1", "kind": "Buoy", "metadata": map[string]any{"name": "by-" + m.Name}}}
			made, err := at(m).Create(t.Context(), buoy, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			by, _, _ := unstructured.NestedString(made.Object, "status", "by")
			groups, _, _ := unstructured.NestedStringSlice(made.Object, "status", "groups")
			if by != "kubernetes-admin" || strings.Join(groups, ",") != "system:masters,system:authenticated" {
				t.Errorf("%s says that %s of %s asks", m.Name, by, groups)
			}
			return nil
		})
	}
	for range shared.Machines {
		e, ok := <-events.ResultChan()
		if !ok || e.Type != watch.Added {
			t.Fatalf("the watch brings %v, %v", e, ok)
		}
	}
	k.expect(`(?s)by-`+shared.Machines[0].Name+`.*by-`+shared.Machines[2].Name, "get", "by", "--sort-by=.metadata.name")
	k.expect(`(?s)buoys +by +`+group+`/v1 +true +Buoy`, "api-resources", "--api-group="+group)

	s.emptiedWithItsNamespace(gvr)

	k.run("delete", "pod", "buoys", "--now")
	k.run("wait", "--for=condition=Available=false", "--timeout=60s", api)
	k.run("delete", api)
	for _, m := range shared.Machines {
		if _, err := at(m).List(t.Context(), metav1.ListOptions{}); ignoreNotFound(err) != nil || err == nil {
			t.Errorf("by %s afterwards: %v", m.Name, err)
		}
	}
}

// emptiedWithItsNamespace checks that what an aggregated API server keeps in a namespace goes with it.
func (s *scene) emptiedWithItsNamespace(gvr schema.GroupVersionResource) {
	s.Helper()
	config, err := shared.MachineConfig(shared.Machines[0])
	if err != nil {
		s.Fatal(err)
	}
	ns := s.ns + "-2"
	if _, err := s.client.CoreV1().Namespaces().Create(s.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}}, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	buoys := dynamic.NewForConfigOrDie(config).Resource(gvr).Namespace(ns)
	buoy := &unstructured.Unstructured{Object: map[string]any{"apiVersion": gvr.GroupVersion().String(), "kind": "Buoy", "metadata": map[string]any{"name": "adrift"}}}
	if _, err := buoys.Create(s.Context(), buoy, metav1.CreateOptions{}); err != nil {
		s.Fatal(err)
	}
	if err := s.client.CoreV1().Namespaces().Delete(s.Context(), ns, metav1.DeleteOptions{}); err != nil {
		s.Fatal(err)
	}
	eventually(s, patience, "the namespace goes", func() error {
		_, err := s.client.CoreV1().Namespaces().Get(s.Context(), ns, metav1.GetOptions{})
		if err == nil {
			return fmt.Errorf("it is there")
		}
		return ignoreNotFound(err)
	})
	if list, err := buoys.List(s.Context(), metav1.ListOptions{}); err != nil || len(list.Items) != 0 {
		s.Errorf("buoys of a namespace that is gone: %v, %v", list, err)
	}
}

// extensionCertificate makes the service of an aggregated API server, and what it needs to know: a certificate of its own, whose
// authority is returned in base64, and the front proxy's authority, from where such servers get it.
func (s *scene) extensionCertificate(name string) (bundle string) {
	s.Helper()
	certificate, key, err := cert.GenerateSelfSignedCertKey(name+"."+s.ns+".svc", nil, nil)
	if err != nil {
		s.Fatal(err)
	}
	trust, err := s.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(s.Context(), "extension-apiserver-authentication", metav1.GetOptions{})
	if err != nil {
		s.Fatal(err)
	}
	_, err = s.client.CoreV1().Secrets(s.ns).Create(s.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string][]byte{
		"tls.crt": certificate, "tls.key": key, "proxy-ca.crt": []byte(trust.Data["requestheader-client-ca-file"])}}, metav1.CreateOptions{})
	if err != nil {
		s.Fatal(err)
	}
	_, err = s.client.CoreV1().Services(s.ns).Create(s.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": name}, Ports: []corev1.ServicePort{{Port: 443, TargetPort: intstr.FromInt32(8443)}}}}, metav1.CreateOptions{})
	if err != nil {
		s.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(certificate)
}

// extensionPod runs the tool as an aggregated API server.
func (s *scene) extensionPod(name, group string) {
	s.Helper()
	s.pod(name, `
volumes: [{name: tls, secret: {secretName: `+name+`}}]
containers:
- name: c
  image: `+toolImage+`
  args: [extension, ":8443", /tls, `+group+`]
  volumeMounts: [{name: tls, mountPath: /tls}]
  readinessProbe: {tcpSocket: {port: 8443}, periodSeconds: 1}
`, func(p *corev1.Pod) { p.Labels = map[string]string{"app": name} })
	s.until(name, "is ready", podReady)
}
