package authorizers

import (
	"context"
	"strings"

	utilerrors "k8s.io/apimachinery/pkg/util/errors"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/union"
)

// ordered asks one authorizer after the other. It decides as union does, and spares a request that
// is decided the work of putting reasons into words.
type ordered struct {
	authorizer.Authorizer // union of the same, for what has conditions
	chain                 []union.NamedAuthorizer
}

func newOrdered(chain []union.NamedAuthorizer) (*ordered, error) {
	all, err := union.New(chain...)
	if err != nil {
		return nil, err
	}
	return &ordered{all, chain}, nil
}

// Authorize implements authorizer.Authorizer.
func (o *ordered) Authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	var reasons []string
	var errs []error
	for i := range o.chain {
		decision, reason, err := o.chain[i].Authorizer.Authorize(ctx, a)
		if decision == authorizer.DecisionAllow || decision == authorizer.DecisionDeny {
			return decision, reason, err
		}
		if err != nil {
			errs = append(errs, err)
		}
		if reason != "" {
			reasons = append(reasons, o.chain[i].AuthorizerName+": "+reason)
		}
	}
	return authorizer.DecisionNoOpinion, strings.Join(reasons, "\n"), utilerrors.NewAggregate(errs)
}
