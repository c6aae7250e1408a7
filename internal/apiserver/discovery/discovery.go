// Package discovery writes the documents that tell clients which groups, versions and kinds a
// server has: the classic ones (/api, /apis, one for each group and one for each version) and
// the aggregated ones of KEP-3352, which hold all of that in one answer.
//
// Everything is computed from the table of resources and from what other servers said of theirs; nothing here serves HTTP.
package discovery

import (
	"cmp"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/version"
	storageversion "k8s.io/apiserver/pkg/endpoints/discovery"

	"barque.dev/internal/api"
)

// Documents are the discovery documents of one set of resources. They are immutable.
type Documents struct {
	// Core is /api, without addresses: they depend on who asks.
	Core *metav1.APIVersions
	// Groups is /apis.
	Groups *metav1.APIGroupList
	// Resources is one list for each version that this server serves itself: /api/v1, /apis/apps/v1.
	Resources map[schema.GroupVersion]*metav1.APIResourceList
	// AggregatedCore and Aggregated are /api and /apis for clients that ask for everything at once.
	AggregatedCore, Aggregated *apidiscoveryv2.APIGroupDiscoveryList
	// CoreETag and ETag change whenever the aggregated documents do.
	CoreETag, ETag string

	remotes []schema.GroupVersion
}

// A Remote is a version of a group that another server serves (API aggregation).
type Remote struct {
	schema.GroupVersion
	// Resources are what that server said it has when it was asked last, and Stale tells that it did not
	// answer since.
	Resources []apidiscoveryv2.APIResourceDiscovery
	Stale     bool
}

// Served is what documents are about.
type Served struct {
	// Resources are this server's own. A remote version takes the place of one of them.
	Resources []*api.Resource
	Remotes   []Remote
	// Priority says where a version of a group stands; nil is api.PriorityOf.
	Priority func(schema.GroupVersion) api.Priority
}

// group is the resources of one API group.
type group struct {
	name      string
	priority  int32
	versions  []string // preferred first
	resources []*api.Resource
	remotes   map[string]Remote // by version
}

// New computes the documents of what is served.
func New(served Served) (*Documents, error) {
	d := &Documents{
		Core:           &metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{}},
		Groups:         &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{}},
		Resources:      map[schema.GroupVersion]*metav1.APIResourceList{},
		AggregatedCore: newAggregated(),
		Aggregated:     newAggregated(),
	}
	for _, g := range groupsOf(served) {
		aggregated := apidiscoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: g.name}}
		for _, v := range g.versions {
			gv := schema.GroupVersion{Group: g.name, Version: v}
			if _, ok := g.remotes[v]; ok {
				d.remotes = append(d.remotes, gv)
			} else {
				d.Resources[gv] = resourceList(g, v)
			}
			aggregated.Versions = append(aggregated.Versions, aggregatedVersion(g, v))
		}
		if g.name == "" {
			d.Core.Versions = g.versions
			d.AggregatedCore.Items = append(d.AggregatedCore.Items, aggregated)
			continue
		}
		d.Groups.Groups = append(d.Groups.Groups, apiGroup(g))
		d.Aggregated.Items = append(d.Aggregated.Items, aggregated)
	}
	var err error
	if d.CoreETag, err = etag(d.AggregatedCore); err != nil {
		return nil, err
	}
	d.ETag, err = etag(d.Aggregated)
	return d, err
}

// Group is the document of one group, /apis/apps; nil when it is not served.
func (d *Documents) Group(name string) *metav1.APIGroup {
	for _, g := range d.Groups.Groups {
		if g.Name == name {
			g.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
			return &g
		}
	}
	return nil
}

// Paths lists where the documents of groups and versions are.
func (d *Documents) Paths() []string {
	var out []string
	for _, g := range d.Groups.Groups {
		out = append(out, "/apis/"+g.Name)
	}
	for _, gv := range slices.AppendSeq(slices.Clone(d.remotes), maps.Keys(d.Resources)) {
		if gv.Group == "" {
			out = append(out, "/api/"+gv.Version)
		} else {
			out = append(out, "/apis/"+gv.String())
		}
	}
	slices.Sort(out)
	return out
}

func newAggregated() *apidiscoveryv2.APIGroupDiscoveryList {
	return &apidiscoveryv2.APIGroupDiscoveryList{
		TypeMeta: metav1.TypeMeta{Kind: "APIGroupDiscoveryList", APIVersion: apidiscoveryv2.SchemeGroupVersion.String()},
		Items:    []apidiscoveryv2.APIGroupDiscovery{},
	}
}

// etag is a hash of a document, as clients and aggregators compare it.
func etag(doc any) (string, error) {
	b, err := json.Marshal(doc)
	if err != nil {
		return "", fmt.Errorf("hash discovery document: %w", err)
	}
	return fmt.Sprintf("%X", sha512.Sum512(b)), nil
}

// groupsOf sorts what is served into groups, those of the highest priority first, and each group's versions likewise.
func groupsOf(served Served) []group {
	byName := map[string]*group{}
	in := func(name string) *group {
		g := byName[name]
		if g == nil {
			g = &group{name: name, remotes: map[string]Remote{}}
			byName[name] = g
		}
		return g
	}
	for _, r := range served.Resources {
		if len(r.Served) == 0 {
			continue // it is kept, but no version of it is for clients
		}
		g := in(r.Group)
		g.resources = append(g.resources, r)
		g.versions = append(g.versions, r.Served...)
	}
	for _, r := range served.Remotes {
		g := in(r.Group)
		g.remotes[r.Version] = r
		g.versions = append(g.versions, r.Version)
	}
	priority := served.Priority
	if priority == nil {
		priority = api.PriorityOf
	}
	groups := make([]group, 0, len(byName))
	for _, g := range byName {
		g.sort(priority)
		groups = append(groups, *g)
	}
	slices.SortFunc(groups, func(a, b group) int {
		return cmp.Or(cmp.Compare(b.priority, a.priority), strings.Compare(a.name, b.name))
	})
	return groups
}

// sort puts versions in the order of their priorities, those of the same in Kubernetes' order of versions: stable ones
// first, then by number.
func (g *group) sort(priority func(schema.GroupVersion) api.Priority) {
	of := func(v string) api.Priority { return priority(schema.GroupVersion{Group: g.name, Version: v}) }
	slices.SortFunc(g.versions, func(a, b string) int {
		return cmp.Or(cmp.Compare(of(b).Version, of(a).Version), version.CompareKubeAwareVersionStrings(b, a))
	})
	g.versions = slices.Compact(g.versions)
	for _, v := range g.versions {
		g.priority = max(g.priority, of(v).Group)
	}
	slices.SortFunc(g.resources, func(a, b *api.Resource) int { return strings.Compare(a.Resource, b.Resource) })
}

func apiGroup(g group) metav1.APIGroup {
	out := metav1.APIGroup{Name: g.name}
	for _, v := range g.versions {
		out.Versions = append(out.Versions, metav1.GroupVersionForDiscovery{
			GroupVersion: schema.GroupVersion{Group: g.name, Version: v}.String(), Version: v,
		})
	}
	out.PreferredVersion = out.Versions[0]
	return out
}

func resourceList(g group, v string) *metav1.APIResourceList {
	list := &metav1.APIResourceList{
		TypeMeta:     metav1.TypeMeta{Kind: "APIResourceList"},
		GroupVersion: schema.GroupVersion{Group: g.name, Version: v}.String(),
		APIResources: []metav1.APIResource{},
	}
	if g.name != "" {
		list.APIVersion = "v1"
	}
	for _, r := range g.resources {
		if !r.Serves(v) {
			continue
		}
		if len(r.Verbs) > 0 {
			list.APIResources = append(list.APIResources, apiResource(r))
		}
		for _, s := range subresources(r.In(v)) {
			list.APIResources = append(list.APIResources, apiSubresource(r, s))
		}
	}
	slices.SortFunc(list.APIResources, func(a, b metav1.APIResource) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func apiResource(r *api.Resource) metav1.APIResource {
	out := metav1.APIResource{
		Name:         r.Resource,
		SingularName: r.Singular,
		Namespaced:   r.Namespaced,
		Kind:         r.Kind,
		Verbs:        r.Verbs,
		ShortNames:   r.ShortNames,
		Categories:   r.Categories,
	}
	if !r.Virtual() {
		out.StorageVersionHash = storageversion.StorageVersionHash(r.Kept.Group, r.Kept.Version, r.Kind)
	}
	return out
}

func apiSubresource(r *api.Resource, s *api.Subresource) metav1.APIResource {
	out := metav1.APIResource{
		Name:       r.Resource + "/" + s.Name,
		Namespaced: r.Namespaced,
		Kind:       s.Kind.Kind,
		Verbs:      s.Verbs,
	}
	// Empty stands for the list's own group and version.
	if s.Kind.Version != "" {
		out.Group, out.Version = s.Kind.Group, s.Kind.Version
	}
	return out
}

func aggregatedVersion(g group, v string) apidiscoveryv2.APIVersionDiscovery {
	if r, ok := g.remotes[v]; ok {
		out := apidiscoveryv2.APIVersionDiscovery{Version: v, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent, Resources: r.Resources}
		if r.Stale {
			out.Freshness = apidiscoveryv2.DiscoveryFreshnessStale
		}
		return out
	}
	out := apidiscoveryv2.APIVersionDiscovery{Version: v, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent}
	for _, r := range g.resources {
		if !r.Serves(v) {
			continue
		}
		d := apidiscoveryv2.APIResourceDiscovery{
			Resource:         r.Resource,
			ResponseKind:     &metav1.GroupVersionKind{Kind: r.Kind},
			Scope:            apidiscoveryv2.ScopeCluster,
			SingularResource: r.Singular,
			Verbs:            r.Verbs,
			ShortNames:       r.ShortNames,
			Categories:       r.Categories,
		}
		if r.Namespaced {
			d.Scope = apidiscoveryv2.ScopeNamespace
		}
		for _, s := range subresources(r.In(v)) {
			kind := metav1.GroupVersionKind{Kind: s.Kind.Kind}
			if s.Kind.Version != "" {
				kind.Group, kind.Version = s.Kind.Group, s.Kind.Version
			}
			d.Subresources = append(d.Subresources, apidiscoveryv2.APISubresourceDiscovery{
				Subresource: s.Name, ResponseKind: &kind, Verbs: s.Verbs,
			})
		}
		out.Resources = append(out.Resources, d)
	}
	return out
}

// subresources are r's, by name.
func subresources(r *api.Resource) []*api.Subresource {
	out := make([]*api.Subresource, 0, len(r.Subresources))
	for _, s := range r.Subresources {
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b *api.Subresource) int { return strings.Compare(a.Name, b.Name) })
	return out
}
