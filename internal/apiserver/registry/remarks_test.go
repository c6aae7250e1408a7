package registry_test

import (
	"context"
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit"

	"barque.dev/internal/apiserver/registry"
)

// remarking is a plugin that remarks on what it sees, and refuses what is called "refused".
type remarking struct{}

func (remarking) Handles(admission.Operation) bool { return true }

func (remarking) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	return a.AddAnnotationWithLevel("example.org/admitted", a.GetName(), auditinternal.LevelRequest)
}

func (remarking) Validate(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if err := a.AddAnnotation("example.org/validated", a.GetName()); err != nil {
		return err
	}
	if a.GetName() == "refused" {
		return errors.New("no")
	}
	return nil
}

// TestRemarksOfAdmissionAreAudited, also those on what is refused, and by the level at which they are to be seen.
func TestRemarksOfAdmissionAreAudited(t *testing.T) {
	s := start(t, func(c *registry.Config) { c.Admission = remarking{} })
	for name, level := range map[string]auditinternal.Level{"kept": auditinternal.LevelMetadata, "refused": auditinternal.LevelRequest} {
		ctx := audit.WithAuditContext(t.Context())
		event := audit.AuditContextFrom(ctx)
		if err := event.Init(audit.RequestAuditConfig{Level: level}, nil); err != nil {
			t.Fatal(err)
		}
		cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
		_, err := s.Create(ctx, s.req("configmaps", "default", name), cm, nil)
		if (err != nil) != (name == "refused") {
			t.Errorf("%s: %v", name, err)
		}
		got := event.GetEventAnnotations()
		if got["example.org/validated"] != name || (got["example.org/admitted"] == name) != (level == auditinternal.LevelRequest) {
			t.Errorf("%s at %s: %v", name, level, got)
		}
	}
	// Without an audit log nobody listens, and all goes on.
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "unheard"}}
	if _, err := s.Create(t.Context(), s.req("configmaps", "default", "unheard"), cm, nil); err != nil {
		t.Error(err)
	}
}
