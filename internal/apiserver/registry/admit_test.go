package registry

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/warning"
)

type heard []string

func (h *heard) AddWarning(_, text string) { *h = append(*h, text) }

func TestAdmissionMayChangeTheRecordOfFieldsIfItMakesSense(t *testing.T) {
	entry := func(manager, fields string) metav1.ManagedFieldsEntry {
		return metav1.ManagedFieldsEntry{
			Manager: manager, Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "v1", FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(fields),
		}
	}
	before := []metav1.ManagedFieldsEntry{entry("a", `{"f:spec":{}}`)}
	for name, tt := range map[string]struct {
		after   []metav1.ManagedFieldsEntry
		want    string
		warning string
	}{
		"untouched": {before, "a", ""},
		"changed":   {[]metav1.ManagedFieldsEntry{entry("b", `{"f:spec":{}}`)}, "b", ""},
		"ruined":    {[]metav1.ManagedFieldsEntry{entry("b", `{"nonsense":{}}`)}, "a", "invalid state after admission"},
	} {
		t.Run(name, func(t *testing.T) {
			var said heard
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{ManagedFields: before}}
			record := fieldsRecord(pod)
			pod.ManagedFields = tt.after
			guardRecord(warning.WithWarningRecorder(context.Background(), &said), pod, record)
			if len(pod.ManagedFields) != 1 || pod.ManagedFields[0].Manager != tt.want {
				t.Errorf("the record is %v, want %s's", pod.ManagedFields, tt.want)
			}
			if got := strings.Join(said, "; "); !strings.Contains(got, tt.warning) || (tt.warning == "") != (got == "") {
				t.Errorf("warned %q, want %q", got, tt.warning)
			}
		})
	}
}
