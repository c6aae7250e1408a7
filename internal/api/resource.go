// Package api is the table of every kind that Barque serves: how it is called, where and in
// which version it is kept, what its fields select, how it prints, and which rules its changes
// obey. Start at [Resources] and [Resource].
//
// What a kind means is borrowed from Kubernetes: types, codecs, defaulting, conversion,
// validation, update strategies and printers. This package and its subpackages are the only
// ones that import k8s.io/kubernetes. Its internal ("hub") types never leave: every object that
// crosses the package's border is of a versioned type such as *corev1.Pod.
package api

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	extensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/install"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/managedfields"
	aggregation "k8s.io/kube-aggregator/pkg/apis/apiregistration/install"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/capabilities"
)

// Root is the first part of every key in etcd, as kube-apiserver has it by default.
const Root = "/registry/"

// scheme completes, at first use, what the packages of Kubernetes' kinds have registered by being imported.
var scheme = sync.OnceValue(func() *runtime.Scheme {
	extensions.Install(legacyscheme.Scheme)
	aggregation.Install(legacyscheme.Scheme)
	return legacyscheme.Scheme
})

// Scheme knows every built-in type with its defaults and conversions. Treat it as read-only.
func Scheme() *runtime.Scheme { return scheme() }

// Codecs encodes and decodes every built-in type.
func Codecs() serializer.CodecFactory {
	scheme()
	return legacyscheme.Codecs
}

// ParameterCodec decodes the query parameters of every built-in kind of options.
func ParameterCodec() runtime.ParameterCodec {
	scheme()
	return legacyscheme.ParameterCodec
}

// A Resource is one kind of object that the cluster serves. It is immutable.
type Resource struct {
	schema.GroupResource

	Kind       string
	Singular   string
	ShortNames []string
	Categories []string
	Namespaced bool
	// Verbs are the verbs of the resource itself, sorted, as discovery shows them.
	Verbs []string

	// Served holds the versions that clients may use, preferred first.
	Served []string
	// Storage is the version that rules work on and controllers get, and Kept the one that stands in etcd, which
	// is the same but for custom resources and their definitions.
	Storage, Kept schema.GroupVersion
	// Prefix is where the objects stand below Root, without slashes at its ends. It is empty
	// for a virtual resource, which is created but never kept (reviews, bindings). Two
	// resources of one prefix are two views of the same objects (events).
	Prefix string
	// TTL is how long an object lasts after its last write; 0 is forever.
	TTL time.Duration
	// ReturnsDeleted tells that DELETE answers with the object instead of a Status.
	ReturnsDeleted bool

	// Rules are obeyed by changes of the resource itself; nil for a virtual resource.
	Rules *Rules
	// Subresources by name, such as "status".
	Subresources map[string]*Subresource

	// Fields returns what field selectors see of an object of the storage version.
	Fields func(obj runtime.Object) fields.Set
	// FillFields is Fields into a set that is there already and empty; nil for custom resources.
	FillFields func(obj runtime.Object, into fields.Set)
	// Indexes are the selectable fields that have an index in the store, by label.
	Indexes map[string]func(obj runtime.Object) []string

	// TableOrder compares objects of the storage version that one table shows; nil leaves them in the list's order.
	TableOrder func(a, b runtime.Object) int

	// ListKind is what a list of objects is: Kind + "List" unless a custom resource says otherwise.
	ListKind string
	// Custom is what a custom resource has in place of Go types; nil for a built-in one.
	Custom *Custom

	codec   Codec
	printer Printer
	// versions hold the resource as the versions that differ from it see it.
	versions map[string]*Resource
}

// Custom is what is special about a custom resource in one of its versions.
type Custom struct {
	// FieldManager records who sets fields of objects of the version, through the resource itself or a subresource.
	FieldManager func(subresource string) (*managedfields.FieldManager, error)
	// Types knows the schemas of all the resource's versions.
	Types func() (managedfields.TypeConverter, error)
	// Input decodes requests' bodies of the version. Strict serializers tell of fields that the schema does not know.
	Input runtime.NegotiatedSerializer
	// Scale tells where the parts of the scale subresource are; nil if there is none.
	Scale *ScalePaths
	// Warning is what clients of a deprecated version are told; "" for others.
	Warning string
}

// ScalePaths are where a custom resource keeps what its scale shows, as JSON paths like ".spec.replicas".
type ScalePaths struct {
	Replicas, StatusReplicas string
	// Selector is "" where the resource shows none.
	Selector string
	// Fields are the paths of Replicas by API version, for managed fields; nil for versions without scale.
	Fields managedfields.ResourcePathMappings
}

// NewCustom completes a custom resource. versions are the same resource as its versions see it, which may differ in rules,
// subresources, columns and fields; the resource itself is that of the version that is kept.
func NewCustom(r *Resource, codec Codec, printer Printer, versions map[string]*Resource) *Resource {
	r.codec, r.printer, r.versions = codec, printer, versions
	return r
}

// In returns the resource as a version sees it.
func (r *Resource) In(version string) *Resource {
	if v, ok := r.versions[version]; ok {
		return v
	}
	return r
}

// A Subresource is a part of a resource with verbs and rules of its own.
type Subresource struct {
	Name string
	// Kind is what clients send and get; it may be of another group (autoscaling/v1 Scale).
	// Its version is empty when it is the resource's own kind, in the request's version.
	Kind  schema.GroupVersionKind
	Verbs []string
	// Rules are obeyed by updates of the parent through this subresource; nil where the
	// subresource is not a view of the parent.
	Rules *Rules
	// Connect tells that requests are passed on to a node (exec, logs, proxy).
	Connect bool
}

// Codec makes, converts and encodes a resource's objects. It is safe for concurrent use.
type Codec interface {
	// New makes an empty object of a served or stored version, its kind set.
	New(gv schema.GroupVersion) (runtime.Object, error)
	// NewList makes an empty list of a version, its kind set.
	NewList(gv schema.GroupVersion) (runtime.Object, error)
	// Default sets what the version's defaults say, in place.
	Default(obj runtime.Object)
	// Convert returns obj in another version. It does not change obj, but may return it, or
	// share memory with it.
	Convert(obj runtime.Object, gv schema.GroupVersion) (runtime.Object, error)
	// Normalize converts obj, which the caller owns, to a version by way of the hub version
	// even if it has that version, so that fields with two spellings have both.
	Normalize(obj runtime.Object, gv schema.GroupVersion) (runtime.Object, error)
	// DecodeJSON reads an object of the kind into a version, with defaults. Strict, it also
	// reports unknown and repeated fields: see runtime.IsStrictDecodingError; the object is
	// returned with that error.
	DecodeJSON(data []byte, gv schema.GroupVersion, strict bool) (runtime.Object, error)
	// Encode makes the bytes that stand in etcd: the storage version without its resource
	// version. obj must be of the storage version; it is not changed.
	Encode(obj runtime.Object) ([]byte, error)
	// Decode reads stored bytes of any version into an object of the storage version, with
	// defaults and kind set, and revision as its resource version.
	Decode(value []byte, revision int64) (runtime.Object, error)
	// ConvertField turns the label and value of a field selector of a version into those
	// that Fields uses. An unknown label is an error.
	ConvertField(gv schema.GroupVersion, label, value string) (string, string, error)
}

// A BatchConverter is a Codec for which it makes a difference whether objects are converted one by one or together, because
// somebody else has to be asked.
type BatchConverter interface {
	// ConvertAll is Convert for several objects. Either all are converted or none.
	ConvertAll(objs []runtime.Object, gv schema.GroupVersion) ([]runtime.Object, error)
}

// Printer makes the table that kubectl get shows. Objects are of the storage version.
type Printer func(ctx context.Context, objects []runtime.Object, options *metav1.TableOptions) (*metav1.Table, error)

// Virtual tells whether objects of the resource are never kept.
func (r *Resource) Virtual() bool { return r.Prefix == "" }

// KeyPrefix is where the objects' keys start, with a slash at the end: "/registry/pods/".
func (r *Resource) KeyPrefix() string { return Root + r.Prefix + "/" }

// Serves tells whether clients may use the version.
func (r *Resource) Serves(version string) bool { return slices.Contains(r.Served, version) }

// Preferred returns the version that clients should use.
func (r *Resource) Preferred() schema.GroupVersion {
	return schema.GroupVersion{Group: r.Group, Version: r.Served[0]}
}

// GVK returns the resource's kind in a version.
func (r *Resource) GVK(version string) schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: r.Group, Version: version, Kind: r.Kind}
}

// GVR returns the resource in a version.
func (r *Resource) GVR(version string) schema.GroupVersionResource {
	return r.WithVersion(version)
}

// Codec returns what makes, converts and encodes the resource's objects.
func (r *Resource) Codec() Codec { return r.codec }

// Table prints objects of the storage version. The caller adds list metadata and the rows'
// objects. Columns are left out when options ask for no headers.
func (r *Resource) Table(ctx context.Context, objects []runtime.Object, options *metav1.TableOptions) (*metav1.Table, error) {
	return r.printer(ctx, objects, options)
}

// resources is built at first use and immutable from then on.
var resources = sync.OnceValue(build)

// Resources returns every built-in resource, ordered by group and name. The slice and what it
// points to are shared: treat them as read-only.
func Resources() []*Resource { return resources() }

func build() []*Resource {
	// The borrowed validation of pods refuses privileged containers until the process says otherwise.
	capabilities.Setup(true, 0)
	var all []*Resource
	for _, group := range [][]*Resource{
		coreResources(), appsResources(), batchResources(), policyResources(),
		networkingResources(), storageResources(), accessResources(), clusterResources(),
		admissionResources(), deviceResources(), extensionResources(), virtualResources(),
	} {
		all = append(all, group...)
	}
	slices.SortFunc(all, func(a, b *Resource) int {
		if c := strings.Compare(a.Group, b.Group); c != 0 {
			return c
		}
		return strings.Compare(a.Resource, b.Resource)
	})
	return all
}
