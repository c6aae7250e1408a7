package api

import (
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kubernetes/pkg/kubeapiserver/admission/exclusion"
)

// Unintercepted returns the virtual resources that neither webhooks nor policies see: a cluster whose
// questions of access they could refuse might lock everybody out.
func Unintercepted() []schema.GroupResource { return exclusion.Excluded() }
