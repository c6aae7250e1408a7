// Package fakeclient makes clients of an API in memory that are quick enough for thousands of
// writes.
package fakeclient

import (
	"sync"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/testing"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

// kinds are the built-in ones, definitions of custom resources among them. It is made once, and only read then.
var kinds = sync.OnceValue(func() *runtime.Scheme {
	types := runtime.NewScheme()
	utilruntime.Must(scheme.AddToScheme(types))
	utilruntime.Must(apiextensionsv1.AddToScheme(types))
	utilruntime.Must(apiregistrationv1.AddToScheme(types))
	return types
})

// Builder is controller-runtime's, for the built-in kinds, without managed fields: the default
// tracker builds a REST mapper of all kinds to compute them at every write. Policies, quotas
// and APIServices have a status, which controller-runtime does not know.
func Builder() *fake.ClientBuilder {
	types := kinds()
	tracker := testing.NewObjectTracker(types, serializer.NewCodecFactory(types).UniversalDecoder())
	return fake.NewClientBuilder().WithScheme(types).WithObjectTracker(tracker).
		WithStatusSubresource(&admissionv1.ValidatingAdmissionPolicy{}, &corev1.ResourceQuota{}, &apiregistrationv1.APIService{})
}
