package admission_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	stock "k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/warning"

	"barque.dev/internal/admission"
)

// warnings collects what clients are told.
type warnings []string

func (w *warnings) AddWarning(_, text string) { *w = append(*w, text) }

func TestPodSecurity(t *testing.T) {
	namespace := func(labels ...string) *corev1.Namespace {
		n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: map[string]string{}}}
		for i := 0; i < len(labels); i += 2 {
			n.Labels["pod-security.kubernetes.io/"+labels[i]] = labels[i+1]
		}
		return n
	}
	privileged := pod(func(p *corev1.Pod) {
		yes := true
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &yes}
	})
	deployment := &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{Spec: privileged.Spec}}}
	changed := privileged.DeepCopy()
	changed.Labels = map[string]string{"x": "y"}
	for name, tt := range map[string]struct {
		namespace *corev1.Namespace
		op        stock.Operation
		resource  string
		obj, old  runtime.Object
		want      string // refusal
		warning   string
	}{
		"no labels":                {namespace(), stock.Create, "pods", privileged, nil, "", ""},
		"baseline":                 {namespace("enforce", "baseline"), stock.Create, "pods", privileged, nil, `violates PodSecurity "baseline:latest": privileged`, ""},
		"baseline lets plain in":   {namespace("enforce", "baseline"), stock.Create, "pods", pod(), nil, "", ""},
		"restricted":               {namespace("enforce", "restricted"), stock.Create, "pods", pod(), nil, `violates PodSecurity "restricted:latest"`, ""},
		"a pinned version":         {namespace("enforce", "restricted", "enforce-version", "v1.25"), stock.Create, "pods", pod(), nil, `"restricted:v1.25"`, ""},
		"warn":                     {namespace("warn", "baseline"), stock.Create, "pods", privileged, nil, "", "would violate PodSecurity"},
		"audit":                    {namespace("audit", "restricted"), stock.Create, "pods", privileged, nil, "", ""},
		"workloads are warned of":  {namespace("enforce", "baseline"), stock.Create, "deployments.apps", deployment, nil, "", "would violate PodSecurity"},
		"workloads without a word": {namespace("enforce", "baseline", "warn", "privileged"), stock.Create, "deployments.apps", deployment, nil, "", ""},
		"labels of a running pod":  {namespace("enforce", "baseline"), stock.Update, "pods", changed, privileged, "", ""},
		"a label that is not one":  {namespace(), stock.Create, "namespaces", namespace("enforce", "strict"), nil, "must be one of privileged, baseline, restricted", ""},
		"a namespace with pods":    {namespace(), stock.Update, "namespaces", namespace("enforce", "baseline"), namespace(), "", "existing pods in namespace"},
		"an unknown level is safe": {namespace("enforce", "strict"), stock.Create, "pods", pod(), nil, `"restricted:latest"`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			runs := privileged.DeepCopy()
			runs.Name = "runs"
			metrics := prometheus.NewPedanticRegistry()
			chain, err := admission.Default(admission.Config{Reader: reader(tt.namespace, runs), Metrics: metrics})
			if err != nil {
				t.Fatal(err)
			}
			security := chain[slices.IndexFunc(chain, func(p admission.Plugin) bool { return p.Name == "PodSecurity" })]
			var told warnings
			ctx := warning.WithWarningRecorder(context.Background(), &told)
			expect(t, admission.Chain{security}.Validate(ctx, about(tt.op, tt.resource, "", tt.obj, tt.old), nil), tt.want)
			if got := strings.Join(told, "\n"); (got == "") != (tt.warning == "") || !strings.Contains(got, tt.warning) {
				t.Errorf("warnings: %q, want %q", got, tt.warning)
			}
			if n, err := testutil.GatherAndCount(metrics, "pod_security_evaluations_total"); err != nil || tt.resource == "pods" && tt.op == stock.Create && n == 0 {
				t.Errorf("evaluations: %d, %v", n, err)
			}
		})
	}
}
