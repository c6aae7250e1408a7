package api

import (
	"fmt"
	"math/rand"
	"testing"

	"k8s.io/apimachinery/pkg/api/apitesting/fuzzer"
	metafuzzer "k8s.io/apimachinery/pkg/apis/meta/fuzzer"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	corefuzzer "k8s.io/kubernetes/pkg/apis/core/fuzzer"
	"k8s.io/kubernetes/pkg/registry/apps/replicaset"
	"k8s.io/kubernetes/pkg/registry/batch/job"
	"k8s.io/kubernetes/pkg/registry/certificates/certificates"
	"k8s.io/kubernetes/pkg/registry/core/configmap"
	"k8s.io/kubernetes/pkg/registry/core/event"
	"k8s.io/kubernetes/pkg/registry/core/namespace"
	"k8s.io/kubernetes/pkg/registry/core/node"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolume"
	"k8s.io/kubernetes/pkg/registry/core/persistentvolumeclaim"
	"k8s.io/kubernetes/pkg/registry/core/pod"
	"k8s.io/kubernetes/pkg/registry/core/replicationcontroller"
	"k8s.io/kubernetes/pkg/registry/core/secret"
	"k8s.io/kubernetes/pkg/registry/core/service"
	"k8s.io/kubernetes/pkg/registry/resource/resourceslice"
)

// TestFieldsEqualUpstream compares what field selectors see of random objects with what
// kube-apiserver lets them see.
func TestFieldsEqualUpstream(t *testing.T) {
	upstream := map[string]func(runtime.Object) (labels.Set, fields.Set, error){
		"pods": pod.GetAttrs, "services": service.GetAttrs, "secrets": secret.GetAttrs, "configmaps": configmap.GetAttrs,
		"namespaces": namespace.GetAttrs, "nodes": node.GetAttrs, "events": event.GetAttrs,
		"persistentvolumes": persistentvolume.GetAttrs, "persistentvolumeclaims": persistentvolumeclaim.GetAttrs,
		"replicationcontrollers": replicationcontroller.GetAttrs, "replicasets": replicaset.GetAttrs, "jobs": job.GetAttrs,
		"certificatesigningrequests": certificates.GetAttrs, "resourceslices": resourceslice.GetAttrs,
	}
	seed := rand.Int63() //nolint:gosec // a test
	fuzz := fuzzer.FuzzerFor(fuzzer.MergeFuzzerFuncs(metafuzzer.Funcs, corefuzzer.Funcs), rand.NewSource(seed), Codecs())
	for _, r := range Resources() {
		attrs, ok := upstream[r.Resource]
		if !ok || r.Group == "events.k8s.io" {
			continue
		}
		delete(upstream, r.Resource)
		internal := schema.GroupVersion{Group: r.Storage.Group, Version: runtime.APIVersionInternal}
		for range 20 {
			hub, err := Scheme().New(internal.WithKind(r.Kind))
			if err != nil {
				t.Fatal(err)
			}
			fuzz.Fill(hub)
			obj, err := Scheme().ConvertToVersion(hub, r.Storage)
			if err != nil {
				t.Fatalf("%s: %v", r.Resource, err)
			}
			_, want, err := attrs(hub)
			if err != nil {
				t.Fatalf("%s: %v", r.Resource, err)
			}
			if got := r.Fields(obj); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Fatalf("seed %d: fields of %s are\n%v, want\n%v", seed, r.Resource, got, want)
			}
			for label, values := range r.Indexes {
				if got := values(obj); len(got) != 1 || got[0] != want[label] {
					t.Fatalf("seed %d: index %s of %s is %q, want %q", seed, label, r.Resource, got, want[label])
				}
			}
		}
	}
	if len(upstream) > 0 {
		t.Errorf("not in the table: %v", upstream)
	}
}
