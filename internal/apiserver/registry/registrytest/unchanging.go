package registrytest

import (
	"context"
	"testing"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"
)

// Unchanging is admission whose plugins fail the test when they change an object, or the one that it replaces, in the
// course of validating it: they get those that are kept, and that others read.
func Unchanging(tb testing.TB, by admission.Interface) admission.Interface {
	tb.Helper()
	return unchanging{by, tb}
}

type unchanging struct {
	admission.Interface
	tb testing.TB
}

// Admit implements admission.MutationInterface.
func (u unchanging) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if m, ok := u.Interface.(admission.MutationInterface); ok {
		return m.Admit(ctx, a, o)
	}
	return nil
}

// Validate implements admission.ValidationInterface.
func (u unchanging) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	v, ok := u.Interface.(admission.ValidationInterface)
	if !ok {
		return nil
	}
	seen := []runtime.Object{a.GetObject(), a.GetOldObject()}
	before := make([]runtime.Object, len(seen))
	for i, obj := range seen {
		if obj != nil {
			before[i] = obj.DeepCopyObject()
		}
	}
	err := v.Validate(ctx, a, o)
	for i, obj := range seen {
		if obj != nil && !equality.Semantic.DeepEqual(before[i], obj) {
			u.tb.Errorf("%s of a %s: validating admission makes %+v of %+v", a.GetOperation(), a.GetKind(), obj, before[i])
		}
	}
	return err
}
