package auditlog_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/audit/policy"
	"k8s.io/apiserver/pkg/endpoints/request"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/apiserver/auditlog"
	barqueclient "barque.dev/internal/client"
)

// book keeps events; one that is broken refuses them.
type book struct {
	events []*auditinternal.Event
	broken bool
}

func (b *book) ProcessEvents(events ...*auditinternal.Event) bool {
	for _, e := range events {
		b.events = append(b.events, e.DeepCopy())
	}
	return !b.broken
}

func (b *book) Run(<-chan struct{}) error { return nil }
func (b *book) Shutdown()                 {}
func (b *book) String() string            { return "book" }

// verbs do what a test wants.
type verbs struct {
	barqueclient.Verbs
	err   error
	panic any
	seen  context.Context
}

func (v *verbs) do(ctx context.Context, result runtime.Object) (runtime.Object, error) {
	v.seen = ctx
	if v.panic != nil {
		panic(v.panic)
	}
	if v.err != nil {
		return nil, v.err
	}
	return result, nil
}

func (v *verbs) Create(ctx context.Context, _ barqueclient.Target, obj runtime.Object, _ *client.CreateOptions) (runtime.Object, error) {
	audit.AddAuditAnnotation(ctx, "example.org/seen", "yes")
	return v.do(ctx, obj)
}

func (v *verbs) Patch(ctx context.Context, _ barqueclient.Target, _ client.Patch, obj client.Object, _ *client.PatchOptions) (runtime.Object, error) {
	return v.do(ctx, obj)
}

func (v *verbs) Delete(ctx context.Context, _ barqueclient.Target, _ *client.DeleteOptions) error {
	_, err := v.do(ctx, nil)
	return err
}

func insideLog(t *testing.T, rules string) (*auditlog.Log, *book) {
	t.Helper()
	p, err := policy.LoadPolicyFromBytes([]byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n" + rules))
	if err != nil {
		t.Fatal(err)
	}
	b := &book{}
	return &auditlog.Log{Policy: policy.NewPolicyRuleEvaluator(p), Backend: b}, b
}

var (
	configMaps = barqueclient.Target{Resource: schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, Namespace: "ns", Name: "c"}
	configMap  = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "c"}, Data: map[string]string{"a": "1"}}
)

func TestInsideIsRecorded(t *testing.T) {
	l, b := insideLog(t, "- {level: RequestResponse}\n")
	v := &verbs{}
	own := l.Inside(v)
	ctx := request.WithUser(t.Context(), barqueclient.Controller("deployment-controller"))
	if _, err := own.Create(ctx, configMaps, configMap, &client.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if len(b.events) != 2 || b.events[0].Stage != auditinternal.StageRequestReceived {
		t.Fatalf("%d events", len(b.events))
	}
	e := b.events[1]
	if e.Stage != auditinternal.StageResponseComplete || e.Verb != "create" || e.User.Username != "system:serviceaccount:kube-system:deployment-controller" ||
		e.RequestURI != "/api/v1/namespaces/ns/configmaps" || e.ResponseStatus.Code != 201 || e.ObjectRef.Name != "c" || e.AuditID == "" ||
		e.Annotations["example.org/seen"] != "yes" || !strings.Contains(string(e.RequestObject.Raw), `"a":"1"`) || !strings.Contains(string(e.ResponseObject.Raw), `"kind":"ConfigMap"`) {
		t.Errorf("%+v", e)
	}

	patch := client.RawPatch(types.MergePatchType, []byte(`{"data":{}}`))
	if _, err := own.Patch(ctx, configMaps, patch, configMap, &client.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if e := b.events[3]; e.Verb != "patch" || string(e.RequestObject.Raw) != `{"data":{}}` || e.RequestURI != "/api/v1/namespaces/ns/configmaps/c" {
		t.Errorf("%+v", e)
	}

	v.err = apierrors.NewNotFound(corev1.Resource("configmaps"), "c")
	if err := own.Delete(ctx, configMaps, &client.DeleteOptions{}); !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	if e := b.events[5]; e.ResponseStatus.Code != 404 || e.ResponseStatus.Reason != metav1.StatusReasonNotFound {
		t.Errorf("%+v", e.ResponseStatus)
	}
	v.err = errors.New("odd")
	if err := own.Delete(ctx, configMaps, &client.DeleteOptions{}); !errors.Is(err, v.err) {
		t.Fatal(err)
	}
	if e := b.events[7]; e.ResponseStatus.Code != 500 {
		t.Errorf("%+v", e.ResponseStatus)
	}
	v.panic = "oh"
	func() {
		defer func() {
			if recover() != "oh" {
				t.Error("the panic is lost")
			}
		}()
		_ = own.Delete(ctx, configMaps, &client.DeleteOptions{})
	}()
	if e := b.events[9]; e.Stage != auditinternal.StagePanic {
		t.Errorf("%+v", e)
	}
}

func TestInsideByPolicy(t *testing.T) {
	l, b := insideLog(t, "- {level: None, resources: [{group: \"\", resources: [configmaps]}]}\n- {level: Metadata}\n")
	v := &verbs{}
	own := l.Inside(v)
	if _, err := own.Create(t.Context(), configMaps, configMap, &client.CreateOptions{}); err != nil || len(b.events) != 0 || audit.AuditContextFrom(v.seen) != nil {
		t.Errorf("nobody asked: %d events, %v", len(b.events), err)
	}
	secrets := configMaps
	secrets.Resource.Resource = "secrets"
	secret := &corev1.Secret{ObjectMeta: configMap.ObjectMeta}
	if _, err := own.Create(t.Context(), secrets, secret, &client.CreateOptions{}); err != nil || len(b.events) != 2 || b.events[1].RequestObject != nil || b.events[1].User.Username != "system:apiserver" {
		t.Errorf("%d events, %v", len(b.events), err)
	}
	// A part of a request that is recorded is no event of its own.
	if _, err := own.Create(audit.WithAuditContext(t.Context()), secrets, secret, &client.CreateOptions{}); err != nil || len(b.events) != 2 {
		t.Errorf("%d events, %v", len(b.events), err)
	}
	b.broken, v.seen = true, nil
	if _, err := own.Create(t.Context(), secrets, secret, &client.CreateOptions{}); !apierrors.IsInternalError(err) || v.seen != nil {
		t.Errorf("it was done though it could not be recorded: %v", err)
	}
	var none *auditlog.Log
	if none.Inside(v) != barqueclient.Verbs(v) {
		t.Error("without a log nothing stands between")
	}
}
