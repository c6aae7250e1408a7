package policy_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/warning"
	"k8s.io/utils/ptr"

	"barque.dev/internal/admission"
	"barque.dev/internal/admission/policy"
	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/registry/registrytest"
	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd/etcdtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// klog's flusher starts with the process.
		goleak.IgnoreAnyFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// cluster is a registry under policies. It is the image that they look at, once it is made.
type cluster struct {
	*registrytest.Server
	t *testing.T
}

type late struct{ c *cluster }

func (l late) Table(gr schema.GroupResource) *store.Table {
	if l.c.Server == nil {
		return nil
	}
	return l.c.Server.Table(gr)
}

func (l late) Find(ctx context.Context, gr schema.GroupResource, namespace, name string) (runtime.Object, error) {
	return l.c.Server.Find(ctx, gr, namespace, name)
}

func (l late) ForKind(gk schema.GroupKind) (*api.Resource, *store.Table, bool) {
	return l.c.Server.ForKind(gk)
}

func (l late) TypeConverter(gvk schema.GroupVersionKind) managedfields.TypeConverter {
	return l.c.Server.TypeConverter(gvk)
}

// onlyAlice lets one user do everything.
type onlyAlice struct{}

func (onlyAlice) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if a.GetUser().GetName() == "alice" {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

func start(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t}
	mutations, validations := policy.New(policy.Config{Image: late{c}, Authorizer: onlyAlice{}})
	c.Server = registrytest.New(t, etcdtest.New(t, 1, nil).Member(0), func(cfg *registry.Config) {
		cfg.Admission = admission.Reinvoking{Chain: admission.Chain{
			{Name: policy.MutatingName, Interface: mutations}, {Name: policy.ValidatingName, Interface: validations}}}
	})
	return c
}

// keep creates an object, with the defaults that a decoder would have given it.
func (c *cluster) keep(resource, namespace string, obj runtime.Object) {
	c.t.Helper()
	req := c.Request(resource, namespace, "")
	req.Resource.Codec().Default(obj)
	c.Must(c.Create(c.t.Context(), req, obj, &metav1.CreateOptions{}))
}

func (c *cluster) forget(resource, namespace, name string) {
	c.t.Helper()
	if _, _, err := c.Delete(c.t.Context(), c.Request(resource, namespace, name), nil); err != nil {
		c.t.Fatal(err)
	}
}

const group = ".admissionregistration.k8s.io"

// configMaps selects creations of config maps.
func configMaps() *admissionv1.MatchResources {
	return &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
		Operations: []admissionv1.OperationType{admissionv1.Create, admissionv1.Update},
		Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}}}}}}
}

// validate binds a validating policy.
func (c *cluster) validate(name string, spec admissionv1.ValidatingAdmissionPolicySpec, tune func(*admissionv1.ValidatingAdmissionPolicyBindingSpec)) {
	c.t.Helper()
	spec.MatchConstraints = configMaps()
	c.keep("validatingadmissionpolicies"+group, "", &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec})
	binding := admissionv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny}}
	if tune != nil {
		tune(&binding)
	}
	c.keep("validatingadmissionpolicybindings"+group, "", &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: binding})
}

// mutate binds a mutating policy.
func (c *cluster) mutate(name string, spec admissionv1.MutatingAdmissionPolicySpec, tune func(*admissionv1.MutatingAdmissionPolicyBindingSpec)) {
	c.t.Helper()
	spec.MatchConstraints = configMaps()
	if spec.ReinvocationPolicy == "" {
		spec.ReinvocationPolicy = admissionv1.NeverReinvocationPolicy
	}
	c.keep("mutatingadmissionpolicies"+group, "", &admissionv1.MutatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec})
	binding := admissionv1.MutatingAdmissionPolicyBindingSpec{PolicyName: name}
	if tune != nil {
		tune(&binding)
	}
	c.keep("mutatingadmissionpolicybindings"+group, "", &admissionv1.MutatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: binding})
}

// create tries to create a config map.
func (c *cluster) create(ctx context.Context, name string, data map[string]string) (*corev1.ConfigMap, error) {
	c.t.Helper()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Data: data}
	result, err := c.Create(ctx, c.Request("configmaps", "default", ""), cm, &metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	return c.Must(result, nil).(*corev1.ConfigMap), nil
}

type recorder struct{ got []string }

func (r *recorder) AddWarning(_, text string) { r.got = append(r.got, text) }

func expressions(list ...admissionv1.Validation) []admissionv1.Validation { return list }

func TestValidation(t *testing.T) {
	reason := metav1.StatusReasonRequestEntityTooLarge
	alice := &user.DefaultInfo{Name: "alice"}
	for _, test := range []struct {
		name    string
		user    user.Info
		spec    admissionv1.ValidatingAdmissionPolicySpec
		actions []admissionv1.ValidationAction
		data    map[string]string
		err     string
		code    int32
		warned  string
	}{
		{name: "denied", spec: admissionv1.ValidatingAdmissionPolicySpec{Validations: expressions(admissionv1.Validation{Expression: "object.data.n == '1'"})},
			data: map[string]string{"n": "2"}, code: 422,
			err: `configmaps "x" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'p' denied request: failed expression: object.data.n == '1'`},
		{name: "let in", spec: admissionv1.ValidatingAdmissionPolicySpec{Validations: expressions(admissionv1.Validation{Expression: "object.data.n == '1'"})},
			data: map[string]string{"n": "1"}},
		{name: "message, reason and variables", spec: admissionv1.ValidatingAdmissionPolicySpec{
			Variables: []admissionv1.Variable{{Name: "n", Expression: "int(object.data.n)"}, {Name: "limit", Expression: "5"}},
			Validations: expressions(admissionv1.Validation{Expression: "variables.n < variables.limit", Reason: &reason,
				MessageExpression: "'n is ' + string(variables.n) + ', limit ' + string(variables.limit)"})},
			data: map[string]string{"n": "7"}, code: 413, err: "n is 7, limit 5"},
		{name: "failure", spec: admissionv1.ValidatingAdmissionPolicySpec{Validations: expressions(admissionv1.Validation{Expression: "object.data.missing == '1'"})},
			data: map[string]string{"n": "2"}, code: 422, err: "resulted in error: no such key: missing"},
		{name: "failure ignored", spec: admissionv1.ValidatingAdmissionPolicySpec{FailurePolicy: ptr.To(admissionv1.Ignore),
			Validations: expressions(admissionv1.Validation{Expression: "object.data.missing == '1'"})}, data: map[string]string{"n": "2"}},
		{name: "match condition", spec: admissionv1.ValidatingAdmissionPolicySpec{
			MatchConditions: []admissionv1.MatchCondition{{Name: "c", Expression: "object.data.n == 'other'"}},
			Validations:     expressions(admissionv1.Validation{Expression: "false"})}, data: map[string]string{"n": "2"}},
		{name: "warned", spec: admissionv1.ValidatingAdmissionPolicySpec{Validations: expressions(admissionv1.Validation{Expression: "false", Message: "hm"})},
			actions: []admissionv1.ValidationAction{admissionv1.Warn, admissionv1.Audit},
			warned:  "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'p': hm"},
		{name: "permissions", user: alice, spec: admissionv1.ValidatingAdmissionPolicySpec{
			Validations: expressions(admissionv1.Validation{Expression: "authorizer.group('').resource('pods').check('get').allowed()"})}},
		{name: "permissions that lack", user: &user.DefaultInfo{Name: "bob"}, spec: admissionv1.ValidatingAdmissionPolicySpec{
			Validations: expressions(admissionv1.Validation{Expression: "authorizer.group('').resource('pods').check('get').allowed()", Message: "bob may not"})},
			code: 422, err: "bob may not"},
		{name: "namespace", spec: admissionv1.ValidatingAdmissionPolicySpec{
			Validations: expressions(admissionv1.Validation{Expression: "namespaceObject.metadata.name == 'default' && request.operation == 'CREATE'"})}},
		{name: "annotation that fails", spec: admissionv1.ValidatingAdmissionPolicySpec{
			AuditAnnotations: []admissionv1.AuditAnnotation{{Key: "k", ValueExpression: "string(object.data.missing)"}}},
			data: map[string]string{"n": "2"}, code: 422, err: "no such key: missing"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := start(t)
			c.validate("p", test.spec, func(b *admissionv1.ValidatingAdmissionPolicyBindingSpec) {
				if test.actions != nil {
					b.ValidationActions = test.actions
				}
			})
			warned := &recorder{}
			ctx := warning.WithWarningRecorder(t.Context(), warned)
			if test.user != nil {
				ctx = request.WithUser(ctx, test.user)
			}
			_, err := c.create(ctx, "x", test.data)
			var status *apierrors.StatusError
			if test.err == "" && err != nil || test.err != "" && (!errors.As(err, &status) || !strings.Contains(err.Error(), test.err) || status.ErrStatus.Code != test.code) {
				t.Errorf("got %v (%+v), want %d %q", err, status, test.code, test.err)
			}
			if got := strings.Join(warned.got, "; "); got != test.warned {
				t.Errorf("warned of %q, want %q", got, test.warned)
			}
		})
	}
}

// A change of policies, bindings and parameters is effective with the next request.
func TestParameters(t *testing.T) {
	c := start(t)
	parameter := func(name, limit string) *corev1.ConfigMap {
		return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "kube-system", Labels: map[string]string{"role": "limit"}},
			Data: map[string]string{"limit": limit, "n": "0"}}
	}
	spec := admissionv1.ValidatingAdmissionPolicySpec{
		ParamKind: &admissionv1.ParamKind{APIVersion: "v1", Kind: "ConfigMap"},
		Validations: expressions(admissionv1.Validation{Expression: "int(object.data.n) < int(params.data.limit)",
			MessageExpression: "params.kind + ' ' + params.metadata.name + ' says ' + params.data.limit"}),
	}
	named := &admissionv1.ParamRef{Name: "limits", Namespace: "kube-system", ParameterNotFoundAction: ptr.To(admissionv1.DenyAction)}
	refer := func(ref *admissionv1.ParamRef) func(*admissionv1.ValidatingAdmissionPolicyBindingSpec) {
		return func(b *admissionv1.ValidatingAdmissionPolicyBindingSpec) {
			b.ParamRef = ref
			// The parameters themselves are config maps.
			b.MatchResources = &admissionv1.MatchResources{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "default"}}}
		}
	}
	expect := func(n, want string) {
		t.Helper()
		_, err := c.create(t.Context(), "x", map[string]string{"n": n})
		if want == "" && err == nil {
			c.forget("configmaps", "default", "x")
			return
		}
		if want == "" || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("n is %s: %v, want %q", n, err, want)
		}
	}
	c.validate("p", spec, refer(named))
	expect("3", "no params found for policy binding with `Deny` parameterNotFoundAction")
	c.keep("configmaps", "kube-system", parameter("limits", "5"))
	expect("3", "")
	expect("7", "ConfigMap limits says 5")
	c.forget("configmaps", "kube-system", "limits")
	expect("3", "no params found")

	c.forget("validatingadmissionpolicybindings"+group, "", "p")
	expect("7", "")
	c.forget("validatingadmissionpolicies"+group, "", "p")
	selected := &admissionv1.ParamRef{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"role": "limit"}},
		Namespace: "kube-system", ParameterNotFoundAction: ptr.To(admissionv1.AllowAction)}
	c.validate("p", spec, refer(selected))
	expect("7", "")
	c.keep("configmaps", "kube-system", parameter("wide", "100"))
	c.keep("configmaps", "kube-system", parameter("narrow", "2"))
	expect("7", "ConfigMap narrow says 2")

	c.forget("validatingadmissionpolicybindings"+group, "", "p")
	c.forget("validatingadmissionpolicies"+group, "", "p")
	spec.ParamKind = &admissionv1.ParamKind{APIVersion: "example.com/v1", Kind: "Limit"}
	c.validate("p", spec, refer(named))
	expect("3", "failed to find resource referenced by paramKind: 'example.com/v1, Kind=Limit'")
}

func TestMutation(t *testing.T) {
	apply := func(expression string) admissionv1.Mutation {
		return admissionv1.Mutation{PatchType: admissionv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionv1.ApplyConfiguration{Expression: expression}}
	}
	patch := func(expression string) admissionv1.Mutation {
		return admissionv1.Mutation{PatchType: admissionv1.PatchTypeJSONPatch, JSONPatch: &admissionv1.JSONPatch{Expression: expression}}
	}
	for _, test := range []struct {
		name string
		spec admissionv1.MutatingAdmissionPolicySpec
		want map[string]string
		err  string
	}{
		{name: "apply", spec: admissionv1.MutatingAdmissionPolicySpec{Mutations: []admissionv1.Mutation{apply(`Object{data: {"b": object.data.a + "!"}}`)}},
			want: map[string]string{"a": "1", "b": "1!"}},
		{name: "patch", spec: admissionv1.MutatingAdmissionPolicySpec{
			Variables: []admissionv1.Variable{{Name: "v", Expression: `"from a variable"`}},
			Mutations: []admissionv1.Mutation{patch(`[JSONPatch{op: "add", path: "/data/b", value: variables.v}, JSONPatch{op: "remove", path: "/data/a"}]`)}},
			want: map[string]string{"b": "from a variable"}},
		{name: "in order", spec: admissionv1.MutatingAdmissionPolicySpec{Mutations: []admissionv1.Mutation{
			apply(`Object{data: {"a": "2"}}`), patch(`[JSONPatch{op: "add", path: "/data/b", value: object.data.a}]`)}},
			want: map[string]string{"a": "2", "b": "2"}},
		{name: "condition", spec: admissionv1.MutatingAdmissionPolicySpec{
			MatchConditions: []admissionv1.MatchCondition{{Name: "c", Expression: `object.data.a == "2"`}},
			Mutations:       []admissionv1.Mutation{apply(`Object{data: {"b": "2"}}`)}}, want: map[string]string{"a": "1"}},
		{name: "failure", spec: admissionv1.MutatingAdmissionPolicySpec{Mutations: []admissionv1.Mutation{patch(`[JSONPatch{op: "remove", path: "/data/none"}]`)}},
			err: "policy 'p' with binding 'p' denied request"},
		{name: "failure ignored", spec: admissionv1.MutatingAdmissionPolicySpec{FailurePolicy: ptr.To(admissionv1.Ignore),
			Mutations: []admissionv1.Mutation{patch(`[JSONPatch{op: "remove", path: "/data/none"}]`)}}, want: map[string]string{"a": "1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := start(t)
			c.mutate("p", test.spec, nil)
			got, err := c.create(t.Context(), "x", map[string]string{"a": "1"})
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Data) != len(test.want) {
				t.Errorf("kept %v, want %v", got.Data, test.want)
			}
			for k, v := range test.want {
				if got.Data[k] != v {
					t.Errorf("kept %v, want %v", got.Data, test.want)
				}
			}
		})
	}
}

// A policy that wants to sees once more what those behind it made of the object.
func TestReinvocation(t *testing.T) {
	c := start(t)
	count := admissionv1.Mutation{PatchType: admissionv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionv1.ApplyConfiguration{
		Expression: `Object{data: {"size": string(size(object.data))}}`}}
	add := admissionv1.Mutation{PatchType: admissionv1.PatchTypeApplyConfiguration, ApplyConfiguration: &admissionv1.ApplyConfiguration{
		Expression: `Object{data: {"more": "yes"}}`}}
	c.mutate("a", admissionv1.MutatingAdmissionPolicySpec{Mutations: []admissionv1.Mutation{count}, ReinvocationPolicy: admissionv1.IfNeededReinvocationPolicy}, nil)
	c.mutate("b", admissionv1.MutatingAdmissionPolicySpec{Mutations: []admissionv1.Mutation{add}}, nil)
	got, err := c.create(t.Context(), "x", map[string]string{"a": "1"})
	if err != nil {
		t.Fatal(err)
	}
	if got.Data["size"] != "3" {
		t.Errorf("kept %v; seen again it has three entries", got.Data)
	}
}

// Whoever can write policies can always mend them.
func TestPoliciesAreExempt(t *testing.T) {
	c := start(t)
	everything := &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
		Operations: []admissionv1.OperationType{admissionv1.OperationAll},
		Rule:       admissionv1.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"*"}}}}}}
	c.keep("validatingadmissionpolicies"+group, "", &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "no"},
		Spec: admissionv1.ValidatingAdmissionPolicySpec{MatchConstraints: everything, Validations: expressions(admissionv1.Validation{Expression: "false"})}})
	c.keep("validatingadmissionpolicybindings"+group, "", &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "no"},
		Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: "no", ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny}}})
	if _, err := c.create(t.Context(), "x", nil); err == nil {
		t.Error("nothing is denied")
	}
	c.forget("validatingadmissionpolicybindings"+group, "", "no")
	if _, err := c.create(t.Context(), "x", nil); err != nil {
		t.Error(err)
	}
}

// An expression can cost only so much.
func TestHostileExpressions(t *testing.T) {
	c := start(t)
	c.validate("p", admissionv1.ValidatingAdmissionPolicySpec{Validations: expressions(admissionv1.Validation{
		Expression: "object.data.all(a, object.data.all(b, object.data.all(c, a + b + c != 'x')))"})}, nil)
	data := map[string]string{}
	for i := range 400 {
		data[strings.Repeat("k", 1+i%50)+string(rune('a'+i%26))+string(rune('a'+i/26))] = ""
	}
	_, err := c.create(t.Context(), "x", data)
	if err == nil || !strings.Contains(err.Error(), "cost") {
		t.Errorf("got %v", err)
	}
	if !slices.Contains([]int32{422, 403}, err.(*apierrors.StatusError).ErrStatus.Code) {
		t.Errorf("got %+v", err)
	}
}
