package registry

import (
	"fmt"
	"slices"
	"sync"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	extensions "k8s.io/apiextensions-apiserver/pkg/client/applyconfiguration"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	smdschema "sigs.k8s.io/structured-merge-diff/v6/schema"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
	"sigs.k8s.io/structured-merge-diff/v6/value"

	"barque.dev/internal/api"
)

// fieldManagers records who set which field. There is one FieldManager for each kind, version
// and subresource, made at first use.
type fieldManagers struct {
	types managedfields.TypeConverter

	mu    sync.Mutex
	byKey map[fieldManagerKey]*managedfields.FieldManager
}

type fieldManagerKey struct {
	resource    schema.GroupVersionResource
	subresource string
}

func newFieldManagers() *fieldManagers {
	return &fieldManagers{types: newLazyTypes(), byKey: map[fieldManagerKey]*managedfields.FieldManager{}}
}

// of returns the request's FieldManager, whose objects are of the request's version.
func (f *fieldManagers) of(req Request) (*managedfields.FieldManager, error) {
	if own := req.Resource.Custom; own != nil && req.kind() != scaleKind() {
		m, err := own.FieldManager(req.Subresource)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		return m, nil
	}
	key := fieldManagerKey{resource: req.gvr(), subresource: req.Subresource}
	f.mu.Lock()
	defer f.mu.Unlock()
	if m, ok := f.byKey[key]; ok {
		return m, nil
	}
	var reset map[fieldpath.APIVersion]fieldpath.Filter
	if rules := req.rules(); rules != nil {
		if sets := rules.ResetFields(); sets != nil {
			reset = fieldpath.NewExcludeFilterSetMap(sets)
		}
	}
	kind := req.kind()
	scheme := api.Scheme()
	m, err := managedfields.NewDefaultFieldManager(f.types, versionConverter{}, scheme, kindCreater{},
		kind, kind.GroupVersion(), req.Subresource, reset)
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("field manager of %s: %w", req.gvr(), err))
	}
	f.byKey[key] = m
	return m, nil
}

// lazyTypes loads the schemas of all kinds at first use: they take tens of milliseconds.
type lazyTypes struct {
	load func() typeSet
	// shapes are the schemas of the kinds that were seen: schema.GroupVersionKind to shape.
	shapes sync.Map
}

// shape is a kind's schema.
type shape struct {
	schema *smdschema.Schema
	ref    smdschema.TypeRef
}

type typeSet struct {
	kinds, extensions, scale managedfields.TypeConverter
	err                      error
}

// of is the converter of a kind's objects.
func (s typeSet) of(kind schema.GroupVersionKind) managedfields.TypeConverter {
	switch {
	case kind == scaleKind():
		return s.scale
	case kind.Group == apiextensionsv1.GroupName:
		return s.extensions
	default:
		return s.kinds
	}
}

func newLazyTypes() *lazyTypes {
	return &lazyTypes{load: sync.OnceValue(func() typeSet {
		scale, err := typesOfScale(api.Scheme())
		return typeSet{
			kinds:      applyconfigurations.NewTypeConverter(api.Scheme()),
			extensions: extensions.NewTypeConverter(api.Scheme()),
			scale:      scale, err: err,
		}
	})}
}

func (l *lazyTypes) ObjectToTyped(obj runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	set := l.load()
	if set.err != nil {
		return nil, set.err
	}
	kind := obj.GetObjectKind().GroupVersionKind()
	if s, ok := l.shapes.Load(kind); ok && conforms(obj, opts) {
		v, err := value.NewValueReflect(obj)
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", kind, err)
		}
		//lint:ignore SA1019 upstream would rather have every object checked, which costs an eighth of a create
		return typed.AsTypedUnvalidated(v, s.(shape).schema, s.(shape).ref), nil
	}
	out, err := set.of(kind).ObjectToTyped(obj, opts...)
	if err == nil {
		l.shapes.LoadOrStore(kind, shape{out.Schema(), out.TypeRef()})
	}
	return out, err
}

// conforms tells whether an object need not be compared with its kind's schema: the schemas are made of the Go types,
// so all that an object of such a type can have wrong are repeated keys in lists. Those are allowed in what is
// written by an update, and what can't be told apart by its keys is found when fields are compared.
func conforms(obj runtime.Object, opts []typed.ValidationOptions) bool {
	_, raw := obj.(runtime.Unstructured)
	return !raw && slices.Contains(opts, typed.AllowDuplicates)
}

func (l *lazyTypes) TypedToObject(v *typed.TypedValue) (runtime.Object, error) {
	return l.load().kinds.TypedToObject(v)
}

// kindCreater makes empty objects with their kind set.
type kindCreater struct{}

func (kindCreater) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	obj, err := api.Scheme().New(gvk)
	if err != nil {
		return nil, err
	}
	obj.GetObjectKind().SetGroupVersionKind(gvk)
	return obj, nil
}

// versionConverter converts between versions directly where FieldManager expects a hub version
// in the middle. It shares memory between its input and output.
type versionConverter struct{}

func (versionConverter) Convert(in, out, context any) error {
	return api.Scheme().Convert(in, out, context)
}

func (versionConverter) ConvertToVersion(in runtime.Object, target runtime.GroupVersioner) (runtime.Object, error) {
	gv, exact := target.(schema.GroupVersion)
	_, raw := in.(*unstructured.Unstructured)
	if !exact || raw || gv.Version == runtime.APIVersionInternal {
		return api.Scheme().UnsafeConvertToVersion(in, target)
	}
	return api.Convert(in, gv)
}

func (versionConverter) ConvertFieldLabel(gvk schema.GroupVersionKind, label, value string) (string, string, error) {
	return api.Scheme().ConvertFieldLabel(gvk, label, value)
}

// scaleFields translates managed fields between a resource and its scale subresource.
func scaleFields(req Request, entries []metav1.ManagedFieldsEntry) *managedfields.ScaleHandler {
	mappings := managedfields.ResourcePathMappings{
		req.gv().String(): fieldpath.MakePathOrDie("spec", "replicas"),
	}
	if own := req.Resource.Custom; own != nil && own.Scale != nil {
		mappings = own.Scale.Fields
	}
	return managedfields.NewScaleHandler(entries, req.gv(), mappings)
}

// scaleKind is what the scale subresource speaks.
func scaleKind() schema.GroupVersionKind { return autoscalingv1.SchemeGroupVersion.WithKind("Scale") }
