package integration

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"barque.dev/internal/local"
)

const shipDefinition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ships.GROUP}
spec:
  group: GROUP
  scope: Namespaced
  names: {plural: ships, singular: ship, kind: Ship, shortNames: [sh]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.masts, statusReplicasPath: .status.masts}}
    additionalPrinterColumns: [{name: Masts, type: integer, jsonPath: .spec.masts}]
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties: {masts: {type: integer, default: 3, description: How many masts it has., maximum: 7}}
          status: {type: object, properties: {masts: {type: integer}}}
`

// A definition that one server has established is served by every other at once, kubectl knows all about it, and its custom
// resources take part in garbage collection and go with the definition.
func TestCustomResources(t *testing.T) {
	t.Parallel()
	k := newCLI(t)
	group := k.ns + ".example.com"
	crd := "customresourcedefinition.apiextensions.k8s.io/ships." + group
	k.runWith(strings.ReplaceAll(shipDefinition, "GROUP", group), "apply", "-f", "-")
	k.run("wait", "--for=condition=Established", crd)
	gvr := schema.GroupVersionResource{Group: group, Version: "v1", Resource: "ships"}
	shipsAt := func(m *local.Machine) dynamic.ResourceInterface {
		config, err := shared.MachineConfig(m)
		if err != nil {
			t.Fatal(err)
		}
		return dynamic.NewForConfigOrDie(config).Resource(gvr).Namespace(k.ns)
	}
	for _, m := range shared.Machines {
		obj := &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": group + "/v1", "kind": "Ship", "metadata": map[string]any{"name": "by-" + m.Name}}}
		if _, err := shipsAt(m).Create(t.Context(), obj, metav1.CreateOptions{}); err != nil {
			t.Errorf("by %s: %v", m.Name, err)
		}
	}
	mine := fmt.Sprintf("apiVersion: %s/v1\nkind: Ship\nmetadata: {name: pamir}\nspec: {masts: 4}\n", group)
	if out := k.runWith(mine, "apply", "-f", "-"); !strings.Contains(out, "/pamir created") {
		t.Errorf("apply: %s", out)
	}
	k.runWith(mine, "apply", "--server-side", "--force-conflicts", "-f", "-")
	k.expect(`(?s)NAME +MASTS\n.*pamir +4\n`, "get", "sh")
	k.expect(`How many masts it has.`, "explain", "ships.spec", "--api-version="+group+"/v1")
	k.run("scale", "--replicas=5", "ships."+group+"/pamir")
	k.expect(`^5$`, "get", "ships."+group, "pamir", "-o", "jsonpath={.spec.masts}")
	k.refuseWith(strings.Replace(mine, "masts: 4", "masts: 8", 1), 1, `(?s)should be less than or equal to 7`, "apply", "-f", "-")
	k.refuseWith(strings.Replace(mine, "masts: 4", "sails: 8", 1), 1, `(?s)unknown field .*spec.sails`, "apply", "-f", "-")

	owner, err := shipsAt(shared.Machines[0]).Get(t.Context(), "pamir", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	maps := shared.client(t).CoreV1().ConfigMaps(k.ns)
	cargo := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "cargo", OwnerReferences: []metav1.OwnerReference{
		{APIVersion: group + "/v1", Kind: "Ship", Name: "pamir", UID: owner.GetUID()}}}}
	if _, err := maps.Create(t.Context(), cargo, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	k.run("delete", "ships."+group, "pamir")
	eventually(t, patience, "what a custom resource owns is collected", func() error {
		_, err := maps.Get(t.Context(), "cargo", metav1.GetOptions{})
		if err == nil {
			return fmt.Errorf("it is there")
		}
		return ignoreNotFound(err)
	})
	k.run("delete", crd)
	k.refuse(1, `(?s)the server doesn't have a resource type|could not find the requested resource|NotFound`, "get", "ships."+group)
}
