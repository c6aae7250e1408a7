package policystatus

import (
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/kube-openapi/pkg/validation/spec"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/controllertest"
)

// schemas knows one kind, with a number of replicas.
type schemas struct{}

func (schemas) ResolveSchema(gvk schema.GroupVersionKind) (*spec.Schema, error) {
	if gvk.Kind != "Deployment" {
		return nil, resolver.ErrSchemaNotFound
	}
	object := func(properties map[string]spec.Schema) spec.Schema {
		return spec.Schema{SchemaProps: spec.SchemaProps{Type: []string{"object"}, Properties: properties}}
	}
	s := object(map[string]spec.Schema{"spec": object(map[string]spec.Schema{"replicas": *spec.Int32Property()})})
	return &s, nil
}

// served is a client of a server that serves deployments.
type served struct{ barqueclient.Client }

func (served) RESTMapper() meta.RESTMapper {
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(schema.GroupVersionKind{Group: "apps", Version: "v1", Kind: "Deployment"}, meta.RESTScopeNamespace)
	return mapper
}

func TestChecksTypes(t *testing.T) {
	policy := &admissionv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Generation: 1},
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{
				RuleWithOperations: admissionv1.RuleWithOperations{Rule: admissionv1.Rule{
					APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}}}}}},
			Validations: []admissionv1.Validation{{Expression: "object.spec.replicas > 1"}, {Expression: "object.spec.replicas > '1'"}},
		},
	}
	w := controllertest.New(t, policy)
	deps := w.Deps()
	deps.Client = served{deps.Client}
	c := New(deps, schemas{})
	w.Reconcile(c, policy)
	got := controllertest.Reload(w, policy)
	if got.Status.ObservedGeneration != 1 || got.Status.TypeChecking == nil || len(got.Status.TypeChecking.ExpressionWarnings) != 1 {
		t.Fatalf("the status is %+v", got.Status)
	}
	warning := got.Status.TypeChecking.ExpressionWarnings[0]
	if warning.FieldRef != "spec.validations[1].expression" || !strings.Contains(warning.Warning, "found no matching overload for '_>_'") {
		t.Errorf("warned of %+v", warning)
	}

	// What was seen is not looked at again, and what is mended is told.
	controllertest.Change(w, policy, func(p *admissionv1.ValidatingAdmissionPolicy) {
		p.Generation, p.Spec.Validations = 2, p.Spec.Validations[:1]
	})
	w.Reconcile(c, policy)
	got = controllertest.Reload(w, policy)
	if got.Status.ObservedGeneration != 2 || len(got.Status.TypeChecking.ExpressionWarnings) != 0 {
		t.Errorf("the mended policy's status is %+v", got.Status)
	}
}
