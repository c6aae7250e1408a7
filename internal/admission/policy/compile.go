package policy

import (
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	"k8s.io/apiserver/pkg/cel/environment"
)

// compiler compiles the expressions of one policy, which may use the policy's variables. An expression
// that does not compile says so when it is evaluated.
type compiler struct {
	*cel.CompositedCompiler
	name      string
	failure   *admissionv1.FailurePolicyType
	variables cel.OptionalVariableDeclarations
}

func newCompiler(name string, failure *admissionv1.FailurePolicyType, param *admissionv1.ParamKind, variables []admissionv1.Variable) (compiler, error) {
	composited, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()))
	if err != nil {
		return compiler{}, err
	}
	c := compiler{CompositedCompiler: composited, name: name, failure: failure,
		variables: cel.OptionalVariableDeclarations{HasParams: param != nil, HasAuthorizer: true}}
	named := make([]cel.NamedExpressionAccessor, len(variables))
	for i, v := range variables {
		named[i] = &validating.Variable{Name: v.Name, Expression: v.Expression}
	}
	c.CompileAndStoreVariables(named, c.variables, environment.StoredExpressions)
	return c, nil
}

func (c compiler) conditions(expressions []cel.ExpressionAccessor, variables cel.OptionalVariableDeclarations) cel.ConditionEvaluator {
	return c.CompileCondition(expressions, variables, environment.StoredExpressions)
}

// matcher decides whether a policy is meant; nil if it always is.
func (c compiler) matcher(conditions []admissionv1.MatchCondition, operation string) matchconditions.Matcher {
	if len(conditions) == 0 {
		return nil
	}
	expressions := make([]cel.ExpressionAccessor, len(conditions))
	for i := range conditions {
		expressions[i] = (*matchconditions.MatchCondition)(&conditions[i])
	}
	return matchconditions.NewMatcher(c.conditions(expressions, c.variables), c.failure, "policy", operation, c.name)
}

func compileValidating(policy *admissionv1.ValidatingAdmissionPolicy) validating.Validator {
	spec := &policy.Spec
	c, err := newCompiler(policy.Name, spec.FailurePolicy, spec.ParamKind, spec.Variables)
	if err != nil {
		return validating.NewValidator(nil, nil, nil, nil, spec.FailurePolicy, err)
	}
	rules := make([]cel.ExpressionAccessor, len(spec.Validations))
	messages := make([]cel.ExpressionAccessor, len(spec.Validations))
	for i, v := range spec.Validations {
		rules[i] = &validating.ValidationCondition{Expression: v.Expression, Message: v.Message, Reason: v.Reason}
		if v.MessageExpression != "" {
			messages[i] = &validating.MessageExpressionCondition{MessageExpression: v.MessageExpression}
		}
	}
	annotations := make([]cel.ExpressionAccessor, len(spec.AuditAnnotations))
	for i, a := range spec.AuditAnnotations {
		annotations[i] = &validating.AuditAnnotationCondition{Key: a.Key, ValueExpression: a.ValueExpression}
	}
	inMessages := c.variables
	inMessages.HasAuthorizer = false // a message must not tell who may do what
	return validating.NewValidator(c.conditions(rules, c.variables), c.matcher(spec.MatchConditions, "validate"),
		c.conditions(annotations, c.variables), c.conditions(messages, inMessages), spec.FailurePolicy, nil)
}

func compileMutating(policy *admissionv1.MutatingAdmissionPolicy) mutating.PolicyEvaluator {
	spec := &policy.Spec
	c, err := newCompiler(policy.Name, spec.FailurePolicy, spec.ParamKind, spec.Variables)
	if err != nil {
		return mutating.PolicyEvaluator{Error: err}
	}
	variables := c.variables
	variables.HasPatchTypes = true
	var patchers []patch.Patcher
	for _, m := range spec.Mutations {
		switch {
		case m.PatchType == admissionv1.PatchTypeJSONPatch && m.JSONPatch != nil:
			patchers = append(patchers, patch.NewJSONPatcher(c.CompileMutatingEvaluator(
				&patch.JSONPatchCondition{Expression: m.JSONPatch.Expression}, variables, environment.StoredExpressions)))
		case m.PatchType == admissionv1.PatchTypeApplyConfiguration && m.ApplyConfiguration != nil:
			patchers = append(patchers, patch.NewApplyConfigurationPatcher(c.CompileMutatingEvaluator(
				&patch.ApplyConfigurationCondition{Expression: m.ApplyConfiguration.Expression}, variables, environment.StoredExpressions)))
		}
	}
	return mutating.PolicyEvaluator{Matcher: c.matcher(spec.MatchConditions, "admit"), Mutators: patchers, CompositedCompiler: c.CompositedCompiler}
}
