package apiserver

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/registry"
)

// TestWhatIsNotAuditedCostsNothing goes through all that a request comes by.
func TestWhatIsNotAuditedCostsNothing(t *testing.T) {
	pod := &corev1.Pod{}
	status := &metav1.Status{}
	opts := &metav1.DeleteOptions{}
	w := &response{ResponseWriter: httptest.NewRecorder()}
	n := testing.AllocsPerRun(100, func() {
		var r *recorder
		r.decided("allow", "because")
		r.request(operation{}, pod)
		r.options(operation{}, opts)
		r.patch(types.MergePatchType, nil)
		r.status(status)
		if r.shows(auditinternal.LevelRequestResponse) {
			t.Fatal("nothing is shown")
		}
		w.begin(http.StatusOK)
		r.end(nil)
	})
	if n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// sealed is an object that nobody may encode.
type sealed struct{ *corev1.Secret }

func (sealed) MarshalJSON() ([]byte, error)     { return nil, errors.New("it is encoded") }
func (s sealed) DeepCopyObject() runtime.Object { panic("it is copied") }

// TestMetadataIsAllThatIsRead makes sure that an object is neither encoded nor copied at a level that does not show it.
func TestMetadataIsAllThatIsRead(t *testing.T) {
	ctx := withAudit(context.Background(), "id")
	event := audit.AuditContextFrom(ctx)
	sink := &lastEvent{}
	if err := event.Init(audit.RequestAuditConfig{Level: auditinternal.LevelMetadata, OmitManagedFields: true}, sink); err != nil {
		t.Fatal(err)
	}
	r := &recorder{AuditContext: event, ctx: ctx, level: auditinternal.LevelMetadata, omitFields: true}
	secrets := api.Resources()[0]
	for _, res := range api.Resources() {
		if res.Group == "" && res.Resource == "secrets" {
			secrets = res
		}
	}
	o := operation{call: &call{}, target: registry.Request{Resource: secrets, Version: "v1", Namespace: "ns"}, kind: secrets.GVK("v1")}
	o.call.resource = secrets
	obj := sealed{&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "ns", UID: "u"}, Data: map[string][]byte{"a": []byte("secret")}}}
	r.request(o, obj)
	r.patch(types.MergePatchType, []byte(`{}`))
	r.begin(http.StatusCreated)
	r.end(nil)
	e := sink.event
	if e == nil || e.RequestObject != nil || e.ObjectRef == nil || e.ObjectRef.Name != "s" || e.ObjectRef.UID != "u" || e.ObjectRef.Resource != "secrets" {
		t.Errorf("%+v", e)
	}
}

type lastEvent struct{ event *auditinternal.Event }

func (s *lastEvent) ProcessEvents(events ...*auditinternal.Event) bool {
	s.event = events[len(events)-1].DeepCopy()
	return true
}

func TestManagedFieldsAreLeftOut(t *testing.T) {
	for in, want := range map[string]string{
		`{"kind":"A","metadata":{"name":"a","managedFields":[{}]},"n":12345678901234567890}`: `{"kind":"A","metadata":{"name":"a"},"n":12345678901234567890}`,
		`{"items":[{"metadata":{"managedFields":[]}},{"metadata":{"name":"b"}}]}`:            `{"items":[{"metadata":{}},{"metadata":{"name":"b"}}]}`,
		`{"rows":[{"object":{"metadata":{"managedFields":[1]}}}]}`:                           `{"rows":[{"object":{"metadata":{}}}]}`,
		`{"items":{"metadata":1},"metadata":"x"}`:                                            `{"items":{"metadata":1},"metadata":"x"}`,
	} {
		got, err := withoutManagedFields([]byte(in))
		if err != nil || string(got) != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
	if _, err := withoutManagedFields([]byte(`[`)); err == nil {
		t.Error("no error for what is not JSON")
	}
}
