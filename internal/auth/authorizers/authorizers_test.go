package authorizers_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"pgregory.net/rapid"

	"barque.dev/internal/auth/authorizers"
)

// fixed always decides the same, and counts how often it is asked.
type fixed struct {
	decision authorizer.Decision
	reason   string
	err      error
	asked    int
}

func (f *fixed) Authorize(context.Context, authorizer.Attributes) (authorizer.Decision, string, error) {
	f.asked++
	return f.decision, f.reason, f.err
}

func (f *fixed) ConditionsAwareAuthorize(ctx context.Context, a authorizer.Attributes) authorizer.ConditionsAwareDecision {
	return authorizer.ConditionsAwareDecisionFromParts(f.Authorize(ctx, a))
}

func (*fixed) EvaluateConditions(context.Context, authorizer.ConditionsAwareDecision, authorizer.ConditionsData) (authorizer.Decision, string, error) {
	return authorizer.DecisionDeny, "", authorizer.ErrorConditionEvaluationNotSupported
}

func (*fixed) RulesFor(context.Context, user.Info, string) ([]authorizer.ResourceRuleInfo, []authorizer.NonResourceRuleInfo, bool, error) {
	return nil, nil, false, nil
}

func file(types ...string) []byte {
	var b strings.Builder
	b.WriteString("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers:\n")
	for _, name := range types {
		fmt.Fprintf(&b, "- {type: %s, name: %s}\n", name, strings.ToLower(name))
	}
	return []byte(b.String())
}

var ask = authorizer.AttributesRecord{User: &user.DefaultInfo{Name: "ann"}, Verb: "get", Resource: "pods", ResourceRequest: true}

// The first authorizer that decides, decides; those after it are not asked; system:masters may
// do everything before anybody is asked.
func TestOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		decision := rapid.SampledFrom([]authorizer.Decision{authorizer.DecisionAllow, authorizer.DecisionDeny, authorizer.DecisionNoOpinion})
		node, rbac := &fixed{decision: decision.Draw(t, "node")}, &fixed{decision: decision.Draw(t, "rbac")}
		order := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"Node", "RBAC", "AlwaysAllow", "AlwaysDeny"}), 1, 4, rapid.ID).Draw(t, "order")
		conf, err := authorizers.Load(file(order...))
		if err != nil {
			t.Fatal(err)
		}
		chain, err := authorizers.New(conf, authorizers.Parts{Node: node, RBAC: rbac})
		if err != nil {
			t.Fatal(err)
		}
		want := authorizer.DecisionNoOpinion
		asked := map[string]int{}
		for _, name := range order {
			asked[name]++
			want = map[string]authorizer.Decision{
				"Node": node.decision, "RBAC": rbac.decision, "AlwaysAllow": authorizer.DecisionAllow, "AlwaysDeny": authorizer.DecisionNoOpinion,
			}[name]
			if want != authorizer.DecisionNoOpinion {
				break
			}
		}
		got, _, err := chain.Authorize(context.Background(), ask)
		if got != want || err != nil {
			t.Fatalf("%v: got %v, %v; want %v", order, got, err, want)
		}
		if node.asked != asked["Node"] || rbac.asked != asked["RBAC"] {
			t.Fatalf("%v: asked node %d and rbac %d times, want %v", order, node.asked, rbac.asked, asked)
		}
		masters := ask
		masters.User = &user.DefaultInfo{Name: "root", Groups: []string{user.SystemPrivilegedGroup}}
		if got, _, _ := chain.Authorize(context.Background(), masters); got != authorizer.DecisionAllow || node.asked+rbac.asked != asked["Node"]+asked["RBAC"] {
			t.Fatalf("system:masters: %v", got)
		}
	})
}

func TestReplace(t *testing.T) {
	node, rbac := &fixed{decision: authorizer.DecisionNoOpinion}, &fixed{decision: authorizer.DecisionNoOpinion, err: errors.New("rbac is broken")}
	conf, err := authorizers.Load(file("RBAC"))
	if err != nil {
		t.Fatal(err)
	}
	chain, err := authorizers.NewReplaceable(conf, authorizers.Parts{Node: node, RBAC: rbac})
	if err != nil {
		t.Fatal(err)
	}
	check := func(want authorizer.Decision) {
		t.Helper()
		if got, _, _ := chain.Authorize(t.Context(), ask); got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if _, _, err := chain.Authorize(t.Context(), ask); err == nil {
		t.Error("an error was lost")
	}
	if err := chain.Replace(file("AlwaysAllow", "RBAC")); err != nil {
		t.Fatal(err)
	}
	check(authorizer.DecisionAllow)
	for why, content := range map[string]string{
		"can't be taken away": string(file("AlwaysDeny")), "empty": "", "decode": "[", "Unsupported value": string(file("RBAC", "Other")),
		"named":     strings.Replace(string(file("RBAC")), "name: rbac", "name: roles", 1),
		"Duplicate": string(file("RBAC", "RBAC")),
	} {
		if err := chain.Replace([]byte(content)); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("got %v, want %q", err, why)
		}
	}
	check(authorizer.DecisionAllow)
}

func TestFlags(t *testing.T) {
	path := "/etc/hook"
	conf, err := (&authorizers.Flags{}).Configuration()
	if err != nil || len(conf.Authorizers) != 2 || conf.Authorizers[0].Name != "node" || conf.Authorizers[1].Name != "rbac" {
		t.Errorf("by default: %v, %v", conf, err)
	}
	conf, err = (&authorizers.Flags{Modes: []string{"Webhook", "RBAC"}, WebhookFile: path}).Configuration()
	if err != nil {
		t.Fatal(err)
	}
	hook := conf.Authorizers[0].Webhook
	if hook.AuthorizedTTL.Duration != authorizers.DefaultAuthorizedTTL || hook.UnauthorizedTTL.Duration != authorizers.DefaultUnauthorizedTTL ||
		!hook.CacheAuthorizedRequests || hook.SubjectAccessReviewVersion != "v1beta1" || hook.FailurePolicy != "NoOpinion" || *hook.ConnectionInfo.KubeConfigFile != path {
		t.Errorf("webhook: %+v", hook)
	}
}

// Counting a decision costs no memory, so that every request can be counted.
func TestDecisionsAreCountedForNothing(t *testing.T) {
	registry := prometheus.NewRegistry()
	decisions, err := authorizers.NewDecisions(registry)
	if err != nil {
		t.Fatal(err)
	}
	rbac := &fixed{decision: authorizer.DecisionAllow}
	allocs := func(d *authorizers.Decisions) float64 {
		chain, err := authorizers.New(authorizers.Default(), authorizers.Parts{Node: &fixed{decision: authorizer.DecisionNoOpinion}, RBAC: rbac, Decisions: d})
		if err != nil {
			t.Fatal(err)
		}
		var a authorizer.Attributes = ask
		return testing.AllocsPerRun(100, func() { _, _, _ = chain.Authorize(context.Background(), a) })
	}
	if counted, plain := allocs(decisions), allocs(nil); counted > plain {
		t.Errorf("%v allocations instead of %v", counted, plain)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	allowed := 0.0
	for _, m := range families[0].GetMetric() {
		if strings.Contains(m.String(), `"rbac"`) && strings.Contains(m.String(), `"allowed"`) {
			allowed = m.GetCounter().GetValue()
		}
	}
	if families[0].GetName() != "apiserver_authorization_decisions_total" || allowed < 100 {
		t.Errorf("%v", families)
	}
}

// FuzzLoad reads what an operator may write: it is refused or can be used, and nothing panics.
func FuzzLoad(f *testing.F) {
	for _, seed := range [][]byte{file("Node", "RBAC"), file(), nil, []byte("{}"), []byte("a: [b"), file("Webhook"),
		[]byte(strings.Replace(string(file("Node")), "/v1", "/v1alpha1", 1))} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		conf, err := authorizers.Load(content)
		if err == nil && len(conf.Authorizers) == 0 {
			t.Errorf("%q is a configuration without authorizers", content)
		}
	})
}
