package apiserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"barque.dev/internal/pki"
	"barque.dev/internal/store/etcd/etcdtest"
)

const shipDefinition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ships.fleet.example.com}
spec:
  group: fleet.example.com
  scope: Namespaced
  names: {plural: ships, singular: ship, kind: Ship, listKind: ShipList, shortNames: [sh], categories: [vessels]}
  versions:
  - name: v1
    served: true
    storage: true
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.masts, statusReplicasPath: .status.masts, labelSelectorPath: .status.selector}
    selectableFields: [{jsonPath: .spec.rig}]
    additionalPrinterColumns:
    - {name: Masts, type: integer, jsonPath: .spec.masts}
    - {name: Rig, type: string, jsonPath: .spec.rig}
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            description: What the ship is built like.
            x-kubernetes-validations:
            - {rule: "self.masts >= oldSelf.masts", message: masts are never taken down}
            properties:
              masts: {type: integer, minimum: 1, default: 3, description: How many masts it has.}
              rig: {type: string, default: barque}
              load: {type: object, x-kubernetes-preserve-unknown-fields: true}
              crew:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items: {type: object, required: [name], properties: {name: {type: string}, rank: {type: string}}}
          status:
            type: object
            properties: {masts: {type: integer}, selector: {type: string}}
  - name: v1beta1
    served: true
    storage: false
    deprecated: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

var ships = schema.GroupVersionResource{Group: "fleet.example.com", Version: "v1", Resource: "ships"}

func asAdmin(tb testing.TB, c *cluster) *rest.Config {
	return c.config(tb, pki.UserAdmin, pki.GroupMasters)
}

// establish creates a definition and accepts its names, as the leader's controller does.
func establish(t *testing.T, c *cluster, manifest string) *apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict([]byte(manifest), crd); err != nil {
		t.Fatal(err)
	}
	definitions := apiextensions.NewForConfigOrDie(asAdmin(t, c)).CustomResourceDefinitions()
	crd, err := definitions.Create(t.Context(), crd, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	crd.Status.AcceptedNames = crd.Spec.Names
	crd.Status.Conditions = []apiextensionsv1.CustomResourceDefinitionCondition{
		{Type: apiextensionsv1.NamesAccepted, Status: apiextensionsv1.ConditionTrue},
		{Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionTrue},
	}
	if crd, err = definitions.UpdateStatus(t.Context(), crd, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	return crd
}

func ship(name string, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "fleet.example.com/v1", "kind": "Ship",
		"metadata": map[string]any{"name": name}, "spec": spec,
	}}
}

func TestCustomResources(t *testing.T) {
	c := start(t, nil)
	ctx := t.Context()
	establish(t, c, shipDefinition)
	fleet := dynamic.NewForConfigOrDie(asAdmin(t, c)).Resource(ships).Namespace("default")
	// No waiting: the status was written through this server.
	made, err := fleet.Create(ctx, ship("pamir", map[string]any{"load": map[string]any{"x": "y"}, "unknown": "z"}), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"masts": int64(3), "rig": "barque", "load": map[string]any{"x": "y"}}
	if got := made.Object["spec"]; fmt.Sprint(got) != fmt.Sprint(want) || made.GetGeneration() != 1 {
		t.Errorf("created %v, generation %d", got, made.GetGeneration())
	}
	_, err = fleet.Create(ctx, ship("strict", map[string]any{"unknown": "z"}), metav1.CreateOptions{FieldValidation: "Strict"})
	if err == nil || !strings.Contains(err.Error(), `strict decoding error: unknown field "spec.unknown"`) {
		t.Errorf("strict: %v", err)
	}
	_, err = fleet.Patch(ctx, "pamir", types.MergePatchType, []byte(`{"spec":{"masts":2}}`), metav1.PatchOptions{})
	if err == nil || !strings.Contains(err.Error(), "masts are never taken down") {
		t.Errorf("the transition rule: %v", err)
	}
	_, err = fleet.Patch(ctx, "pamir", types.MergePatchType, []byte(`{"spec":{"masts":0}}`), metav1.PatchOptions{})
	if err == nil || !strings.Contains(err.Error(), "should be greater than or equal to 1") {
		t.Errorf("the schema: %v", err)
	}
	patched, err := fleet.Patch(ctx, "pamir", types.JSONPatchType, []byte(`[{"op":"replace","path":"/spec/masts","value":4}]`), metav1.PatchOptions{})
	if err != nil || patched.GetGeneration() != 2 {
		t.Fatalf("patched %v, %v", patched, err)
	}
	status, err := fleet.Patch(ctx, "pamir", types.MergePatchType, []byte(`{"status":{"masts":4,"selector":"a=b"},"spec":{"masts":9}}`), metav1.PatchOptions{}, "status")
	if err != nil || status.GetGeneration() != 2 {
		t.Fatalf("status %v, %v", status, err)
	}
	if masts, _, _ := unstructured.NestedInt64(status.Object, "spec", "masts"); masts != 4 {
		t.Errorf("the status changed the spec: %d masts", masts)
	}
	crewed := ship("pamir", map[string]any{"crew": []any{map[string]any{"name": "a", "rank": "mate"}}, "masts": int64(4)})
	if _, err := fleet.Apply(ctx, "pamir", crewed, metav1.ApplyOptions{FieldManager: "one", Force: true}); err != nil {
		t.Fatal(err) // numbers that are applied stay integers
	}
	applied, err := fleet.Apply(ctx, "pamir", ship("pamir", map[string]any{"crew": []any{map[string]any{"name": "b"}}}), metav1.ApplyOptions{FieldManager: "two"})
	if crew, _, _ := unstructured.NestedSlice(applied.Object, "spec", "crew"); err != nil || len(crew) != 2 {
		t.Errorf("crew %v, %v", crew, err)
	}
	_, err = fleet.Apply(ctx, "pamir", ship("pamir", map[string]any{"crew": []any{map[string]any{"name": "a", "rank": "cook"}}}), metav1.ApplyOptions{FieldManager: "two"})
	if err == nil || !strings.Contains(err.Error(), `conflict with "one"`) {
		t.Errorf("a conflict: %v", err)
	}
	for selector, count := range map[string]int{"spec.rig=barque": 1, "spec.rig=ship": 0, "metadata.name=pamir": 1} {
		list, err := fleet.List(ctx, metav1.ListOptions{FieldSelector: selector})
		if err != nil || len(list.Items) != count || list.GetKind() != "ShipList" {
			t.Errorf("%s: %v, %v", selector, list, err)
		}
	}
	if code, text := body(t, c, "/apis/fleet.example.com/v1/namespaces/default/ships", "application/json"); code != 200 ||
		!strings.Contains(text, `"items":[{"apiVersion":"fleet.example.com/v1","kind":"Ship","metadata":{`) || !strings.Contains(text, `"metadata":{"continue":"","resourceVersion":"`) {
		t.Errorf("a list whose items say what they are: %d %s", code, text)
	}
	if code, text := body(t, c, "/apis/fleet.example.com/v1/namespaces/default/ships/pamir/nothing", "application/json"); code != 404 || !strings.Contains(text, `ships.fleet.example.com \"pamir\" not found`) {
		t.Errorf("an unknown subresource: %d %s", code, text)
	}
	if code, text := body(t, c, "/apis/fleet.example.com/v1/nothing", "application/json"); code != 404 || text != "404 page not found\n" {
		t.Errorf("an unknown resource of the group: %d %s", code, text)
	}
	scale, err := fleet.Get(ctx, "pamir", metav1.GetOptions{}, "scale")
	if err != nil || scale.GetKind() != "Scale" {
		t.Fatalf("scale: %v, %v", scale, err)
	}
	if _, err = fleet.Patch(ctx, "pamir", types.MergePatchType, []byte(`{"spec":{"replicas":5}}`), metav1.PatchOptions{}, "scale"); err != nil {
		t.Fatal(err)
	}
	got, err := fleet.Get(ctx, "pamir", metav1.GetOptions{})
	if masts, _, _ := unstructured.NestedInt64(got.Object, "spec", "masts"); err != nil || masts != 5 {
		t.Errorf("scaled to %d, %v", masts, err)
	}
	unversioned := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "autoscaling/v1", "kind": "Scale",
		"metadata": map[string]any{"name": "pamir", "namespace": "default"}, "spec": map[string]any{"replicas": int64(6)}}}
	if _, err := fleet.Update(ctx, unversioned, metav1.UpdateOptions{}, "scale"); err != nil {
		t.Errorf("a scale that says no version: %v", err)
	}
	beta := ships
	beta.Version = "v1beta1"
	old, err := dynamic.NewForConfigOrDie(asAdmin(t, c)).Resource(beta).Namespace("default").Get(ctx, "pamir", metav1.GetOptions{})
	if err != nil || old.GetAPIVersion() != "fleet.example.com/v1beta1" {
		t.Errorf("in another version: %v, %v", old, err)
	}
	if err := fleet.Delete(ctx, "pamir", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}
}

// TestDeleteByOptionsOfAnyGroup: typed clients send DeleteOptions in the version of the kind that they delete, also when
// it is of a custom resource, which no scheme of the server's knows.
func TestDeleteByOptionsOfAnyGroup(t *testing.T) {
	c := start(t, nil)
	establish(t, c, shipDefinition)
	fleet := dynamic.NewForConfigOrDie(asAdmin(t, c)).Resource(ships).Namespace("default")
	for _, version := range []string{"v1", "meta.k8s.io/v1", "apps/v1", "fleet.example.com/v1", "nobody.example.com/v7"} {
		if _, err := fleet.Create(t.Context(), ship("pamir", map[string]any{}), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		options := func(uid string) io.Reader {
			return strings.NewReader(fmt.Sprintf(`{"kind":"DeleteOptions","apiVersion":%q,"preconditions":{"uid":%q}}`, version, uid))
		}
		ours, err := fleet.Get(t.Context(), "pamir", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		const path = "/apis/fleet.example.com/v1/namespaces/default/ships/pamir"
		if a := do(t, c.admin(t), http.MethodDelete, c.url+path, options("another"), "Content-Type", "application/json"); a.code != http.StatusConflict {
			t.Errorf("%s: what is another one's was answered %d %s", version, a.code, a.body)
		}
		if a := do(t, c.admin(t), http.MethodDelete, c.url+path, options(string(ours.GetUID())), "Content-Type", "application/json"); a.code != http.StatusOK {
			t.Fatalf("%s: %d %s", version, a.code, a.body)
		}
	}
	a := do(t, c.admin(t), http.MethodDelete, c.url+"/apis/fleet.example.com/v1/namespaces/default/ships/pamir",
		strings.NewReader(`{"kind":"ConfigMap","apiVersion":"v1"}`), "Content-Type", "application/json")
	if a.code != http.StatusBadRequest {
		t.Errorf("a ConfigMap instead of options: %d %s", a.code, a.body)
	}
}

// body reads a path as text.
func body(t *testing.T, c *cluster, path, accept string) (int, string) {
	t.Helper()
	a := do(t, c.admin(t), http.MethodGet, c.url+path, nil, "Accept", accept)
	return a.code, a.body
}

// TestDefinitionsAreDescribedAtOnce: discovery and OpenAPI say what is served when it is, and no longer when it is not,
// on a server that another one's clients have never talked to.
func TestDefinitionsAreDescribedAtOnce(t *testing.T) {
	etcds := etcdtest.New(t, 2, nil)
	one, two := startOn(t, etcds.Member(0), nil), startOn(t, etcds.Member(1), nil)
	if code, _ := body(t, two, "/apis/fleet.example.com/v1", "application/json"); code != http.StatusNotFound {
		t.Fatalf("before there is a definition: %d", code)
	}
	crd := establish(t, one, shipDefinition)
	code, list := body(t, two, "/apis/fleet.example.com/v1", "application/json")
	if code != http.StatusOK || !strings.Contains(list, `"name":"ships/scale"`) || !strings.Contains(list, `"shortNames":["sh"]`) {
		t.Errorf("version: %d %s", code, list)
	}
	if _, groups := body(t, two, "/apis", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"); !strings.Contains(groups, `"resource":"ships"`) {
		t.Error("the aggregated document does not have it")
	}
	_, v2 := body(t, two, "/openapi/v2", "application/json")
	var doc struct {
		Paths       map[string]any `json:"paths"`
		Definitions map[string]any `json:"definitions"`
	}
	if err := json.Unmarshal([]byte(v2), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Definitions["com.example.fleet.v1.Ship"] == nil || doc.Definitions["io.k8s.api.core.v1.Pod"] == nil || doc.Paths["/apis/fleet.example.com/v1/ships"] == nil {
		t.Errorf("version 2 has %d schemas, but not all", len(doc.Definitions))
	}
	if _, index := body(t, two, "/openapi/v3", "application/json"); !strings.Contains(index, `"apis/fleet.example.com/v1":{`) {
		t.Error("the index of version 3 does not have it")
	}
	if _, v3 := body(t, two, "/openapi/v3/apis/fleet.example.com/v1", "application/json"); !strings.Contains(v3, "How many masts it has.") {
		t.Errorf("version 3: %.300s", v3)
	}
	definitions := apiextensions.NewForConfigOrDie(asAdmin(t, one)).CustomResourceDefinitions()
	if err := definitions.Delete(t.Context(), crd.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if crd, err := definitions.Get(t.Context(), crd.Name, metav1.GetOptions{}); err != nil || crd.DeletionTimestamp == nil || len(crd.Finalizers) != 1 {
		t.Fatalf("a definition that is deleted: %+v, %v", crd, err)
	}
	fleet := dynamic.NewForConfigOrDie(asAdmin(t, two)).Resource(ships).Namespace("default")
	deadline, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		if _, err := fleet.Create(deadline, ship("late", map[string]any{}), metav1.CreateOptions{DryRun: []string{"All"}}); err != nil {
			if !strings.Contains(err.Error(), "does not allow this method") {
				t.Errorf("a creation while the definition goes: %v", err)
			}
			break
		}
	}
	if _, err := definitions.Patch(t.Context(), crd.Name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/apis/fleet.example.com", "/apis/fleet.example.com/v1", "/apis/fleet.example.com/v1/ships"} {
		if code, text := body(t, one, path, "application/json"); code != http.StatusNotFound {
			t.Errorf("%s afterwards: %d %s", path, code, text)
		}
	}
	if _, v2 := body(t, one, "/openapi/v2", "application/json"); strings.Contains(v2, "com.example.fleet") {
		t.Error("version 2 still has it")
	}
}

// TestListKindOfAnother: a definition that comes to want a name that another holds is described by the names that it has.
func TestListKindOfAnother(t *testing.T) {
	c := start(t, nil)
	establish(t, c, shipDefinition)
	boats := strings.NewReplacer("ships", "boats", "ship", "boat", "Ship", "Boat").Replace(shipDefinition)
	crd := establish(t, c, strings.ReplaceAll(boats, "shortNames: [sh], ", ""))
	crd.Spec.Names.ListKind = "ShipList"
	definitions := apiextensions.NewForConfigOrDie(asAdmin(t, c)).CustomResourceDefinitions()
	if _, err := definitions.Update(t.Context(), crd, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if code, index := body(t, c, "/openapi/v3", "application/json"); code != http.StatusOK || !strings.Contains(index, `"apis/fleet.example.com/v1":{`) {
		t.Errorf("index: %d %.300s", code, index)
	}
	for _, path := range []string{"/openapi/v3/apis/fleet.example.com/v1", "/openapi/v2"} {
		code, doc := body(t, c, path, "application/json")
		for _, kind := range []string{"Ship", "ShipList", "Boat", "BoatList"} {
			if code != http.StatusOK || !strings.Contains(doc, `"com.example.fleet.v1.`+kind+`":`) {
				t.Errorf("%s: %d, without %s", path, code, kind)
			}
		}
	}
}
