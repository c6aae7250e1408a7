package registry

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
)

// Connect asks admission about a connection to a node, pod or service. options say what is wanted
// of it, such as *corev1.PodExecOptions; plugins may change them.
func (r *Registry) Connect(ctx context.Context, req Request, options runtime.Object) error {
	ctx = r.context(ctx, req, "connect")
	options.GetObjectKind().SetGroupVersionKind(req.kind())
	return r.admit(ctx, operation{req: req, op: admission.Connect, name: req.Name}, options, nil)
}
