package stream

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"barque.dev/test/objects"
)

// kind is a resource in one version, with an object of it.
type kind struct {
	Resource
	group, version string
	document       *Document
	schema         *Schema
	sample         map[string]any
	// harmful: one that is changed at random may keep servers from working, or have them call others.
	harmful bool
}

// virtual objects, and those that stand in a version that test/objects does not have.
//
//go:embed samples/*.yaml
var more embed.FS

func samples() ([]*unstructured.Unstructured, error) {
	all, err := objects.All()
	if err != nil {
		return nil, err
	}
	f, err := more.Open("samples/more.yaml")
	if err != nil {
		return nil, err
	}
	decoder := yaml.NewYAMLOrJSONDecoder(f, 4096)
	for {
		var o unstructured.Unstructured
		err := decoder.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("samples/more.yaml: %w", err)
		}
		all = append(all, &o)
	}
}

// harmful are resources of which changed objects are only dry runs.
func harmful() []string {
	return []string{
		"validatingwebhookconfigurations", "mutatingwebhookconfigurations", "validatingadmissionpolicies", "validatingadmissionpolicybindings",
		"mutatingadmissionpolicies", "mutatingadmissionpolicybindings", "apiservices", "flowschemas", "prioritylevelconfigurations",
		"namespaces", "servicecidrs", "customresourcedefinitions", "clusterrolebindings", "resourcequotas", "limitranges", "priorityclasses",
	}
}

// prepare finds what there are objects of.
func (m *maker) prepare() error {
	all, err := samples()
	if err != nil {
		return err
	}
	m.born = map[string]int{}
	for _, g := range m.served.Groups {
		for _, v := range g.Versions {
			for _, r := range v.Resources {
				if !slices.Contains(r.Verbs, "create") {
					continue
				}
				if r.ResponseKind.Version == "" {
					r.ResponseKind.Group, r.ResponseKind.Version = g.Metadata.Name, v.Version
				}
				k := &kind{Resource: r, group: g.Metadata.Name, version: v.Version, harmful: slices.Contains(harmful(), r.Resource)}
				for _, o := range all {
					if gvk := o.GroupVersionKind(); gvk.Group == k.ResponseKind.Group && gvk.Version == k.ResponseKind.Version && gvk.Kind == k.ResponseKind.Kind {
						k.sample = o.Object
					}
				}
				if k.sample == nil {
					return fmt.Errorf("there is no sample of %s %s/%s: add one to test/objects or test/differential/stream/samples", r.ResponseKind.Kind, k.group, k.version)
				}
				if k.document, k.schema, err = m.served.schema(k.ResponseKind); err != nil {
					return err
				}
				m.kinds = append(m.kinds, k)
			}
		}
	}
	slices.SortFunc(m.kinds, func(a, b *kind) int { return strings.Compare(a.String(), b.String()) })
	return nil
}

func (k *kind) String() string { return k.Resource.Resource + "." + k.version + "." + k.group }

func (m *maker) shuffledKinds() []*kind {
	all := slices.Clone(m.kinds)
	m.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// find is the kind of a resource's name.
func (m *maker) find(resource string) *kind {
	i := slices.IndexFunc(m.kinds, func(k *kind) bool { return k.Resource.Resource == resource })
	return m.kinds[i]
}

func (k *kind) can(verb string) bool { return slices.Contains(k.Verbs, verb) }
func (k *kind) namespaced() bool     { return k.Scope == "Namespaced" }

// collection is the path of the resource, in a namespace if it has them.
func (k *kind) collection(namespace string) string {
	path := root(k.group, k.version)
	if k.namespaced() && namespace != "" {
		path += "/namespaces/" + namespace
	}
	return path + "/" + k.Resource.Resource
}

// namespaces are those that the stream's objects stand in.
const namespaces = 6

func (m *maker) namespace() string { return "diff-" + strconv.Itoa(m.random.IntN(namespaces)) }

// object makes the n-th object of a kind, valid unless something is changed about it.
func (m *maker) object(k *kind, namespace string, n int) (object map[string]any, name string) {
	object = clone(k.sample).(map[string]any) //nolint:forcetypeassert // as the sample
	meta, _ := object["metadata"].(map[string]any)
	if meta == nil {
		meta = map[string]any{}
		object["metadata"] = meta
	}
	delete(meta, "namespace")
	if k.namespaced() {
		meta["namespace"] = namespace
	}
	name = own(k, object, n)
	meta["name"] = name
	labels, _ := meta["labels"].(map[string]any)
	if labels == nil {
		labels = map[string]any{}
	}
	labels["stream"] = m.tag
	labels["n"] = "n" + strconv.Itoa(n%4)
	meta["labels"] = labels
	return object, name
}

// own makes unique what must be, and returns the name that the object must have.
func own(k *kind, object map[string]any, n int) string {
	spec, _ := object["spec"].(map[string]any)
	name := fmt.Sprintf("o%d", n)
	switch k.ResponseKind.Kind {
	case "Service":
		delete(spec, "clusterIP")
		// Servers draw ports from above these.
		for _, p := range spec["ports"].([]any) { //nolint:forcetypeassert // as the sample
			p.(map[string]any)["nodePort"] = 30000 + n%80 //nolint:forcetypeassert // likewise
		}
	case "IPAddress":
		return fmt.Sprintf("192.0.%d.%d", 2+n/250, 1+n%250)
	case "ServiceCIDR":
		spec["cidrs"] = []any{fmt.Sprintf("10.%d.%d.0/24", 100+n/250, n%250)}
	case "CustomResourceDefinition":
		group := fmt.Sprintf("g%d.example.com", n)
		spec["group"] = group
		return "boats." + group
	case "APIService":
		group := fmt.Sprintf("a%d.example.com", n)
		spec["group"], spec["version"] = group, "v1"
		return "v1." + group
	case "ResourceSlice":
		spec["pool"].(map[string]any)["name"] = name //nolint:forcetypeassert // as the sample
	case "Namespace":
		return fmt.Sprintf("diff-o%d", n)
	}
	return name
}

func clone(v any) any {
	switch v := v.(type) {
	case map[string]any:
		c := map[string]any{}
		for _, key := range slices.Sorted(maps.Keys(v)) {
			c[key] = clone(v[key])
		}
		return c
	case []any:
		c := make([]any, len(v))
		for i := range v {
			c[i] = clone(v[i])
		}
		return c
	}
	return v
}

// duplicate writes an object as JSON with one of its keys twice.
func duplicate(object map[string]any, key string) string {
	data, err := json.Marshal(object)
	if err != nil || object[key] == nil {
		return string(data)
	}
	twice, err := json.Marshal(object[key])
	if err != nil {
		return string(data)
	}
	return fmt.Sprintf(`{%q:%s,%s`, key, twice, data[1:])
}
