package registry

import (
	"context"

	"k8s.io/apiserver/pkg/admission"

	"barque.dev/internal/tracing"
)

// remarked makes admission's remarks on a request part of its audit event, and each question a span of its trace.
func remarked(by admission.Interface) admission.Interface {
	if by == nil {
		return nil
	}
	return spanned{admission.WithAudit(by)}
}

type spanned struct{ admission.Interface }

// Admit implements admission.MutationInterface.
func (s spanned) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	plugins, ok := s.Interface.(admission.MutationInterface)
	if !ok {
		return nil
	}
	ctx, span := tracing.Start(ctx, "Mutating admission")
	err := plugins.Admit(ctx, a, o)
	span.End(err)
	return err
}

// Validate implements admission.ValidationInterface.
func (s spanned) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	plugins, ok := s.Interface.(admission.ValidationInterface)
	if !ok {
		return nil
	}
	ctx, span := tracing.Start(ctx, "Validating admission")
	err := plugins.Validate(ctx, a, o)
	span.End(err)
	return err
}
