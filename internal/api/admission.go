package api

import (
	_ "k8s.io/kubernetes/pkg/apis/admissionregistration/install"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingadmissionpolicy"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingadmissionpolicybinding"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/mutatingwebhookconfiguration"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/validatingadmissionpolicy"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/validatingadmissionpolicybinding"
	"k8s.io/kubernetes/pkg/registry/admissionregistration/validatingwebhookconfiguration"
)

func admissionResources() []*Resource {
	extensions := []string{"api-extensions"}
	auth, policies, kinds := contextAuthorizer{}, contextPolicies{}, contextResolver{}
	validating := validatingadmissionpolicy.NewStrategy(auth, kinds)
	return define("admissionregistration.k8s.io",
		definition{resource: "mutatingadmissionpolicies", kind: "MutatingAdmissionPolicy", categories: extensions, cluster: true,
			strategy: mutatingadmissionpolicy.NewStrategy(auth, kinds)},
		definition{resource: "mutatingadmissionpolicybindings", kind: "MutatingAdmissionPolicyBinding", categories: extensions, cluster: true,
			strategy: mutatingadmissionpolicybinding.NewStrategy(auth, policies, kinds)},
		definition{resource: "mutatingwebhookconfigurations", kind: "MutatingWebhookConfiguration", categories: extensions, cluster: true,
			strategy: mutatingwebhookconfiguration.Strategy},
		definition{resource: "validatingadmissionpolicies", kind: "ValidatingAdmissionPolicy", categories: extensions, cluster: true,
			strategy: validating, status: validatingadmissionpolicy.NewStatusStrategy(validating)},
		definition{resource: "validatingadmissionpolicybindings", kind: "ValidatingAdmissionPolicyBinding", categories: extensions, cluster: true,
			strategy: validatingadmissionpolicybinding.NewStrategy(auth, policies, kinds)},
		definition{resource: "validatingwebhookconfigurations", kind: "ValidatingWebhookConfiguration", categories: extensions, cluster: true,
			strategy: validatingwebhookconfiguration.Strategy},
	)
}
