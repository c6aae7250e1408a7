package discovery

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/api"
)

// published reads a discovery document of the Kubernetes release whose types we serve.
func published(t *testing.T, name string, into any) {
	t.Helper()
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes").Output()
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "api", "discovery", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatal(err)
	}
}

func documents(t *testing.T) *Documents {
	t.Helper()
	d, err := New(Served{Resources: api.Resources()})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Everything that we list is listed by Kubernetes in the same words, and every stable version
// that Kubernetes lists is listed by us.
func TestListsAreAsPublished(t *testing.T) {
	d := documents(t)
	var groups metav1.APIGroupList
	published(t, "apis.json", &groups)
	want := []schema.GroupVersion{{Version: "v1"}}
	for _, g := range groups.Groups {
		for _, v := range g.Versions {
			want = append(want, schema.GroupVersion{Group: g.Name, Version: v.Version})
		}
	}
	for gv := range d.Resources {
		if !slices.Contains(want, gv) {
			t.Errorf("%s is listed, but not by Kubernetes", gv)
		}
	}
	for _, gv := range want {
		got, ok := d.Resources[gv]
		stable := !strings.Contains(gv.Version, "alpha") && !strings.Contains(gv.Version, "beta")
		if !ok {
			if stable {
				t.Errorf("%s is not listed", gv)
			}
			continue
		}
		compareLists(t, gv, got, stable)
	}
}

func compareLists(t *testing.T, gv schema.GroupVersion, got *metav1.APIResourceList, stable bool) {
	name := "apis__" + gv.Group + "__" + gv.Version + ".json"
	if gv.Group == "" {
		name = "api__" + gv.Version + ".json"
	}
	var list metav1.APIResourceList
	published(t, name, &list)
	if got.Kind != list.Kind || got.APIVersion != list.APIVersion || got.GroupVersion != list.GroupVersion {
		t.Errorf("%s: list is %v %v, want %v %v", gv, got.TypeMeta, got.GroupVersion, list.TypeMeta, list.GroupVersion)
	}
	byName := map[string]metav1.APIResource{}
	for _, r := range list.APIResources {
		byName[r.Name] = r
	}
	listed := map[string]bool{}
	for _, r := range got.APIResources {
		listed[r.Name] = true
		if want := byName[r.Name]; !reflect.DeepEqual(plain(t, r), plain(t, want)) {
			t.Errorf("%s %s:\ngot  %s\nwant %s", gv, r.Name, plain(t, r), plain(t, want))
		}
	}
	for name := range byName {
		// ComponentStatus is deprecated (since v1.19), and says nothing about servers like ours.
		if stable && !listed[name] && name != "componentstatuses" {
			t.Errorf("%s: %s is not listed", gv, name)
		}
	}
}

func plain(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestGroupsAreInPublishedOrder(t *testing.T) {
	var want metav1.APIGroupList
	published(t, "apis.json", &want)
	d := documents(t)
	next := 0
	for _, g := range d.Groups.Groups {
		i := slices.IndexFunc(want.Groups[next:], func(w metav1.APIGroup) bool { return w.Name == g.Name })
		if i < 0 {
			t.Fatalf("group %s is out of order or unknown", g.Name)
		}
		next += i + 1
		if d.Group(g.Name) == nil || d.Group(g.Name).Kind != "APIGroup" {
			t.Errorf("no document for group %s", g.Name)
		}
	}
	if d.Group("nothing.example") != nil {
		t.Error("document for a group that is not served")
	}
}

func TestAggregatedIsAsPublished(t *testing.T) {
	var want apidiscoveryv2.APIGroupDiscoveryList
	published(t, "aggregated_v2.json", &want)
	byVersion := map[schema.GroupVersion]map[string]apidiscoveryv2.APIResourceDiscovery{}
	for _, g := range want.Items {
		for _, v := range g.Versions {
			resources := map[string]apidiscoveryv2.APIResourceDiscovery{}
			for _, r := range v.Resources {
				resources[r.Resource] = r
			}
			byVersion[schema.GroupVersion{Group: g.Name, Version: v.Version}] = resources
		}
	}
	d := documents(t)
	for _, g := range d.Aggregated.Items {
		for _, v := range g.Versions {
			for _, r := range v.Resources {
				w := byVersion[schema.GroupVersion{Group: g.Name, Version: v.Version}][r.Resource]
				if plain(t, r) != plain(t, w) {
					t.Errorf("%s/%s:\ngot  %s\nwant %s", g.Name, v.Version, plain(t, r), plain(t, w))
				}
			}
		}
	}
	if len(d.AggregatedCore.Items) != 1 || len(d.AggregatedCore.Items[0].Versions[0].Resources) < 15 {
		t.Error("the aggregated core document is not one full group")
	}
	if d.ETag == "" || d.CoreETag == "" || d.ETag == d.CoreETag {
		t.Errorf("etags %q and %q", d.ETag, d.CoreETag)
	}
}

// TestRemotesAreMerged: versions that other servers serve stand where their priorities put them.
func TestRemotesAreMerged(t *testing.T) {
	flunders := []apidiscoveryv2.APIResourceDiscovery{{Resource: "flunders", Verbs: []string{"list"}}}
	remote := func(group, version string) Remote {
		return Remote{GroupVersion: schema.GroupVersion{Group: group, Version: version}, Resources: flunders}
	}
	stale := remote("wardle.example.com", "v1beta1")
	stale.Stale = true
	d, err := New(Served{
		Resources: api.Resources(),
		Remotes:   []Remote{remote("wardle.example.com", "v1alpha1"), stale, remote("metrics.k8s.io", "v1"), remote("batch", "v1")},
		Priority: func(gv schema.GroupVersion) api.Priority {
			switch gv.String() {
			case "wardle.example.com/v1alpha1":
				return api.Priority{Group: 2000, Version: 200}
			case "wardle.example.com/v1beta1":
				return api.Priority{Group: 20000, Version: 15}
			case "metrics.k8s.io/v1":
				return api.Priority{Group: 100, Version: 100}
			}
			return api.PriorityOf(gv)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	groups := d.Groups.Groups
	if groups[0].Name != "apiregistration.k8s.io" || groups[1].Name != "wardle.example.com" || groups[len(groups)-1].Name != "metrics.k8s.io" {
		t.Errorf("groups are %v", groups)
	}
	wardle := d.Group("wardle.example.com")
	if wardle == nil || len(wardle.Versions) != 2 || wardle.PreferredVersion.Version != "v1alpha1" {
		t.Errorf("the group is %+v", wardle)
	}
	versions := map[string]apidiscoveryv2.APIVersionDiscovery{}
	for _, g := range d.Aggregated.Items {
		for _, v := range g.Versions {
			versions[g.Name+"/"+v.Version] = v
		}
	}
	if v := versions["wardle.example.com/v1beta1"]; v.Freshness != apidiscoveryv2.DiscoveryFreshnessStale || len(v.Resources) != 1 {
		t.Errorf("a server that did not answer is shown as %+v", v)
	}
	if v := versions["wardle.example.com/v1alpha1"]; v.Freshness != apidiscoveryv2.DiscoveryFreshnessCurrent || !reflect.DeepEqual(v.Resources, flunders) {
		t.Errorf("a server that answered is shown as %+v", v)
	}
	batch := schema.GroupVersion{Group: "batch", Version: "v1"}
	if v := versions["batch/v1"]; !reflect.DeepEqual(v.Resources, flunders) || d.Resources[batch] != nil {
		t.Errorf("a version that was given away is shown as %+v, and listed %v", v, d.Resources[batch])
	}
	for _, path := range []string{"/apis/batch/v1", "/apis/wardle.example.com", "/apis/wardle.example.com/v1alpha1"} {
		if !slices.Contains(d.Paths(), path) {
			t.Errorf("%s is not among the paths", path)
		}
	}
}
