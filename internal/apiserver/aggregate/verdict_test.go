package aggregate

import (
	"errors"
	"testing"

	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// TestVerdict: a request is passed on while there is an endpoint and anybody has heard from the server.
func TestVerdict(t *testing.T) {
	noEndpoint, silent := errors.New("no endpoints"), errors.New("silent")
	unknown := apiregistrationv1.APIServiceCondition{Status: apiregistrationv1.ConditionUnknown}
	yes := apiregistrationv1.APIServiceCondition{Status: apiregistrationv1.ConditionTrue}
	no := apiregistrationv1.APIServiceCondition{Status: apiregistrationv1.ConditionFalse, Reason: "FailedDiscoveryCheck", Message: "it is off"}
	const refused = "FailedDiscoveryCheck: it is off"
	for name, c := range map[string]struct {
		endpoint error
		own      finding
		leader   apiregistrationv1.APIServiceCondition
		want     string
	}{
		"nobody knows yet": {nil, finding{}, unknown, ""},
		"all are happy":    {nil, finding{asked: true}, yes, ""},
		"there is no endpoint, whatever the status":    {noEndpoint, finding{asked: true}, yes, "no endpoints"},
		"there is no endpoint, and nobody looked":      {noEndpoint, finding{}, unknown, "no endpoints"},
		"the leader can't reach it, but we do":         {nil, finding{asked: true}, no, ""},
		"we can't reach it, but the leader does":       {nil, finding{asked: true, err: silent}, yes, ""},
		"the leader can't reach it, and we don't know": {nil, finding{}, no, refused},
		"nobody can reach it":                          {nil, finding{asked: true, err: silent}, no, refused},
		"we can't reach it, and there is no leader":    {nil, finding{asked: true, err: silent}, unknown, "silent"},
	} {
		got := ""
		if err := verdict(c.endpoint, c.own, c.leader); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
