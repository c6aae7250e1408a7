// Package fakeclient makes clients of an API in memory that are quick enough for thousands of
// writes.
package fakeclient

import (
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/testing"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

// Builder is controller-runtime's, for the built-in kinds, without managed fields: the default
// tracker builds a REST mapper of all kinds to compute them at every write.
func Builder() *fake.ClientBuilder {
	tracker := testing.NewObjectTracker(scheme.Scheme, scheme.Codecs.UniversalDecoder())
	return fake.NewClientBuilder().WithScheme(scheme.Scheme).WithObjectTracker(tracker)
}
