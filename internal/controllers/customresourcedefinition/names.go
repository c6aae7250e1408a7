package customresourcedefinition

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
)

// claimed are the names that other definitions of a group hold.
type claimed struct{ resources, kinds map[string]bool }

func claimedBy(group []apiextensionsv1.CustomResourceDefinition, but string) claimed {
	c := claimed{resources: map[string]bool{}, kinds: map[string]bool{}}
	for i := range group {
		if group[i].Name == but {
			continue
		}
		names := group[i].Status.AcceptedNames
		for _, name := range append([]string{names.Plural, names.Singular}, names.ShortNames...) {
			c.resources[name] = true
		}
		c.kinds[names.Kind], c.kinds[names.ListKind] = true, true
	}
	delete(c.resources, "")
	delete(c.kinds, "")
	return c
}

// accept gives a definition those of the names it wants that no other of its group holds, and says so in its conditions.
// What it holds it keeps until it wants another name and that is free; once it is established it stays so.
func accept(crd *apiextensionsv1.CustomResourceDefinition, group []apiextensionsv1.CustomResourceDefinition) {
	others := claimedBy(group, crd.Name)
	wanted, held := crd.Spec.Names, &crd.Status.AcceptedNames
	outcome := apiextensionsv1.CustomResourceDefinitionCondition{
		Type: apiextensionsv1.NamesAccepted, Status: apiextensionsv1.ConditionTrue, Reason: "NoConflicts", Message: "no conflicts found",
	}
	take := func(reason, want string, have *string, taken map[string]bool) {
		if want != *have && taken[want] {
			outcome.Status, outcome.Reason, outcome.Message = apiextensionsv1.ConditionFalse, reason, inUse(want)
			return
		}
		*have = want
	}
	take("PluralConflict", wanted.Plural, &held.Plural, others.resources)
	take("SingularConflict", wanted.Singular, &held.Singular, others.resources)
	var conflicts []string
	for _, name := range wanted.ShortNames {
		if others.resources[name] && !slices.Contains(held.ShortNames, name) {
			conflicts = append(conflicts, inUse(name))
		}
	}
	if len(conflicts) > 0 {
		message := strings.Join(conflicts, ", ")
		if len(conflicts) > 1 {
			message = "[" + message + "]"
		}
		outcome.Status, outcome.Reason, outcome.Message = apiextensionsv1.ConditionFalse, "ShortNamesConflict", message
	} else {
		held.ShortNames = slices.Clone(wanted.ShortNames)
	}
	take("KindConflict", wanted.Kind, &held.Kind, others.kinds)
	take("ListKindConflict", wanted.ListKind, &held.ListKind, others.kinds)
	held.Categories = slices.Clone(wanted.Categories)

	apihelpers.SetCRDCondition(crd, outcome)
	if apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
		return
	}
	established := apiextensionsv1.CustomResourceDefinitionCondition{
		Type: apiextensionsv1.Established, Status: apiextensionsv1.ConditionFalse, Reason: "NotAccepted", Message: "not all names are accepted",
	}
	if outcome.Status == apiextensionsv1.ConditionTrue {
		// Servers that have not seen it yet wait until they have, so that there is nothing to wait for here.
		established.Status, established.Reason, established.Message = apiextensionsv1.ConditionTrue, "InitialNamesAccepted", "the initial names have been accepted"
	}
	apihelpers.SetCRDCondition(crd, established)
}

func inUse(name string) string { return fmt.Sprintf("%q is already in use", name) }
