// Package discovery writes the documents that tell clients which groups, versions and kinds a
// server has: the classic ones (/api, /apis, one for each group and one for each version) and
// the aggregated ones of KEP-3352, which hold all of that in one answer.
//
// Everything is computed from the table of resources; nothing here serves HTTP.
package discovery

import (
	"crypto/sha512"
	"encoding/json"
	"fmt"
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
	// Resources is one list for each served version: /api/v1, /apis/apps/v1.
	Resources map[schema.GroupVersion]*metav1.APIResourceList
	// AggregatedCore and Aggregated are /api and /apis for clients that ask for everything at once.
	AggregatedCore, Aggregated *apidiscoveryv2.APIGroupDiscoveryList
	// CoreETag and ETag change whenever the aggregated documents do.
	CoreETag, ETag string
}

// order is in which order groups are listed. It matters to users: kubectl resolves a short
// name that several groups use, such as "events", in favour of the first. Groups that are not here come
// last, by name.
func order() []string {
	return []string{
		"", "apiregistration.k8s.io", "apps", "events.k8s.io", "authentication.k8s.io",
		"authorization.k8s.io", "autoscaling", "batch", "certificates.k8s.io", "networking.k8s.io",
		"policy", "rbac.authorization.k8s.io", "storage.k8s.io", "admissionregistration.k8s.io",
		"apiextensions.k8s.io", "scheduling.k8s.io", "coordination.k8s.io", "node.k8s.io",
		"discovery.k8s.io", "resource.k8s.io", "flowcontrol.apiserver.k8s.io",
		"internal.apiserver.k8s.io", "storagemigration.k8s.io", "lifecycle.k8s.io",
	}
}

// group is the resources of one API group.
type group struct {
	name      string
	versions  []string // preferred first
	resources []*api.Resource
}

// New computes the documents of resources.
func New(resources []*api.Resource) (*Documents, error) {
	d := &Documents{
		Core:           &metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{}},
		Groups:         &metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{}},
		Resources:      map[schema.GroupVersion]*metav1.APIResourceList{},
		AggregatedCore: newAggregated(),
		Aggregated:     newAggregated(),
	}
	for _, g := range groupsOf(resources) {
		aggregated := apidiscoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: g.name}}
		for _, v := range g.versions {
			gv := schema.GroupVersion{Group: g.name, Version: v}
			d.Resources[gv] = resourceList(g, v)
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
	for gv := range d.Resources {
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

func groupsOf(resources []*api.Resource) []group {
	byName := map[string]*group{}
	for _, r := range resources {
		if len(r.Served) == 0 {
			continue // it is kept, but no version of it is for clients
		}
		g := byName[r.Group]
		if g == nil {
			g = &group{name: r.Group}
			byName[r.Group] = g
		}
		g.resources = append(g.resources, r)
		for _, v := range r.Served {
			if !slices.Contains(g.versions, v) {
				g.versions = append(g.versions, v)
			}
		}
	}
	groups := make([]group, 0, len(byName))
	for _, g := range byName {
		// v2, v1, v1beta1: stable first, then by number.
		slices.SortFunc(g.versions, func(a, b string) int { return version.CompareKubeAwareVersionStrings(b, a) })
		slices.SortFunc(g.resources, func(a, b *api.Resource) int { return strings.Compare(a.Resource, b.Resource) })
		groups = append(groups, *g)
	}
	names := order()
	rank := func(name string) int {
		if i := slices.Index(names, name); i >= 0 {
			return i
		}
		return len(names)
	}
	slices.SortFunc(groups, func(a, b group) int {
		if c := rank(a.name) - rank(b.name); c != 0 {
			return c
		}
		return strings.Compare(a.name, b.name)
	})
	return groups
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
