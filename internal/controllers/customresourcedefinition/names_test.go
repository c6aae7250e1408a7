package customresourcedefinition

import (
	"slices"
	"testing"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"pgregory.net/rapid"

	"barque.dev/internal/api"
)

func definition(name string, names apiextensionsv1.CustomResourceDefinitionNames) apiextensionsv1.CustomResourceDefinition {
	return apiextensionsv1.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       apiextensionsv1.CustomResourceDefinitionSpec{Group: "example.com", Names: names},
	}
}

func names(plural, kind string, short ...string) apiextensionsv1.CustomResourceDefinitionNames {
	return apiextensionsv1.CustomResourceDefinitionNames{Plural: plural, Singular: plural + "-one", Kind: kind, ListKind: kind + "List", ShortNames: short}
}

func TestNames(t *testing.T) {
	holder := definition("ships.example.com", names("ships", "Ship", "sh"))
	accept(&holder, nil, nil)
	if !apihelpers.IsCRDConditionTrue(&holder, apiextensionsv1.Established) {
		t.Fatalf("alone: %+v", holder.Status)
	}
	for _, tt := range []struct {
		about string
		names apiextensionsv1.CustomResourceDefinitionNames
		want  string // reason and message of NamesAccepted
	}{
		{"other names", names("boats", "Boat", "bo"), "NoConflicts no conflicts found"},
		{"the same kind", names("boats", "Ship"), `ListKindConflict "ShipList" is already in use`},
		{"a short name that is another's plural", names("boats", "Boat", "ships"), `ShortNamesConflict "ships" is already in use`},
		{"two short names", names("boats", "Boat", "sh", "ships"), `ShortNamesConflict ["sh" is already in use, "ships" is already in use]`},
		{"a plural that is another's short name", names("sh", "Boat"), `PluralConflict "sh" is already in use`},
	} {
		crd := definition("boats.example.com", tt.names)
		accept(&crd, []apiextensionsv1.CustomResourceDefinition{holder, crd}, nil)
		c := apihelpers.FindCRDCondition(&crd, apiextensionsv1.NamesAccepted)
		if got := c.Reason + " " + c.Message; got != tt.want {
			t.Errorf("%s: %s", tt.about, got)
		}
		if free := c.Status == apiextensionsv1.ConditionTrue; free != apihelpers.IsCRDConditionTrue(&crd, apiextensionsv1.Established) {
			t.Errorf("%s: established is not as accepted: %+v", tt.about, crd.Status)
		}
	}
}

// TestNamesOfBuiltinResources: nobody is given them, and whoever holds one is told that it is none of his.
func TestNamesOfBuiltinResources(t *testing.T) {
	builtin := []*api.Resource{{
		GroupResource: schema.GroupResource{Group: "example.com", Resource: "ships"}, Singular: "ship", ShortNames: []string{"sh"},
		Kind: "Ship", ListKind: "ShipList",
	}}
	for about, tt := range map[string]struct {
		want   apiextensionsv1.CustomResourceDefinitionNames
		reason string
	}{
		"plural":     {names("ships", "Boat"), "PluralConflict"},
		"kind":       {apiextensionsv1.CustomResourceDefinitionNames{Plural: "boats", Kind: "Ship", ListKind: "BoatList"}, "KindConflict"},
		"list kind":  {apiextensionsv1.CustomResourceDefinitionNames{Plural: "boats", Kind: "Boat", ListKind: "ShipList"}, "ListKindConflict"},
		"list":       {apiextensionsv1.CustomResourceDefinitionNames{Plural: "boats", Kind: "ShipList", ListKind: "ShipListList"}, "KindConflict"},
		"short name": {names("boats", "Boat", "sh"), "ShortNamesConflict"},
		"singular":   {apiextensionsv1.CustomResourceDefinitionNames{Plural: "boats", Singular: "ship", Kind: "Boat", ListKind: "BoatList"}, "SingularConflict"},
	} {
		fresh, old := definition("x.example.com", tt.want), definition("x.example.com", tt.want)
		accept(&old, nil, nil)
		for who, crd := range map[string]*apiextensionsv1.CustomResourceDefinition{"wants": &fresh, "holds": &old} {
			accept(crd, nil, builtin)
			if c := apihelpers.FindCRDCondition(crd, apiextensionsv1.NamesAccepted); c.Status != apiextensionsv1.ConditionFalse || c.Reason != tt.reason {
				t.Errorf("%s the %s: %+v", who, about, c)
			}
		}
		if apihelpers.IsCRDConditionTrue(&fresh, apiextensionsv1.Established) {
			t.Errorf("the %s: it is established", about)
		}
	}
	free := definition("x.example.com", names("boats", "Boat", "bo"))
	if accept(&free, nil, builtin); !apihelpers.IsCRDConditionTrue(&free, apiextensionsv1.Established) {
		t.Errorf("other names: %+v", free.Status)
	}
}

// TestEstablishedStays: names that can't be had later leave the resource served by those that it has.
func TestEstablishedStays(t *testing.T) {
	ships, boats := definition("ships.example.com", names("ships", "Ship", "sh")), definition("boats.example.com", names("boats", "Boat"))
	accept(&ships, nil, nil)
	accept(&boats, []apiextensionsv1.CustomResourceDefinition{ships}, nil)
	boats.Spec.Names.ShortNames = []string{"sh"}
	accept(&boats, []apiextensionsv1.CustomResourceDefinition{ships}, nil)
	if !apihelpers.IsCRDConditionTrue(&boats, apiextensionsv1.Established) || apihelpers.IsCRDConditionTrue(&boats, apiextensionsv1.NamesAccepted) {
		t.Errorf("conditions are %+v", boats.Status.Conditions)
	}
	if len(boats.Status.AcceptedNames.ShortNames) != 0 || boats.Status.AcceptedNames.Kind != "Boat" {
		t.Errorf("it holds %+v", boats.Status.AcceptedNames)
	}
	ships.Spec.Names.ShortNames = nil
	accept(&ships, []apiextensionsv1.CustomResourceDefinition{boats}, nil)
	accept(&boats, []apiextensionsv1.CustomResourceDefinition{ships}, nil)
	if !slices.Equal(boats.Status.AcceptedNames.ShortNames, []string{"sh"}) || !apihelpers.IsCRDConditionTrue(&boats, apiextensionsv1.NamesAccepted) {
		t.Errorf("a name that became free: %+v", boats.Status)
	}
}

// TestNobodySharesNames: in whatever order definitions ask for whatever names, no two of a group ever hold the same one.
func TestNobodySharesNames(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.SampledFrom([]string{"a", "b", "c", "d"})
		group := make([]apiextensionsv1.CustomResourceDefinition, 3)
		for i := range group {
			group[i] = definition(string(rune('x'+i)), apiextensionsv1.CustomResourceDefinitionNames{})
		}
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			crd := &group[rapid.IntRange(0, len(group)-1).Draw(t, "who")]
			crd.Spec.Names = apiextensionsv1.CustomResourceDefinitionNames{
				Plural: word.Draw(t, "plural"), Singular: word.Draw(t, "singular"), Kind: word.Draw(t, "kind"), ListKind: word.Draw(t, "list"),
				ShortNames: rapid.SliceOfN(word, 0, 2).Draw(t, "short"),
			}
			accept(crd, group, nil)
			resources, kinds := map[string]string{}, map[string]string{}
			for _, c := range group {
				held := c.Status.AcceptedNames
				for _, name := range append([]string{held.Plural, held.Singular}, held.ShortNames...) {
					if other, ok := resources[name]; ok && name != "" && other != c.Name {
						t.Fatalf("%s and %s both hold %q", other, c.Name, name)
					}
					resources[name] = c.Name
				}
				for _, name := range []string{held.Kind, held.ListKind} {
					if other, ok := kinds[name]; ok && name != "" && other != c.Name {
						t.Fatalf("%s and %s both are %q", other, c.Name, name)
					}
					kinds[name] = c.Name
				}
			}
		}
	})
}

func TestConditions(t *testing.T) {
	crd := definition("ships.storage.k8s.io", names("ships", "Ship"))
	crd.Spec.Group, crd.Spec.PreserveUnknownFields = "storage.k8s.io", true
	describe(&crd)
	for kind, want := range map[apiextensionsv1.CustomResourceDefinitionConditionType]string{
		apiextensionsv1.NonStructuralSchema:                   "Violations",
		apiextensionsv1.KubernetesAPIApprovalPolicyConformant: "MissingAnnotation",
	} {
		if c := apihelpers.FindCRDCondition(&crd, kind); c == nil || c.Reason != want {
			t.Errorf("%s: %+v", kind, c)
		}
	}
	crd.Spec.PreserveUnknownFields = false
	crd.Annotations = map[string]string{apiextensionsv1.KubeAPIApprovedAnnotation: "https://github.com/kubernetes/kubernetes/pull/78458"}
	describe(&crd)
	if apihelpers.FindCRDCondition(&crd, apiextensionsv1.NonStructuralSchema) != nil || !apihelpers.IsCRDConditionTrue(&crd, apiextensionsv1.KubernetesAPIApprovalPolicyConformant) {
		t.Errorf("mended: %+v", crd.Status.Conditions)
	}
}
