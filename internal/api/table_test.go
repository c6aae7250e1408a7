package api

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/resourceconfig"
	"k8s.io/apiserver/pkg/util/compatibility"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration"
	"k8s.io/kubernetes/pkg/kubeapiserver"
)

// upstreamDiscovery reads the discovery documents that the Kubernetes module publishes.
func upstreamDiscovery(t *testing.T, gv schema.GroupVersion) metav1.APIResourceList {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes").Output()
	if err != nil {
		t.Fatalf("find the kubernetes module: %v", err)
	}
	name := "api__v1.json"
	if gv.Group != "" {
		name = "apis__" + gv.Group + "__" + gv.Version + ".json"
	}
	data, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "api", "discovery", name))
	if err != nil {
		t.Fatalf("discovery of %s: %v", gv, err)
	}
	var list metav1.APIResourceList
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatalf("discovery of %s: %v", gv, err)
	}
	return list
}

// stableGroups are the group versions that this table serves.
func stableGroups() []schema.GroupVersion {
	var out []schema.GroupVersion
	for _, r := range Resources() {
		for _, v := range r.Served {
			gv := schema.GroupVersion{Group: r.Group, Version: v}
			if !slices.Contains(out, gv) {
				out = append(out, gv)
			}
		}
	}
	return out
}

// TestTableEqualsUpstreamDiscovery holds the table to what kube-apiserver publishes.
func TestTableEqualsUpstreamDiscovery(t *testing.T) {
	// Not served: componentstatuses is deprecated since v1.19 and tells about a cluster's
	// processes, of which Barque has other ones.
	left := []string{"componentstatuses"}
	groups := stableGroups()
	if len(groups) != 23 {
		t.Fatalf("%d group versions: %v", len(groups), groups)
	}
	for _, gv := range groups {
		t.Run(gv.String(), func(t *testing.T) {
			seen := map[string]bool{}
			for _, want := range upstreamDiscovery(t, gv).APIResources {
				if slices.Contains(left, want.Name) {
					continue
				}
				seen[want.Name] = true
				compare(t, gv, want)
			}
			for _, r := range Resources() {
				if r.Group != gv.Group || !r.Serves(gv.Version) {
					continue
				}
				if !seen[r.Resource] {
					t.Errorf("%s is not in upstream's discovery", r.Resource)
				}
				for name := range r.Subresources {
					if !seen[r.Resource+"/"+name] {
						t.Errorf("%s/%s is not in upstream's discovery", r.Resource, name)
					}
				}
			}
		})
	}
}

func compare(t *testing.T, gv schema.GroupVersion, want metav1.APIResource) {
	t.Helper()
	name, sub, isSub := strings.Cut(want.Name, "/")
	i := slices.IndexFunc(Resources(), func(r *Resource) bool { return r.Group == gv.Group && r.Resource == name })
	if i < 0 {
		t.Errorf("%s is missing", want.Name)
		return
	}
	r := Resources()[i]
	if r.Namespaced != want.Namespaced {
		t.Errorf("%s: namespaced is %v, want %v", want.Name, r.Namespaced, want.Namespaced)
	}
	equal := func(what string, got, want []string) {
		t.Helper()
		got, want = slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))
		if !slices.Equal(got, want) {
			t.Errorf("%s: %s are %v, want %v", name+"/"+sub, what, got, want)
		}
	}
	if !isSub {
		equal("verbs", r.Verbs, want.Verbs)
		equal("short names", r.ShortNames, want.ShortNames)
		equal("categories", r.Categories, want.Categories)
		if r.Singular != want.SingularName || r.Kind != want.Kind {
			t.Errorf("%s: singular and kind are %s and %s, want %s and %s", name, r.Singular, r.Kind, want.SingularName, want.Kind)
		}
		return
	}
	s, ok := r.Subresources[sub]
	if !ok {
		t.Errorf("%s is missing", want.Name)
		return
	}
	equal("verbs", s.Verbs, want.Verbs)
	if s.Kind.Kind != want.Kind {
		t.Errorf("%s: kind is %s, want %s", want.Name, s.Kind.Kind, want.Kind)
	}
	if s.Kind.Version != want.Version || (want.Version != "" && s.Kind.Group != want.Group) {
		t.Errorf("%s: version is %s, want %s/%s", want.Name, s.Kind.GroupVersion(), want.Group, want.Version)
	}
}

// TestStorageEqualsKubeAPIServer asks kube-apiserver's own configuration where and in which
// version each resource is kept.
func TestStorageEqualsKubeAPIServer(t *testing.T) {
	config := kubeapiserver.NewStorageFactoryConfigEffectiveVersion(compatibility.DefaultBuildEffectiveVersion())
	encoding := resourceconfig.MergeResourceEncodingConfigs(config.DefaultResourceEncoding, config.ResourceEncodingOverrides)
	for _, r := range Resources() {
		if r.Virtual() {
			continue
		}
		gr := r.GroupResource
		if gr.Group == "events.k8s.io" {
			gr.Group = "" // cohabiting: kept as the first of the two
		}
		want, err := encoding.StorageEncodingFor(gr)
		if err != nil {
			t.Fatalf("%s: %v", gr, err)
		}
		if r.Storage != want {
			t.Errorf("%s is kept as %s, want %s", r.GroupResource, r.Storage, want)
		}
		prefix := gr.Resource
		if gr.Group == apiextensions.GroupName || gr.Group == apiregistration.GroupName {
			prefix = gr.Group + "/" + gr.Resource // as every server but kube-apiserver proper keeps its own
		}
		if special, ok := kubeapiserver.SpecialDefaultResourcePrefixes[gr]; ok {
			prefix = special
		}
		if r.Prefix != prefix {
			t.Errorf("%s is kept below %q, want %q", r.GroupResource, r.Prefix, prefix)
		}
	}
}

// TestEveryKindIsUsable makes, encodes, decodes, converts and prints an empty object of every
// kept resource.
func TestEveryKindIsUsable(t *testing.T) {
	for _, r := range Resources() {
		if r.Virtual() {
			continue
		}
		obj, err := r.Codec().New(r.Storage)
		if err != nil {
			t.Errorf("%s: %v", r.GroupResource, err)
			continue
		}
		value, err := r.Codec().Encode(obj)
		if err != nil {
			t.Errorf("%s: %v", r.GroupResource, err)
			continue
		}
		want := "k8s\x00"
		if r.codec.(*builtinCodec).json != "" {
			want = `{"kind":"` + r.Kind + `","apiVersion":"` + r.Kept.String() + `"`
		}
		if !strings.HasPrefix(string(value), want) {
			t.Errorf("%s starts with %.80q, want %q", r.GroupResource, value, want)
		}
		back, err := r.Codec().Decode(value, 7)
		if err != nil {
			t.Errorf("%s: %v", r.GroupResource, err)
			continue
		}
		for _, version := range r.Served {
			gv := schema.GroupVersion{Group: r.Group, Version: version}
			out, err := r.Codec().Convert(back, gv)
			if err != nil {
				t.Errorf("%s to %s: %v", r.GroupResource, gv, err)
				continue
			}
			if out.GetObjectKind().GroupVersionKind() != gv.WithKind(r.Kind) {
				t.Errorf("%s to %s is a %s", r.GroupResource, gv, out.GetObjectKind().GroupVersionKind())
			}
			if _, err := r.Codec().NewList(gv); err != nil {
				t.Errorf("%s: %v", r.GroupResource, err)
			}
		}
		table, err := r.Table(t.Context(), nil, nil)
		if err != nil || len(table.ColumnDefinitions) == 0 {
			t.Errorf("%s: no columns: %v", r.GroupResource, err)
		}
		if r.Fields(back)["metadata.name"] != "" {
			t.Errorf("%s: fields of an empty object: %v", r.GroupResource, r.Fields(back))
		}
	}
}
