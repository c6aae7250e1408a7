package registry

import (
	"fmt"
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
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	aggregation "k8s.io/kube-aggregator/pkg/client/applyconfiguration"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
	"sigs.k8s.io/structured-merge-diff/v6/typed"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/ownership"
)

// fieldManagers records who set which field. There is one Recorder for each kind, version and subresource, made at
// first use.
type fieldManagers struct {
	types managedfields.TypeConverter

	mu    sync.Mutex
	byKey map[fieldManagerKey]*ownership.Recorder
}

type fieldManagerKey struct {
	resource    schema.GroupVersionResource
	subresource string
}

func newFieldManagers() *fieldManagers {
	return &fieldManagers{types: newLazyTypes(), byKey: map[fieldManagerKey]*ownership.Recorder{}}
}

// of returns the request's Recorder, whose objects are of the request's version.
func (f *fieldManagers) of(req Request) (*ownership.Recorder, error) {
	if own := req.Resource.Custom; own != nil && req.kind() != scaleKind() {
		m, err := own.FieldManager(req.Subresource)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		return ownership.New(ownership.Config{Stock: m}, nil), nil
	}
	key := fieldManagerKey{resource: req.gvr(), subresource: req.Subresource}
	f.mu.Lock()
	defer f.mu.Unlock()
	if m, ok := f.byKey[key]; ok {
		return m, nil
	}
	m, err := f.make(req)
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("field manager of %s: %w", req.gvr(), err))
	}
	f.byKey[key] = m
	return m, nil
}

// make makes the Recorder of a built-in resource.
func (f *fieldManagers) make(req Request) (*ownership.Recorder, error) {
	stock, err := f.stock(req)
	if err != nil {
		return nil, err
	}
	sample, err := kindCreater{}.New(req.kind())
	if err != nil {
		return nil, err
	}
	version := req.kind().GroupVersion()
	return ownership.New(ownership.Config{
		Stock: stock, APIVersion: version.String(), Subresource: req.Subresource, Reset: resetFields(req)[fieldpath.APIVersion(version.String())],
		Typed: func(obj runtime.Object) (*typed.TypedValue, error) { return f.types.ObjectToTyped(obj) },
		Convert: func(obj runtime.Object) (runtime.Object, error) {
			return versionConverter{}.ConvertToVersion(obj, version)
		},
	}, sample), nil
}

// stock makes upstream's.
func (f *fieldManagers) stock(req Request) (*managedfields.FieldManager, error) {
	kind := req.kind()
	var reset map[fieldpath.APIVersion]fieldpath.Filter
	if sets := resetFields(req); sets != nil {
		reset = fieldpath.NewExcludeFilterSetMap(sets)
	}
	return managedfields.NewDefaultFieldManager(f.types, versionConverter{}, api.Scheme(), kindCreater{},
		kind, kind.GroupVersion(), req.Subresource, reset)
}

// resetFields are the fields that a request cannot set, by version.
func resetFields(req Request) map[fieldpath.APIVersion]*fieldpath.Set {
	rules := req.rules()
	if rules == nil {
		return nil
	}
	return rules.ResetFields()
}

// lazyTypes loads the schemas of all kinds at first use: they take tens of milliseconds.
type lazyTypes struct {
	load func() typeSet
}

type typeSet struct {
	kinds, extensions, aggregation, scale managedfields.TypeConverter
	err                                   error
}

// of is the converter of a kind's objects.
func (s typeSet) of(kind schema.GroupVersionKind) managedfields.TypeConverter {
	switch {
	case kind == scaleKind():
		return s.scale
	case kind.Group == apiextensionsv1.GroupName:
		return s.extensions
	case kind.Group == apiregistrationv1.GroupName:
		return s.aggregation
	default:
		return s.kinds
	}
}

func newLazyTypes() *lazyTypes {
	return &lazyTypes{load: sync.OnceValue(func() typeSet {
		scale, err := typesOfScale(api.Scheme())
		return typeSet{
			kinds:       applyconfigurations.NewTypeConverter(api.Scheme()),
			extensions:  extensions.NewTypeConverter(api.Scheme()),
			aggregation: aggregation.NewTypeConverter(api.Scheme()),
			scale:       scale, err: err,
		}
	})}
}

func (l *lazyTypes) ObjectToTyped(obj runtime.Object, opts ...typed.ValidationOptions) (*typed.TypedValue, error) {
	set := l.load()
	if set.err != nil {
		return nil, set.err
	}
	return set.of(obj.GetObjectKind().GroupVersionKind()).ObjectToTyped(obj, opts...)
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
