package registry_test

import (
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"barque.dev/internal/apiserver/registry"
)

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: sa
      containers:
      - {name: a, image: "example/a:1"}
      - {name: b, image: "example/b:1"}
`

// What an object can't be made of is its sender's fault.
func TestUnreadableConfigurations(t *testing.T) {
	s := start(t, nil)
	create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("one", nil))
	for _, body := range []string{
		`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"one"},"data":{"x":[1]}}`,
		`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"one"},"dta":{"x":"y"}}`,
		`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"one","creationTimestamp":"yesterday"}}`,
	} {
		_, _, err := s.Patch(t.Context(), s.req("configmaps", "default", "one"), types.ApplyYAMLPatchType, []byte(body), &metav1.PatchOptions{FieldManager: "m"})
		if !apierrors.IsBadRequest(err) {
			t.Errorf("%s: %v", body, err)
		}
	}
}

// Dry runs show what would be read afterwards.
func TestDryRunsHaveDefaults(t *testing.T) {
	s := start(t, nil)
	claim := decode[*corev1.PersistentVolumeClaim](t, `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: c, namespace: default}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
`)
	result, err := s.Create(t.Context(), s.req("persistentvolumeclaims", "default", ""), claim, &metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		t.Fatal(err)
	}
	if got := kept[*corev1.PersistentVolumeClaim](s, result); got.Status.Phase != corev1.ClaimPending {
		t.Errorf("phase %q", got.Status.Phase)
	}
}

func TestPatches(t *testing.T) {
	s := start(t, nil)
	create[*appsv1.Deployment](s, "deployments.apps", "default", decode[*appsv1.Deployment](t, deployment))
	req := s.req("deployments.apps", "default", "web")
	images := func(d *appsv1.Deployment) string {
		var out []string
		for _, c := range d.Spec.Template.Spec.Containers {
			out = append(out, c.Name+"="+c.Image)
		}
		return strings.Join(out, " ")
	}
	for _, step := range []struct {
		name, body, want string
		kind             types.PatchType
	}{
		{"strategic", `{"spec":{"template":{"spec":{"containers":[{"name":"b","image":"example/b:2"}]}}}}`,
			"a=example/a:1 b=example/b:2", types.StrategicMergePatchType},
		{"json", `[{"op":"test","path":"/spec/replicas","value":2},{"op":"replace","path":"/spec/template/spec/containers/0/image","value":"example/a:3"}]`,
			"a=example/a:3 b=example/b:2", types.JSONPatchType},
		{"merge", `{"spec":{"template":{"spec":{"containers":[{"name":"c","image":"example/c:4"}]}}}}`,
			"c=example/c:4", types.MergePatchType},
	} {
		result, created, err := s.Patch(t.Context(), req, step.kind, []byte(step.body), &metav1.PatchOptions{FieldManager: step.name})
		if err != nil || created {
			t.Fatalf("%s: %v", step.name, err)
		}
		if got := images(kept[*appsv1.Deployment](s, result)); got != step.want {
			t.Errorf("%s: containers are %s, want %s", step.name, got, step.want)
		}
	}
	for _, bad := range []struct {
		body string
		kind types.PatchType
		is   func(error) bool
	}{
		{`[{"op":"test","path":"/spec/replicas","value":7}]`, types.JSONPatchType, apierrors.IsInvalid},
		{`{"metadata":{"resourceVersion":"1"}}`, types.MergePatchType, apierrors.IsConflict},
		{`{"metadata":{"name":"other"}}`, types.MergePatchType, apierrors.IsBadRequest},
		{`{"spec":{"replicas":-1}}`, types.MergePatchType, apierrors.IsInvalid},
		{`{`, types.StrategicMergePatchType, apierrors.IsBadRequest},
	} {
		if _, _, err := s.Patch(t.Context(), req, bad.kind, []byte(bad.body), nil); err == nil || !bad.is(err) {
			t.Errorf("%s: %v", bad.body, err)
		}
	}
	_, _, err := s.Patch(t.Context(), req, types.MergePatchType, []byte(`{"spec":{"unheard":1}}`),
		&metav1.PatchOptions{FieldValidation: metav1.FieldValidationStrict})
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "unknown field") {
		t.Errorf("an unknown field: %v", err)
	}
	if _, _, err = s.Patch(t.Context(), s.req("deployments.apps", "default", "none"), types.MergePatchType, []byte(`{}`), nil); !apierrors.IsNotFound(err) {
		t.Errorf("a patch of what is not there: %v", err)
	}
}

// Whoever patches one of two fields that say the same owns what has come of it: the address range of a node that is told
// once wins over the list of them.
func TestPatchesOfFieldsWithTwoSpellings(t *testing.T) {
	for kind, body := range map[types.PatchType]string{
		types.StrategicMergePatchType: `{"spec":{"podCIDR":"10.42.77.0/24","podCIDRs":["fe80::/64"]}}`,
		types.MergePatchType:          `{"spec":{"podCIDR":"10.42.77.0/24","podCIDRs":["fe80::/64"]}}`,
		types.JSONPatchType:           `[{"op":"add","path":"/spec/podCIDR","value":"10.42.77.0/24"},{"op":"add","path":"/spec/podCIDRs","value":["fe80::/64"]}]`,
	} {
		s := start(t, nil)
		create[*corev1.Node](s, "nodes", "", decode[*corev1.Node](t, "apiVersion: v1\nkind: Node\nmetadata: {name: node1, labels: {a: b}}\n"))
		result, _, err := s.Patch(t.Context(), s.req("nodes", "", "node1"), kind, []byte(body), &metav1.PatchOptions{FieldManager: "m"})
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		node := kept[*corev1.Node](s, result)
		owned := asJSON(t, node.ManagedFields)
		if len(node.Spec.PodCIDRs) != 1 || node.Spec.PodCIDRs[0] != "10.42.77.0/24" || !strings.Contains(owned, "10.42.77.0/24") || strings.Contains(owned, "fe80::/64") {
			t.Errorf("%s: the ranges are %v, owned are %s", kind, node.Spec.PodCIDRs, owned)
		}
	}
}

// TestPatchesOfWhatIsNotThere: a PUT may create some kinds, a patch none but by apply. Event recorders count on it: they
// create an event that they could not patch.
func TestPatchesOfWhatIsNotThere(t *testing.T) {
	s := start(t, nil)
	for resource, applied := range map[string]string{
		"events":                     `{"apiVersion":"v1","kind":"Event","metadata":{"name":"x","namespace":"default"},"involvedObject":{"kind":"Pod","namespace":"default","name":"p"}}`,
		"events.events.k8s.io":       `{"apiVersion":"events.k8s.io/v1","kind":"Event","metadata":{"name":"y","namespace":"default"},"eventTime":"2026-01-01T00:00:00.000000Z","reportingController":"a","reportingInstance":"b","action":"c","reason":"d","type":"Normal","regarding":{"namespace":"default"}}`,
		"leases.coordination.k8s.io": `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"x","namespace":"default"}}`,
		"configmaps":                 `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x","namespace":"default"}}`,
	} {
		name := "x"
		if strings.Contains(applied, `"y"`) {
			name = "y"
		}
		req := s.req(resource, "default", name)
		for kind, body := range map[types.PatchType]string{
			types.MergePatchType: `{"metadata":{"labels":{"a":"b"}}}`, types.StrategicMergePatchType: `{"metadata":{"labels":{"a":"b"}}}`,
			types.JSONPatchType: `[{"op":"add","path":"/metadata/labels","value":{"a":"b"}}]`,
		} {
			if _, _, err := s.Patch(t.Context(), req, kind, []byte(body), nil); !apierrors.IsNotFound(err) {
				t.Errorf("%s of %s: %v", kind, resource, err)
			}
		}
		if _, created, err := apply(s, req, "me", applied, false); err != nil || !created {
			t.Errorf("apply of %s: %v, created %v", resource, err, created)
		}
	}
	lease := decode[*coordinationv1.Lease](t, `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"put","namespace":"default"}}`)
	if _, created, err := s.Update(t.Context(), s.req("leases.coordination.k8s.io", "default", "put"), lease, nil); err != nil || !created {
		t.Errorf("a PUT: %v, created %v", err, created)
	}
}

// TestPatchThatCopiesItsCopies: each operation doubles the object. Twelve stay small enough, with thirty it
// would fill any memory, with twenty the test's.
func TestPatchThatCopiesItsCopies(t *testing.T) {
	s := start(t, nil)
	create[*corev1.ConfigMap](s, "configmaps", "default", decode[*corev1.ConfigMap](t,
		`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x","namespace":"default"},"data":{"k":"0123456789"}}`))
	doubling := func(times int) []byte {
		operations := []string{`{"op":"add","path":"/copies","value":{"a":"0123456789"}}`}
		for i := range times {
			operations = append(operations, fmt.Sprintf(`{"op":"copy","from":"/copies","path":"/copies/c%d"}`, i))
		}
		return []byte("[" + strings.Join(append(operations, `{"op":"remove","path":"/copies"}`), ",") + "]")
	}
	for times, fits := range map[int]bool{12: true, 20: false} {
		_, _, err := s.Patch(t.Context(), s.req("configmaps", "default", "x"), types.JSONPatchType, doubling(times), nil)
		if fits && err != nil || !fits && apierrors.ReasonForError(err) != metav1.StatusReasonInvalid {
			t.Errorf("%d copies: %v", times, err)
		}
	}
}

func apply(s *server, req registry.Request, manager, body string, force bool) (registry.Result, bool, error) {
	return s.Patch(s.tb.Context(), req, types.ApplyYAMLPatchType, []byte(body), &metav1.PatchOptions{FieldManager: manager, Force: &force})
}

func TestServerSideApply(t *testing.T) {
	s := start(t, nil)
	req := s.req("deployments.apps", "default", "web")
	result, created, err := apply(s, req, "first", deployment, false)
	if err != nil || !created {
		t.Fatalf("create by apply: %v, created %v", err, created)
	}
	made := kept[*appsv1.Deployment](s, result)
	if len(made.ManagedFields) != 1 || made.ManagedFields[0].Operation != metav1.ManagedFieldsOperationApply {
		t.Errorf("managed fields are %s", asJSON(t, made.ManagedFields))
	}
	if _, _, err = apply(s, req, "first", deployment, false); err != nil {
		t.Fatal(err)
	}
	if got := get[*appsv1.Deployment](s, "deployments.apps", "default", "web"); got.ResourceVersion != made.ResourceVersion {
		t.Error("applying the same again wrote something")
	}
	more := strings.Replace(deployment, "replicas: 2", "replicas: 5", 1)
	_, _, err = apply(s, req, "second", more, false)
	if !apierrors.IsConflict(err) || !strings.Contains(err.Error(), `conflict with "first"`) {
		t.Errorf("a second manager: %v", err)
	}
	if result, _, err = apply(s, req, "second", more, true); err != nil || *kept[*appsv1.Deployment](s, result).Spec.Replicas != 5 {
		t.Errorf("by force: %v", err)
	}
	less := strings.Replace(deployment, `      - {name: b, image: "example/b:1"}`, "", 1)
	less = strings.Replace(less, "replicas: 2", "replicas: 5", 1)
	for _, m := range []string{"first", "second"} {
		if result, _, err = apply(s, req, m, less, true); err != nil {
			t.Fatal(err)
		}
	}
	if got := kept[*appsv1.Deployment](s, result); len(got.Spec.Template.Spec.Containers) != 1 {
		t.Errorf("a container that nobody wants any more is still there: %s", asJSON(t, got.Spec.Template.Spec.Containers))
	}
}

func TestScale(t *testing.T) {
	s := start(t, nil)
	made := create[*appsv1.Deployment](s, "deployments.apps", "default", decode[*appsv1.Deployment](t, deployment))
	req := s.sub("deployments.apps", "default", "web", "scale")
	result, err := s.Get(t.Context(), req, nil)
	if err != nil {
		t.Fatal(err)
	}
	scale := kept[*autoscalingv1.Scale](s, result)
	if scale.Spec.Replicas != 2 || scale.Status.Selector != "app=web" || scale.ResourceVersion != made.ResourceVersion || scale.UID != made.UID {
		t.Errorf("scale is %s", asJSON(t, scale))
	}
	stale := scale.DeepCopy()
	scale.Spec.Replicas = 3
	if result, _, err = s.Update(t.Context(), req, scale, &metav1.UpdateOptions{FieldManager: "scaler"}); err != nil {
		t.Fatal(err)
	}
	if got := kept[*autoscalingv1.Scale](s, result); got.Spec.Replicas != 3 || got.Kind != "Scale" {
		t.Errorf("scale is %s", asJSON(t, got))
	}
	got := get[*appsv1.Deployment](s, "deployments.apps", "default", "web")
	if *got.Spec.Replicas != 3 || got.Generation != 2 {
		t.Errorf("deployment is %s", asJSON(t, got))
	}
	owner := ""
	for _, m := range got.ManagedFields {
		if strings.Contains(m.FieldsV1.GetRawString(), "f:replicas") {
			owner += m.Manager + "/" + m.Subresource + " "
		}
	}
	if owner != "scaler/scale " {
		t.Errorf("replicas belong to %q: %s", owner, asJSON(t, got.ManagedFields))
	}
	if _, _, err = s.Update(t.Context(), req, stale, nil); !apierrors.IsConflict(err) {
		t.Errorf("a stale scale: %v", err)
	}
	if _, _, err = s.Patch(t.Context(), req, types.MergePatchType, []byte(`{"spec":{"replicas":1}}`), nil); err != nil {
		t.Error(err)
	}
	if _, _, err = s.Patch(t.Context(), req, types.MergePatchType, []byte(`{"spec":{"replicas":-1}}`), nil); !apierrors.IsInvalid(err) {
		t.Errorf("fewer than none: %v", err)
	}
	_, _, err = apply(s, req, "me", `{"apiVersion":"autoscaling/v1","kind":"Scale","metadata":{"name":"web","namespace":"default"},"spec":{"replicas":4}}`, true)
	if err != nil {
		t.Error(err)
	}
	if got = get[*appsv1.Deployment](s, "deployments.apps", "default", "web"); *got.Spec.Replicas != 4 {
		t.Errorf("replicas are %d", *got.Spec.Replicas)
	}
}

func TestVersionsOfOneKind(t *testing.T) {
	s := start(t, nil)
	v1 := s.req("horizontalpodautoscalers.autoscaling", "default", "")
	v1.Version = "v1"
	hpa := decode[*autoscalingv1.HorizontalPodAutoscaler](t, `
apiVersion: autoscaling/v1
kind: HorizontalPodAutoscaler
metadata: {name: web, namespace: default}
spec: {maxReplicas: 5, targetCPUUtilizationPercentage: 70, scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}}
`)
	result, err := s.Create(t.Context(), v1, hpa, &metav1.CreateOptions{FieldManager: "test"})
	if err != nil {
		t.Fatal(err)
	}
	got := kept[*autoscalingv2.HorizontalPodAutoscaler](s, result)
	if len(got.Spec.Metrics) != 1 || *got.Spec.Metrics[0].Resource.Target.AverageUtilization != 70 {
		t.Errorf("kept as %s", asJSON(t, got.Spec))
	}
	if got.ManagedFields[0].APIVersion != "autoscaling/v1" {
		t.Errorf("managed fields are of %s", got.ManagedFields[0].APIVersion)
	}
	v1.Name = "web"
	if _, _, err = s.Patch(t.Context(), v1, types.MergePatchType, []byte(`{"spec":{"targetCPUUtilizationPercentage":80}}`), nil); err != nil {
		t.Fatal(err)
	}
	got = get[*autoscalingv2.HorizontalPodAutoscaler](s, "horizontalpodautoscalers.autoscaling", "default", "web")
	if *got.Spec.Metrics[0].Resource.Target.AverageUtilization != 80 {
		t.Errorf("kept as %s", asJSON(t, got.Spec))
	}
}

// TestManagedFieldsOfTwoSpellings: stock records both spellings of a field that has two.
func TestManagedFieldsOfTwoSpellings(t *testing.T) {
	s := start(t, nil)
	made := create[*appsv1.Deployment](s, "deployments.apps", "default", decode[*appsv1.Deployment](t, deployment))
	fields := made.ManagedFields[0].FieldsV1.GetRawString()
	if !strings.Contains(fields, `"f:serviceAccount":{}`) || !strings.Contains(fields, `"f:serviceAccountName":{}`) {
		t.Errorf("managed fields are %s", fields)
	}
}
