package clients

import (
	"context"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/controller-runtime/pkg/webhook/conversion"
)

// Voyage is what the operator looks after, as it is stored: shipping.example.com/v1.
type Voyage struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              struct {
		From string `json:"from"`
		To   string `json:"to"`
		Days int64  `json:"days,omitempty"`
	} `json:"spec"`
	Status VoyageStatus `json:"status,omitempty"`
}

// VoyageStatus is the same in all versions.
type VoyageStatus struct {
	Phase              string `json:"phase,omitempty"`
	ObservedGeneration int64  `json:"observedGeneration,omitempty"`
}

// VoyageList is a list of them.
type VoyageList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Voyage `json:"items"`
}

// VoyageV2 is the same in shipping.example.com/v2.
type VoyageV2 struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              struct {
		Ports []string `json:"ports"`
		Hours int64    `json:"hours,omitempty"`
	} `json:"spec"`
	Status VoyageStatus `json:"status,omitempty"`
}

// VoyageV2List is a list of them.
type VoyageV2List struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []VoyageV2 `json:"items"`
}

// DeepCopyObject implements runtime.Object.
func (v *Voyage) DeepCopyObject() runtime.Object {
	c := *v
	v.ObjectMeta.DeepCopyInto(&c.ObjectMeta)
	return &c
}

// DeepCopyObject implements runtime.Object.
func (v *VoyageV2) DeepCopyObject() runtime.Object {
	c := *v
	v.ObjectMeta.DeepCopyInto(&c.ObjectMeta)
	c.Spec.Ports = append([]string(nil), v.Spec.Ports...)
	return &c
}

// DeepCopyObject implements runtime.Object.
func (l *VoyageList) DeepCopyObject() runtime.Object {
	c := *l
	l.ListMeta.DeepCopyInto(&c.ListMeta)
	c.Items = copies(l.Items, func(v *Voyage) runtime.Object { return v.DeepCopyObject() })
	return &c
}

// DeepCopyObject implements runtime.Object.
func (l *VoyageV2List) DeepCopyObject() runtime.Object {
	c := *l
	l.ListMeta.DeepCopyInto(&c.ListMeta)
	c.Items = copies(l.Items, func(v *VoyageV2) runtime.Object { return v.DeepCopyObject() })
	return &c
}

func copies[T any](items []T, deep func(*T) runtime.Object) []T {
	var out []T
	for i := range items {
		if c, ok := deep(&items[i]).(any).(*T); ok {
			out = append(out, *c)
		}
	}
	return out
}

const shipping = "shipping.example.com"

// addVoyages makes the versions known to a scheme.
func addVoyages(scheme *runtime.Scheme) {
	v1, v2 := schema.GroupVersion{Group: shipping, Version: "v1"}, schema.GroupVersion{Group: shipping, Version: "v2"}
	scheme.AddKnownTypes(v1, &Voyage{}, &VoyageList{})
	scheme.AddKnownTypeWithName(v2.WithKind("Voyage"), &VoyageV2{})
	scheme.AddKnownTypeWithName(v2.WithKind("VoyageList"), &VoyageV2List{})
	metav1.AddToGroupVersion(scheme, v1)
	metav1.AddToGroupVersion(scheme, v2)
}

// converters convert between the versions.
func converters(scheme *runtime.Scheme) (conversion.Registry, error) {
	spoke := conversion.NewSpokeConverter(&VoyageV2{},
		func(_ context.Context, hub *Voyage, spoke *VoyageV2) error {
			spoke.ObjectMeta, spoke.Status = hub.ObjectMeta, hub.Status
			spoke.Spec.Ports, spoke.Spec.Hours = []string{hub.Spec.From, hub.Spec.To}, 24*hub.Spec.Days
			return nil
		},
		func(_ context.Context, spoke *VoyageV2, hub *Voyage) error {
			if len(spoke.Spec.Ports) != 2 {
				return fmt.Errorf("voyage %s has %d ports, not 2", spoke.Name, len(spoke.Spec.Ports))
			}
			hub.ObjectMeta, hub.Status = spoke.ObjectMeta, spoke.Status
			hub.Spec.From, hub.Spec.To, hub.Spec.Days = spoke.Spec.Ports[0], spoke.Spec.Ports[1], spoke.Spec.Hours/24
			return nil
		})
	converter, err := conversion.NewHubSpokeConverter(&Voyage{}, spoke)(scheme)
	if err != nil {
		return nil, err
	}
	registry := conversion.NewRegistry()
	return registry, registry.RegisterConverter(schema.GroupKind{Group: shipping, Kind: "Voyage"}, converter)
}

// defaultDays is how long a voyage takes for which nothing is said.
const defaultDays = 3

// pilotage gives voyages their defaults, and refuses those that lead nowhere.
type pilotage struct{}

var (
	_ admission.Defaulter[*Voyage] = pilotage{}
	_ admission.Validator[*Voyage] = pilotage{}
)

func (pilotage) Default(_ context.Context, v *Voyage) error {
	if v.Spec.Days == 0 {
		v.Spec.Days = defaultDays
	}
	return nil
}

func (pilotage) ValidateCreate(_ context.Context, v *Voyage) (admission.Warnings, error) {
	if v.Spec.From == v.Spec.To {
		return nil, fmt.Errorf("from %s to %s is no voyage", v.Spec.From, v.Spec.To)
	}
	return nil, nil
}

func (p pilotage) ValidateUpdate(ctx context.Context, _, v *Voyage) (admission.Warnings, error) {
	return p.ValidateCreate(ctx, v)
}

func (pilotage) ValidateDelete(context.Context, *Voyage) (admission.Warnings, error) { return nil, nil }
