package aggregate

import (
	"fmt"

	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
)

// A finding is what this server found out itself when it last asked an aggregated API server.
type finding struct {
	asked bool
	err   error // nil if it answered, whatever it said
}

// verdict decides whether a request may be passed on; the error says why not. Without an endpoint there is no way. With
// one, it is worth a try as long as anybody has heard from the server: the leader, which says so in the APIService's
// condition, or this server, which may be on another side of a cut. Who just came is given the benefit of the
// doubt. What is left are servers that all found silent: their clients get an answer at once.
func verdict(endpoint error, own finding, leader apiregistrationv1.APIServiceCondition) error {
	switch {
	case endpoint != nil:
		return endpoint
	case leader.Status == apiregistrationv1.ConditionTrue, own.asked && own.err == nil:
		return nil
	case leader.Status == apiregistrationv1.ConditionFalse:
		return fmt.Errorf("%s: %s", leader.Reason, leader.Message)
	case own.asked:
		return own.err
	}
	return nil
}
