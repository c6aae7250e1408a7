// Package custom makes resources of CustomResourceDefinitions, and serves them as definitions come and go.
//
// [New] turns one definition into an api.Resource: its objects are *unstructured.Unstructured, kept as JSON, and what
// built-in kinds have of their Go types (pruning, defaults, validation, conversion, columns, fields) comes from the
// definition's schemas, by way of k8s.io/apiextensions-apiserver. A [Registrar] follows the definitions on every server
// and registers what is established; it needs no leader.
package custom

import (
	"fmt"
	"slices"
	"sync"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	apiversion "k8s.io/apimachinery/pkg/version"

	"barque.dev/internal/api"
)

// Converters make what converts between a definition's versions, webhooks included.
// *conversion.CRConverterFactory is one.
type Converters interface {
	NewConverter(crd *apiextensionsv1.CustomResourceDefinition) (safe, unsafe runtime.ObjectConvertor, err error)
}

// definition is a CustomResourceDefinition that is read: what its resource is made of.
type definition struct {
	crd   *apiextensionsv1.CustomResourceDefinition
	codec *codec
	// types knows the schemas of all versions for managed fields; made at first use, for they are large.
	types func() (managedfields.TypeConverter, error)
	// versions are those that are served or kept, by name.
	versions map[string]*version
}

func newDefinition(crd *apiextensionsv1.CustomResourceDefinition, converters Converters) (*definition, error) {
	names := crd.Status.AcceptedNames
	if names.Plural == "" || names.Singular == "" || names.Kind == "" || names.ListKind == "" {
		return nil, fmt.Errorf("definition %s: its names are not accepted", crd.Name)
	}
	codec, err := newCodec(crd, converters)
	if err != nil {
		return nil, fmt.Errorf("definition %s: %w", crd.Name, err)
	}
	d := &definition{crd: crd, codec: codec, versions: map[string]*version{}}
	d.types = sync.OnceValues(d.newTypes)
	for i := range crd.Spec.Versions {
		v := &crd.Spec.Versions[i]
		if !v.Served && !v.Storage {
			continue
		}
		d.versions[v.Name] = newVersion(d, v)
	}
	if d.versions[codec.storage] == nil {
		return nil, fmt.Errorf("definition %s: no version is kept", crd.Name)
	}
	return d, nil
}

// New makes the resource of a definition whose names are accepted.
func New(crd *apiextensionsv1.CustomResourceDefinition, converters Converters) (*api.Resource, error) {
	d, err := newDefinition(crd, converters)
	if err != nil {
		return nil, err
	}
	return d.resource(), nil
}

// resource is the definition's resource. The same definition makes resources of the same codec.
func (d *definition) resource() *api.Resource {
	versions := map[string]*api.Resource{}
	for name, v := range d.versions {
		versions[name] = d.resourceIn(v)
	}
	kept := versions[d.codec.storage]
	return api.NewCustom(kept, d.codec, d.versions[d.codec.storage].print, versions)
}

// resourceIn is the resource as a version sees it.
func (d *definition) resourceIn(v *version) *api.Resource {
	crd, names := d.crd, d.crd.Status.AcceptedNames
	verbs := []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
	if crd.DeletionTimestamp != nil {
		verbs = verbs[1:] // nothing new comes while everything is to go
	}
	gv := schema.GroupVersion{Group: crd.Spec.Group, Version: v.spec.Name}
	r := &api.Resource{
		GroupResource: schema.GroupResource{Group: crd.Spec.Group, Resource: names.Plural},
		Kind:          names.Kind, ListKind: names.ListKind, Singular: names.Singular,
		ShortNames: names.ShortNames, Categories: names.Categories,
		Namespaced: crd.Spec.Scope == apiextensionsv1.NamespaceScoped, Verbs: verbs, Served: served(crd),
		Storage: gv, Kept: schema.GroupVersion{Group: crd.Spec.Group, Version: d.codec.storage},
		Prefix: crd.Spec.Group + "/" + names.Plural,
		Rules:  api.NewRules(v.rules, v.rules, v.rules, v.rules), Subresources: v.subresources(),
		Fields: v.fields,
		Custom: &api.Custom{
			FieldManager: v.fieldManagers(), Types: d.types, Input: newInput(d.codec), Scale: v.scale(), Warning: v.warning(),
		},
	}
	return api.NewCustom(r, d.codec, v.print, nil)
}

// served are the versions that clients may use, preferred first.
func served(crd *apiextensionsv1.CustomResourceDefinition) []string {
	var out []string
	for _, v := range crd.Spec.Versions {
		if v.Served {
			out = append(out, v.Name)
		}
	}
	slices.SortFunc(out, func(a, b string) int { return apiversion.CompareKubeAwareVersionStrings(b, a) })
	return out
}

// subresources are a version's.
func (v *version) subresources() map[string]*api.Subresource {
	out := map[string]*api.Subresource{}
	subs := v.spec.Subresources
	if subs == nil {
		return out
	}
	verbs := []string{"get", "patch", "update"}
	if subs.Status != nil {
		out["status"] = &api.Subresource{
			Name: "status", Verbs: verbs, Rules: api.NewRules(nil, v.statusRules, nil, v.statusRules),
			Kind: schema.GroupVersionKind{Group: v.crd.Spec.Group, Kind: v.crd.Status.AcceptedNames.Kind},
		}
	}
	if subs.Scale != nil {
		out["scale"] = &api.Subresource{Name: "scale", Verbs: verbs, Kind: autoscalingv1.SchemeGroupVersion.WithKind("Scale")}
	}
	return out
}

// ageColumn is what kinds that name no columns show beside their name.
func ageColumn() apiextensionsv1.CustomResourceColumnDefinition {
	return apiextensionsv1.CustomResourceColumnDefinition{
		Name: "Age", Type: "date", JSONPath: ".metadata.creationTimestamp",
		Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"],
	}
}
