package policy_test

import (
	"fmt"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/conversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"barque.dev/internal/apiserver/custom"
)

const shipDefinition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ships.fleet.example.com, uid: u}
spec:
  group: fleet.example.com
  scope: Namespaced
  names: &names {plural: ships, singular: ship, kind: Ship, listKind: ShipList}
  conversion: {strategy: None}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              masts: {type: integer}
              crew:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items: {type: object, required: [name], properties: {name: {type: string}, rank: {type: string}}}
status:
  acceptedNames: *names
`

// Custom resources are changed by policies as their schemas say, and can be parameters as soon as they are served.
func TestCustomResources(t *testing.T) {
	c := start(t)
	c.mutate("cook", admissionv1.MutatingAdmissionPolicySpec{Mutations: []admissionv1.Mutation{{
		PatchType: admissionv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionv1.ApplyConfiguration{
			Expression: `Object{spec: Object.spec{crew: [Object.spec.crew{name: "cook", rank: "third"}]}}`}}}}, nil)
	// The policies of these tests are about config maps; this one is about ships.
	rules := `{"spec":{"matchConstraints":{"resourceRules":[{"operations":["CREATE"],"apiGroups":["fleet.example.com"],"apiVersions":["v1"],"resources":["ships"]}]}}}`
	if _, _, err := c.Patch(t.Context(), c.Request("mutatingadmissionpolicies"+group, "", "cook"), types.MergePatchType, []byte(rules), nil); err != nil {
		t.Fatal(err)
	}
	c.validate("masts", admissionv1.ValidatingAdmissionPolicySpec{
		ParamKind:   &admissionv1.ParamKind{APIVersion: "fleet.example.com/v1", Kind: "Ship"},
		Validations: expressions(admissionv1.Validation{Expression: "int(object.data.masts) <= params.spec.masts", MessageExpression: "params.metadata.name + ' has fewer'"}),
	}, func(b *admissionv1.ValidatingAdmissionPolicyBindingSpec) {
		deny := admissionv1.DenyAction
		b.ParamRef = &admissionv1.ParamRef{Name: "pamir", ParameterNotFoundAction: &deny}
	})
	if _, err := c.create(t.Context(), "x", map[string]string{"masts": "3"}); err == nil || !strings.Contains(err.Error(), "failed to find resource referenced by paramKind") {
		t.Errorf("before ships are served: %v", err)
	}

	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.Unmarshal([]byte(shipDefinition), crd); err != nil {
		t.Fatal(err)
	}
	converters, err := conversion.NewCRConverterFactory(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	resource, err := custom.New(crd, converters)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Register(resource); err != nil {
		t.Fatal(err)
	}
	ship := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "fleet.example.com/v1", "kind": "Ship",
		"metadata": map[string]any{"name": "pamir", "namespace": "default"},
		"spec":     map[string]any{"masts": int64(4), "crew": []any{map[string]any{"name": "master"}, map[string]any{"name": "cook", "rank": "first"}}}}}
	kept, ok := c.Must(c.Create(t.Context(), c.Request("ships.fleet.example.com", "default", ""), ship, &metav1.CreateOptions{})).(*unstructured.Unstructured)
	if !ok {
		t.Fatal("a ship is of a Go type")
	}
	crew, _, _ := unstructured.NestedSlice(kept.Object, "spec", "crew")
	if got, want := fmt.Sprint(crew), "[map[name:master] map[name:cook rank:third]]"; got != want {
		t.Errorf("the crew is %s, want %s", got, want)
	}
	if _, err := c.create(t.Context(), "x", map[string]string{"masts": "3"}); err != nil {
		t.Error(err)
	}
	if _, err := c.create(t.Context(), "y", map[string]string{"masts": "5"}); err == nil || !strings.Contains(err.Error(), "pamir has fewer") {
		t.Errorf("got %v", err)
	}
}
