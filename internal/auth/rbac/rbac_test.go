package rbac_test

import (
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/request"
	"sigs.k8s.io/controller-runtime/pkg/client"

	apirbac "barque.dev/internal/api/rbac"
	"barque.dev/internal/auth/image"
	"barque.dev/internal/auth/rbac"
	"barque.dev/internal/testkit/fakeclient"
)

func gr(name string) schema.GroupResource {
	return schema.GroupResource{Group: rbacv1.GroupName, Resource: name}
}

func put(m *image.Memory, objects ...runtime.Object) {
	for _, o := range objects {
		switch o.(type) {
		case *rbacv1.ClusterRole:
			m.Put(gr("clusterroles"), o)
		case *rbacv1.ClusterRoleBinding:
			m.Put(gr("clusterrolebindings"), o)
		case *rbacv1.Role:
			m.Put(gr("roles"), o)
		case *rbacv1.RoleBinding:
			m.Put(gr("rolebindings"), o)
		}
	}
}

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name}
}

func rule(verbs, groups, resources string, names ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{
		Verbs: strings.Split(verbs, ","), APIGroups: strings.Split(groups, ","),
		Resources: strings.Split(resources, ","), ResourceNames: names,
	}
}

func ref(kind, name string) rbacv1.RoleRef {
	return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: name}
}

func state() *image.Memory {
	m := image.NewMemory(rbac.Indexes()...)
	put(m,
		&rbacv1.ClusterRole{ObjectMeta: meta("", "reader"), Rules: []rbacv1.PolicyRule{rule("get,list", "", "pods")}},
		&rbacv1.ClusterRole{ObjectMeta: meta("", "paths"), Rules: []rbacv1.PolicyRule{{Verbs: []string{"get"}, NonResourceURLs: []string{"/healthz", "/api/*"}}}},
		&rbacv1.ClusterRole{ObjectMeta: meta("", "scaler"), Rules: []rbacv1.PolicyRule{rule("*", "apps", "*/scale")}},
		&rbacv1.Role{ObjectMeta: meta("a", "editor"), Rules: []rbacv1.PolicyRule{
			rule("*", "*", "configmaps"), rule("get", "", "secrets", "one"), rule("get", "", "pods/log"),
		}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "readers"), RoleRef: ref("ClusterRole", "reader"), Subjects: []rbacv1.Subject{
			{Kind: "User", Name: "ann"}, {Kind: "Group", Name: "dev"}, {Kind: "ServiceAccount", Namespace: "a", Name: "bot"},
			{Kind: "ServiceAccount", Name: "nowhere"},
		}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "all"), RoleRef: ref("ClusterRole", "paths"), Subjects: []rbacv1.Subject{
			{Kind: "Group", Name: "system:unauthenticated"},
		}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "dangling"), RoleRef: ref("ClusterRole", "missing"), Subjects: []rbacv1.Subject{
			{Kind: "User", Name: "eve"},
		}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "dangling-too"), RoleRef: ref("ClusterRole", "missing"), Subjects: []rbacv1.Subject{
			{Kind: "User", Name: "eve"},
		}},
		&rbacv1.RoleBinding{ObjectMeta: meta("a", "editors"), RoleRef: ref("Role", "editor"), Subjects: []rbacv1.Subject{
			{Kind: "User", Name: "bob"}, {Kind: "ServiceAccount", Name: "local"},
		}},
		&rbacv1.RoleBinding{ObjectMeta: meta("b", "scalers"), RoleRef: ref("ClusterRole", "scaler"), Subjects: []rbacv1.Subject{
			{Kind: "Group", Name: "ops"},
		}},
	)
	return m
}

func who(name string, groups ...string) user.Info {
	return &user.DefaultInfo{Name: name, Groups: groups}
}

func ask(u user.Info, verb, namespace, group, resource, name string) authorizer.AttributesRecord {
	resource, sub, _ := strings.Cut(resource, "/")
	return authorizer.AttributesRecord{
		User: u, Verb: verb, Namespace: namespace, APIGroup: group, Resource: resource, Subresource: sub, Name: name, ResourceRequest: true,
	}
}

func TestAuthorize(t *testing.T) {
	a := rbac.NewAuthorizer(state())
	path := func(u user.Info, verb, p string) authorizer.AttributesRecord {
		return authorizer.AttributesRecord{User: u, Verb: verb, Path: p}
	}
	anonymous := who("system:anonymous", "system:unauthenticated")
	tests := map[string]struct {
		attrs  authorizer.AttributesRecord
		want   bool
		reason string
	}{
		"by user":             {ask(who("ann"), "get", "", "", "pods", ""), true, `ClusterRoleBinding "readers" of ClusterRole "reader" to User "ann"`},
		"in any namespace":    {ask(who("ann"), "list", "zzz", "", "pods", ""), true, ""},
		"another verb":        {ask(who("ann"), "delete", "zzz", "", "pods", "x"), false, ""},
		"another group":       {ask(who("ann"), "get", "zzz", "apps", "pods", "x"), false, ""},
		"a subresource":       {ask(who("ann"), "get", "zzz", "", "pods/log", "x"), false, ""},
		"by group":            {ask(who("x", "ops", "dev"), "get", "", "", "pods", ""), true, `to Group "dev"`},
		"user called a group": {ask(who("dev"), "get", "", "", "pods", ""), false, ""},
		"service account":     {ask(who("system:serviceaccount:a:bot"), "get", "c", "", "pods", ""), true, `to ServiceAccount "bot/a"`},
		"no namespace":        {ask(who("system:serviceaccount::nowhere"), "get", "c", "", "pods", ""), false, ""},
		"role, in it":         {ask(who("bob"), "create", "a", "", "configmaps", ""), true, `RoleBinding "editors/a" of Role "editor"`},
		"role, elsewhere":     {ask(who("bob"), "create", "b", "", "configmaps", ""), false, ""},
		"role, cluster-wide":  {ask(who("bob"), "list", "", "", "configmaps", ""), false, ""},
		"local account":       {ask(who("system:serviceaccount:a:local"), "get", "a", "", "configmaps", "x"), true, ""},
		"foreign account":     {ask(who("system:serviceaccount:b:local"), "get", "a", "", "configmaps", "x"), false, ""},
		"named":               {ask(who("bob"), "get", "a", "", "secrets", "one"), true, ""},
		"named otherwise":     {ask(who("bob"), "get", "a", "", "secrets", "two"), false, ""},
		"named, listed":       {ask(who("bob"), "get", "a", "", "secrets", ""), false, ""},
		"subresource":         {ask(who("bob"), "get", "a", "", "pods/log", "x"), true, ""},
		"parent of it":        {ask(who("bob"), "get", "a", "", "pods", "x"), false, ""},
		"any resource's":      {ask(who("x", "ops"), "patch", "b", "apps", "deployments/scale", "x"), true, ""},
		"not the resource":    {ask(who("x", "ops"), "patch", "b", "apps", "deployments", "x"), false, ""},
		"dangling":            {ask(who("eve"), "get", "a", "", "pods", "x"), false, `clusterrole.rbac.authorization.k8s.io "missing" not found`},
		"path":                {path(anonymous, "get", "/healthz"), true, ""},
		"path below":          {path(anonymous, "get", "/healthz/etcd"), false, ""},
		"path by prefix":      {path(anonymous, "get", "/api/v1"), true, ""},
		"path, verb":          {path(anonymous, "post", "/api/v1"), false, ""},
		"resource by path":    {ask(anonymous, "get", "", "", "pods", ""), false, ""},
		"nobody":              {authorizer.AttributesRecord{Verb: "get", Path: "/healthz"}, false, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			decision, reason, err := a.Authorize(t.Context(), tt.attrs)
			if err != nil {
				t.Fatal(err)
			}
			want := authorizer.DecisionNoOpinion
			if tt.want {
				want = authorizer.DecisionAllow
			}
			if decision != want || !strings.Contains(reason, tt.reason) || strings.Count(reason, "not found") > 1 {
				t.Errorf("got %v (%s), want %v (%s)", decision, reason, want, tt.reason)
			}
		})
	}
}

func TestNewBindingCountsAtOnce(t *testing.T) {
	m := state()
	a := rbac.NewAuthorizer(m)
	attrs := ask(who("new"), "get", "", "", "pods", "")
	binding := &rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "new"), RoleRef: ref("ClusterRole", "reader"), Subjects: []rbacv1.Subject{{Kind: "User", Name: "new"}}}
	check := func(want authorizer.Decision) {
		t.Helper()
		if got, _, _ := a.Authorize(t.Context(), attrs); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	check(authorizer.DecisionNoOpinion)
	put(m, binding)
	check(authorizer.DecisionAllow)
	m.Delete(gr("clusterrolebindings"), "", "new")
	check(authorizer.DecisionNoOpinion)
}

func TestRulesFor(t *testing.T) {
	a := rbac.NewAuthorizer(state())
	resources, paths, incomplete, err := a.RulesFor(t.Context(), who("ann", "dev", "system:unauthenticated"), "a")
	if err != nil || incomplete {
		t.Fatal(err, incomplete)
	}
	if len(resources) != 1 || len(paths) != 1 {
		t.Errorf("rules %v, %v: a binding that applies twice must count once", resources, paths)
	}
	if _, _, _, err := a.RulesFor(t.Context(), who("eve"), "a"); err == nil {
		t.Error("a missing role is not told")
	}
}

func TestEscalation(t *testing.T) {
	m := state()
	put(m,
		&rbacv1.ClusterRole{ObjectMeta: meta("", "binder"), Rules: []rbacv1.PolicyRule{rule("bind", rbacv1.GroupName, "clusterroles", "scaler")}},
		&rbacv1.ClusterRole{ObjectMeta: meta("", "escalator"), Rules: []rbacv1.PolicyRule{rule("escalate", rbacv1.GroupName, "clusterroles,roles")}},
		&rbacv1.ClusterRole{ObjectMeta: meta("", "root"), Rules: []rbacv1.PolicyRule{rule("*", "*", "*"), {Verbs: []string{"*"}, NonResourceURLs: []string{"*"}}}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "b1"), RoleRef: ref("ClusterRole", "binder"), Subjects: []rbacv1.Subject{{Kind: "User", Name: "binder"}}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "b2"), RoleRef: ref("ClusterRole", "escalator"), Subjects: []rbacv1.Subject{{Kind: "User", Name: "escalator"}}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "b3"), RoleRef: ref("ClusterRole", "root"), Subjects: []rbacv1.Subject{{Kind: "User", Name: "root"}}},
	)
	a := rbac.NewAuthorizer(m)
	check := rbac.NewEscalationCheck(a, a)

	small := &rbacv1.ClusterRole{ObjectMeta: meta("", "new"), Rules: []rbacv1.PolicyRule{rule("get", "", "pods")}}
	big := &rbacv1.ClusterRole{ObjectMeta: meta("", "new"), Rules: []rbacv1.PolicyRule{rule("get", "", "pods"), rule("delete", "", "pods"), rule("list", "", "nodes")}}
	gathering := &rbacv1.ClusterRole{ObjectMeta: meta("", "new"), AggregationRule: &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{}}}}
	owned := big.DeepCopy()
	owned.Finalizers = []string{"x/y"}
	role := &rbacv1.Role{ObjectMeta: meta("a", "new"), Rules: []rbacv1.PolicyRule{rule("get", "", "configmaps")}}
	binds := func(name string) *rbacv1.ClusterRoleBinding {
		return &rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "new"), RoleRef: ref("ClusterRole", name)}
	}
	bindsIn := func(namespace string, r rbacv1.RoleRef) *rbacv1.RoleBinding {
		return &rbacv1.RoleBinding{ObjectMeta: meta(namespace, "new"), RoleRef: r}
	}
	tests := map[string]struct {
		user     user.Info
		resource string
		obj, old runtime.Object
		want     string
	}{
		"what is held":               {who("ann"), "clusterroles", small, nil, ""},
		"more than held":             {who("ann"), "clusterroles", big, nil, "attempting to grant RBAC permissions not currently held"},
		"one line a resource":        {who("nobody"), "clusterroles", big, nil, `{APIGroups:[""], Resources:["pods"], Verbs:["get" "delete"]}`},
		"finalizer only":             {who("ann"), "clusterroles", owned, big, ""},
		"update with more":           {who("ann"), "clusterroles", big, small, "not currently held"},
		"allowed to escalate":        {who("escalator"), "clusterroles", big, nil, ""},
		"aggregation":                {who("ann"), "clusterroles", gathering, nil, "must have cluster-admin privileges"},
		"aggregation by root":        {who("root"), "clusterroles", gathering, nil, ""},
		"aggregation by a master":    {who("x", "system:masters"), "clusterroles", gathering, nil, ""},
		"role in its namespace":      {who("bob"), "roles", role, nil, ""},
		"bind what is held":          {who("ann"), "clusterrolebindings", binds("reader"), nil, ""},
		"bind more":                  {who("ann"), "clusterrolebindings", binds("scaler"), nil, "not currently held"},
		"bind what is missing":       {who("ann"), "clusterrolebindings", binds("missing"), nil, `"missing" not found`},
		"allowed to bind":            {who("binder"), "clusterrolebindings", binds("scaler"), nil, ""},
		"allowed to bind another":    {who("binder"), "clusterrolebindings", binds("reader"), nil, "not currently held"},
		"bind in a namespace":        {who("bob"), "rolebindings", bindsIn("a", ref("Role", "editor")), nil, ""},
		"bind in another namespace":  {who("bob"), "rolebindings", bindsIn("b", ref("Role", "editor")), nil, "not found"},
		"the registry itself":        {who(user.APIServerUser, user.SystemPrivilegedGroup), "clusterrolebindings", binds("root"), nil, ""},
		"who has only its name":      {who(user.APIServerUser), "clusterrolebindings", binds("root"), nil, "not currently held"},
		"the group name is not ours": {who("nobody"), "pods", &corev1.Pod{}, nil, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			op := admission.Create
			if tt.old != nil {
				op = admission.Update
			}
			resource := gr(tt.resource).WithVersion("v1")
			if tt.resource == "pods" {
				resource.Group = ""
			}
			o, _ := tt.obj.(metav1.Object)
			attrs := admission.NewAttributesRecord(tt.obj, tt.old, schema.GroupVersionKind{}, o.GetNamespace(), o.GetName(), resource, "", op, nil, false, tt.user)
			err := check.Validate(t.Context(), attrs, nil)
			if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// Who may escalate roles of a name may do so where a request's path holds that name, and not by
// creating one. A binding's role that does not exist is not found, rather than forbidden.
func TestEscalationIsAsInStock(t *testing.T) {
	m := state()
	put(m,
		&rbacv1.ClusterRole{ObjectMeta: meta("", "named"), Rules: []rbacv1.PolicyRule{rule("escalate", rbacv1.GroupName, "clusterroles", "new")}},
		&rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "b1"), RoleRef: ref("ClusterRole", "named"), Subjects: []rbacv1.Subject{{Kind: "User", Name: "named"}}},
	)
	a := rbac.NewAuthorizer(m)
	check := rbac.NewEscalationCheck(a, a)
	big := &rbacv1.ClusterRole{ObjectMeta: meta("", "new"), Rules: []rbacv1.PolicyRule{rule("delete", "", "nodes")}}
	try := func(path string, obj metav1.Object, resource string, op admission.Operation, old runtime.Object) error {
		ctx := request.WithRequestInfo(t.Context(), &request.RequestInfo{IsResourceRequest: true, APIGroup: rbacv1.GroupName, Resource: resource, Name: path})
		return check.Validate(ctx, admission.NewAttributesRecord(obj.(runtime.Object), old, schema.GroupVersionKind{}, "", "new",
			gr(resource).WithVersion("v1"), "", op, nil, false, who("named")), nil)
	}
	if err := try("", big, "clusterroles", admission.Create, nil); !apierrors.IsForbidden(err) {
		t.Errorf("creating: %v", err)
	}
	if err := try("new", big, "clusterroles", admission.Update, &rbacv1.ClusterRole{ObjectMeta: meta("", "new")}); err != nil {
		t.Errorf("updating: %v", err)
	}
	missing := &rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "new"), RoleRef: ref("ClusterRole", "missing")}
	if err := try("", missing, "clusterrolebindings", admission.Create, nil); !apierrors.IsNotFound(err) || err.Error() != `clusterrole.rbac.authorization.k8s.io "missing" not found` {
		t.Errorf("binding what is missing: %v", err)
	}
}

func newClient() client.Client {
	return fakeclient.Builder().Build()
}

func TestBootstrap(t *testing.T) {
	c := newClient()
	policy := rbac.Policy()
	log := slog.New(slog.DiscardHandler)
	if err := rbac.Bootstrap(t.Context(), c, policy, log); err != nil {
		t.Fatal(err)
	}
	var roles rbacv1.ClusterRoleList
	if err := c.List(t.Context(), &roles); err != nil {
		t.Fatal(err)
	}
	if len(roles.Items) != len(policy.ClusterRoles) {
		t.Errorf("%d cluster roles, want %d", len(roles.Items), len(policy.ClusterRoles))
	}
	var namespaced rbacv1.RoleList
	if err := c.List(t.Context(), &namespaced); err != nil || len(namespaced.Items) != len(policy.Roles) {
		t.Errorf("%d roles, want %d: %v", len(namespaced.Items), len(policy.Roles), err)
	}

	// Rules that were taken away come back, additions stay, protected roles are left alone.
	edit := func(name string, change func(*rbacv1.ClusterRole)) {
		t.Helper()
		var role rbacv1.ClusterRole
		if err := c.Get(t.Context(), client.ObjectKey{Name: name}, &role); err != nil {
			t.Fatal(err)
		}
		change(&role)
		if err := c.Update(t.Context(), &role); err != nil {
			t.Fatal(err)
		}
	}
	edit("system:discovery", func(r *rbacv1.ClusterRole) { r.Rules = nil })
	edit("system:basic-user", func(r *rbacv1.ClusterRole) { r.Rules = append(r.Rules, rule("get", "", "things")) })
	edit("system:kube-scheduler", func(r *rbacv1.ClusterRole) {
		r.Rules = nil
		r.Annotations[rbacv1.AutoUpdateAnnotationKey] = "false"
	})
	if err := rbac.Bootstrap(t.Context(), c, rbac.Policy(), log); err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, name := range []string{"system:discovery", "system:basic-user", "system:kube-scheduler"} {
		var role rbacv1.ClusterRole
		if err := c.Get(t.Context(), client.ObjectKey{Name: name}, &role); err != nil {
			t.Fatal(err)
		}
		count[name] = len(role.Rules)
	}
	if count["system:discovery"] == 0 || count["system:basic-user"] < 2 || count["system:kube-scheduler"] != 0 {
		t.Errorf("rules after the second time: %v", count)
	}
}

// writeCounter fails the test's expectations when a settled cluster is written to.
type writeCounter struct {
	client.Client
	writes []string
}

func (w *writeCounter) Create(ctx context.Context, o client.Object, opts ...client.CreateOption) error {
	w.writes = append(w.writes, fmt.Sprintf("create %T %s", o, o.GetName()))
	return w.Client.Create(ctx, o, opts...)
}

func (w *writeCounter) Update(ctx context.Context, o client.Object, opts ...client.UpdateOption) error {
	w.writes = append(w.writes, fmt.Sprintf("update %T %s", o, o.GetName()))
	return w.Client.Update(ctx, o, opts...)
}

func TestBootstrapSettles(t *testing.T) {
	c := newClient()
	log := slog.New(slog.DiscardHandler)
	if err := rbac.Bootstrap(t.Context(), c, rbac.Policy(), log); err != nil {
		t.Fatal(err)
	}
	w := &writeCounter{Client: c}
	if err := rbac.Bootstrap(t.Context(), w, rbac.Policy(), log); err != nil {
		t.Fatal(err)
	}
	if len(w.writes) > 0 {
		t.Errorf("the second time wrote: %v", w.writes)
	}
}

func TestPolicyRefersToItself(t *testing.T) {
	policy := rbac.Policy()
	roles := map[string]bool{}
	for _, r := range policy.ClusterRoles {
		if roles[r.Name] {
			t.Errorf("the role %s is there twice", r.Name)
		}
		roles[r.Name] = true
	}
	for _, b := range policy.ClusterRoleBindings {
		if !roles[b.RoleRef.Name] {
			t.Errorf("the binding %s refers to the role %s, which is not there", b.Name, b.RoleRef.Name)
		}
	}
}

func TestAggregation(t *testing.T) {
	c := newClient()
	if err := rbac.Bootstrap(t.Context(), c, apirbac.Bootstrap(), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	aggregator := &rbac.Aggregator{Client: c}
	var all rbacv1.ClusterRoleList
	if err := c.List(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	requests := rbac.Aggregated(all.Items)
	for range 3 { // admin gathers edit's parts, which gathers view's
		for _, req := range requests {
			if _, err := aggregator.Reconcile(t.Context(), req); err != nil {
				t.Fatal(err)
			}
		}
	}
	var view, edit rbacv1.ClusterRole
	if err := c.Get(t.Context(), client.ObjectKey{Name: "view"}, &view); err != nil {
		t.Fatal(err)
	}
	if err := c.Get(t.Context(), client.ObjectKey{Name: "edit"}, &edit); err != nil {
		t.Fatal(err)
	}
	read := ask(who("x"), "list", "a", "apps", "deployments", "")
	write := ask(who("x"), "create", "a", "apps", "deployments", "")
	if !rbac.Allows(read, view.Rules) || rbac.Allows(write, view.Rules) || !rbac.Allows(write, edit.Rules) {
		t.Error("the roles view and edit do not allow what they should")
	}
	again, err := rbac.AggregatedRules(&view, all.Items)
	if err != nil || !reflect.DeepEqual(again, view.Rules) {
		t.Errorf("aggregation is not stable: %v", err)
	}
}

func BenchmarkAuthorize(b *testing.B) {
	m := image.NewMemory(rbac.Indexes()...)
	policy := apirbac.Bootstrap()
	for i := range policy.ClusterRoles {
		put(m, &policy.ClusterRoles[i])
	}
	for i := range policy.ClusterRoleBindings {
		put(m, &policy.ClusterRoleBindings[i])
	}
	for i := range 5000 {
		put(m, &rbacv1.RoleBinding{
			ObjectMeta: meta(fmt.Sprintf("ns-%d", i%100), fmt.Sprintf("b-%d", i)), RoleRef: ref("ClusterRole", "system:discovery"),
			Subjects: []rbacv1.Subject{{Kind: "User", Name: fmt.Sprintf("user-%d", i)}},
		})
	}
	a := rbac.NewAuthorizer(m)
	authenticated := []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"}
	for name, attrs := range map[string]authorizer.AttributesRecord{
		"allowed": ask(who("system:serviceaccount:kube-system:deployment-controller", authenticated...), "update", "a", "apps", "deployments/status", "x"),
		"denied":  ask(who("user-7", "system:authenticated"), "get", "ns-7", "", "pods", "x"),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := a.Authorize(b.Context(), attrs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
