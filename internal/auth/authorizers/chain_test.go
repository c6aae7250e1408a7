package authorizers

import (
	"context"
	"fmt"
	"testing"

	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/union"
	"pgregory.net/rapid"
)

// The chain decides as stock's union does, reasons and errors included.
func TestOrderedIsUnion(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var chain []union.NamedAuthorizer
		for i := range rapid.IntRange(1, 5).Draw(t, "length") {
			decision := rapid.SampledFrom([]authorizer.Decision{authorizer.DecisionAllow, authorizer.DecisionDeny, authorizer.DecisionNoOpinion}).Draw(t, "decision")
			reason := rapid.SampledFrom([]string{"", "because", "for one"}).Draw(t, "reason")
			var err error
			if rapid.Bool().Draw(t, "fails") {
				err = fmt.Errorf("failure %d", i)
			}
			chain = append(chain, union.NamedAuthorizer{
				AuthorizerName: fmt.Sprintf("a%d", i),
				Authorizer: authorizer.AuthorizerFunc(func(context.Context, authorizer.Attributes) (authorizer.Decision, string, error) {
					return decision, reason, err
				}),
			})
		}
		stock, err := union.New(chain...)
		if err != nil {
			t.Fatal(err)
		}
		ours, err := newOrdered(chain)
		if err != nil {
			t.Fatal(err)
		}
		wantDecision, wantReason, wantErr := stock.Authorize(context.Background(), authorizer.AttributesRecord{})
		decision, reason, err := ours.Authorize(context.Background(), authorizer.AttributesRecord{})
		if decision != wantDecision || reason != wantReason || fmt.Sprint(err) != fmt.Sprint(wantErr) {
			t.Fatalf("got %v %q %v, want %v %q %v", decision, reason, err, wantDecision, wantReason, wantErr)
		}
	})
	if _, err := newOrdered([]union.NamedAuthorizer{{}}); err == nil {
		t.Errorf("an authorizer without a name: %v", err)
	}
}
