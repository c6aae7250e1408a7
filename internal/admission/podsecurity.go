package admission

import (
	"context"
	"errors"
	"fmt"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/warning"
	podsecurity "k8s.io/pod-security-admission/admission"
	"k8s.io/pod-security-admission/admission/api/load"
	podsecurityapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/metrics"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// PodSecurity holds pods, and what makes pods, to the Pod Security Standards that the labels of
// their namespace choose: to enforce, to audit, to warn of (KEP-2579). Without labels everything
// is let in, and nobody is exempt.
type PodSecurity struct {
	*admission.Handler
	standards *podsecurity.Admission
}

var _ admission.ValidationInterface = (*PodSecurity)(nil)

// NewPodSecurity makes the plugin. recorder counts what it decides.
func NewPodSecurity(reader client.Reader, recorder metrics.Recorder) (*PodSecurity, error) {
	config, err := load.LoadFromReader(nil)
	if err != nil {
		return nil, fmt.Errorf("configure PodSecurity: %w", err)
	}
	checks, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		return nil, fmt.Errorf("configure PodSecurity: %w", err)
	}
	standards := &podsecurity.Admission{
		Configuration: config, Evaluator: checks, Metrics: recorder, PodSpecExtractor: podsecurity.DefaultPodSpecExtractor{},
		NamespaceGetter: securityReader{reader}, PodLister: securityReader{reader},
	}
	if err := standards.CompleteConfiguration(); err != nil {
		return nil, fmt.Errorf("configure PodSecurity: %w", err)
	}
	if err := standards.ValidateConfiguration(); err != nil {
		return nil, fmt.Errorf("configure PodSecurity: %w", err)
	}
	return &PodSecurity{Handler: admission.NewHandler(admission.Create, admission.Update), standards: standards}, nil
}

// Validate implements admission.ValidationInterface.
func (p *PodSecurity) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	gr := a.GetResource().GroupResource()
	if gr != (schema.GroupResource{Resource: "namespaces"}) && !p.standards.PodSpecExtractor.HasPodSpec(gr) {
		return nil
	}
	response := p.standards.Validate(ctx, securityAttributes{a})
	for _, w := range response.Warnings {
		warning.AddWarning(ctx, "", w)
	}
	for key, value := range response.AuditAnnotations {
		audit.AddAuditAnnotation(ctx, podsecurityapi.AuditAnnotationPrefix+key, value)
	}
	if response.Allowed {
		return nil
	}
	return securityError(a, response.Result)
}

// securityError makes the answer to a request that was refused.
func securityError(a admission.Attributes, result *metav1.Status) error {
	err := admission.NewForbidden(a, errors.New("not allowed by PodSecurity"))
	var status *apierrors.StatusError
	if result == nil || !errors.As(err, &status) {
		return err
	}
	if result.Message != "" {
		status.ErrStatus.Message = result.Message
	}
	if result.Reason != "" {
		status.ErrStatus.Reason = result.Reason
	}
	if result.Details != nil {
		status.ErrStatus.Details = result.Details
	}
	if result.Code != 0 {
		status.ErrStatus.Code = result.Code
	}
	return status
}

// securityAttributes are a request as the standards see it.
type securityAttributes struct{ admission.Attributes }

func (s securityAttributes) GetObject() (runtime.Object, error) { return s.Attributes.GetObject(), nil }
func (s securityAttributes) GetOldObject() (runtime.Object, error) {
	return s.Attributes.GetOldObject(), nil
}
func (s securityAttributes) GetOperation() admissionv1.Operation {
	return admissionv1.Operation(s.Attributes.GetOperation())
}

func (s securityAttributes) GetUserName() string {
	if u := s.GetUserInfo(); u != nil {
		return u.GetName()
	}
	return ""
}

// securityReader reads what the standards ask for.
type securityReader struct{ client.Reader }

func (r securityReader) GetNamespace(ctx context.Context, name string) (*corev1.Namespace, error) {
	var namespace corev1.Namespace
	if err := r.Get(ctx, client.ObjectKey{Name: name}, &namespace); err != nil {
		return nil, err
	}
	return &namespace, nil
}

func (r securityReader) ListPods(ctx context.Context, namespace string) ([]*corev1.Pod, error) {
	var list corev1.PodList
	if err := r.List(ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, err
	}
	pods := make([]*corev1.Pod, len(list.Items))
	for i := range list.Items {
		pods[i] = &list.Items[i]
	}
	return pods, nil
}
