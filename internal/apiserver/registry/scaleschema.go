package registry

import (
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"sigs.k8s.io/structured-merge-diff/v6/typed"
)

// scaleSchema describes autoscaling/v1 Scale to field managers. The schemas that client-go
// publishes for apply configurations have every kind but this one, which nobody keeps.
const scaleSchema typed.YAMLObject = `
types:
- name: io.k8s.api.autoscaling.v1.Scale
  map:
    fields:
    - {name: apiVersion, type: {scalar: string}}
    - {name: kind, type: {scalar: string}}
    - {name: metadata, type: {namedType: ObjectMeta}, default: {}}
    - {name: spec, type: {namedType: ScaleSpec}, default: {}}
    - {name: status, type: {namedType: ScaleStatus}, default: {}}
- name: ScaleSpec
  map:
    fields:
    - {name: replicas, type: {scalar: numeric}}
- name: ScaleStatus
  map:
    fields:
    - {name: replicas, type: {scalar: numeric}, default: 0}
    - {name: selector, type: {scalar: string}}
- name: ObjectMeta
  map:
    fields:
    - {name: annotations, type: {map: {elementType: {scalar: string}}}}
    - {name: creationTimestamp, type: {scalar: untyped}}
    - {name: deletionGracePeriodSeconds, type: {scalar: numeric}}
    - {name: deletionTimestamp, type: {scalar: untyped}}
    - {name: finalizers, type: {list: {elementType: {scalar: string}, elementRelationship: associative}}}
    - {name: generateName, type: {scalar: string}}
    - {name: generation, type: {scalar: numeric}}
    - {name: labels, type: {map: {elementType: {scalar: string}}}}
    - {name: managedFields, type: {list: {elementType: {namedType: Untyped}, elementRelationship: atomic}}}
    - {name: name, type: {scalar: string}}
    - {name: namespace, type: {scalar: string}}
    - name: ownerReferences
      type: {list: {elementType: {namedType: OwnerReference}, elementRelationship: associative, keys: [uid]}}
    - {name: resourceVersion, type: {scalar: string}}
    - {name: selfLink, type: {scalar: string}}
    - {name: uid, type: {scalar: string}}
- name: OwnerReference
  map:
    elementRelationship: atomic
    fields:
    - {name: apiVersion, type: {scalar: string}}
    - {name: blockOwnerDeletion, type: {scalar: boolean}}
    - {name: controller, type: {scalar: boolean}}
    - {name: kind, type: {scalar: string}}
    - {name: name, type: {scalar: string}}
    - {name: uid, type: {scalar: string}}
- name: Untyped
  scalar: untyped
  list:
    elementType: {namedType: Untyped}
    elementRelationship: atomic
  map:
    elementType: {namedType: Untyped}
    elementRelationship: atomic
`

// typesOfScale makes the type converter of Scale.
func typesOfScale(scheme *runtime.Scheme) (managedfields.TypeConverter, error) {
	parser, err := typed.NewParser(scaleSchema)
	if err != nil {
		return nil, fmt.Errorf("schema of Scale: %w", err)
	}
	return managedfields.NewSchemeTypeConverter(scheme, parser), nil
}
