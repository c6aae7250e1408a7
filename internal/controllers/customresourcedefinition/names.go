package customresourcedefinition

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"

	"barque.dev/internal/api"
)

// claims are names that others hold. Those of built-in resources, which are true, are no definition's, whatever it held before.
type claims map[string]bool

// free tells whether a name can be had, or kept by who has it.
func (c claims) free(want, have string) bool {
	builtin, taken := c[want]
	return !taken || want == have && !builtin
}

// claimed are the names that the other definitions of a group, and its built-in resources, hold.
type claimed struct{ resources, kinds claims }

func claimedBy(group []apiextensionsv1.CustomResourceDefinition, builtin []*api.Resource, but string) claimed {
	c := claimed{resources: claims{}, kinds: claims{}}
	for i := range group {
		if group[i].Name != but {
			c.hold(group[i].Status.AcceptedNames, false)
		}
	}
	for _, r := range builtin {
		c.hold(apiextensionsv1.CustomResourceDefinitionNames{
			Plural: r.Resource, Singular: r.Singular, ShortNames: r.ShortNames, Kind: r.Kind, ListKind: r.ListKind,
		}, true)
	}
	return c
}

func (c claimed) hold(names apiextensionsv1.CustomResourceDefinitionNames, builtin bool) {
	for _, name := range append([]string{names.Plural, names.Singular}, names.ShortNames...) {
		c.resources[name] = builtin
	}
	c.kinds[names.Kind], c.kinds[names.ListKind] = builtin, builtin
	delete(c.resources, "")
	delete(c.kinds, "")
}

// accept gives a definition those of the names it wants that no other of its group and no built-in resource of the group
// holds, and says so in its conditions. What it holds it keeps until it wants another name and that is free; once it is
// established it stays so.
func accept(crd *apiextensionsv1.CustomResourceDefinition, group []apiextensionsv1.CustomResourceDefinition, builtin []*api.Resource) {
	others := claimedBy(group, builtin, crd.Name)
	wanted, held := crd.Spec.Names, &crd.Status.AcceptedNames
	outcome := apiextensionsv1.CustomResourceDefinitionCondition{
		Type: apiextensionsv1.NamesAccepted, Status: apiextensionsv1.ConditionTrue, Reason: "NoConflicts", Message: "no conflicts found",
	}
	take := func(reason, want string, have *string, taken claims) {
		if !taken.free(want, *have) {
			outcome.Status, outcome.Reason, outcome.Message = apiextensionsv1.ConditionFalse, reason, inUse(want)
			return
		}
		*have = want
	}
	take("PluralConflict", wanted.Plural, &held.Plural, others.resources)
	take("SingularConflict", wanted.Singular, &held.Singular, others.resources)
	var conflicts []string
	for _, name := range wanted.ShortNames {
		have := ""
		if slices.Contains(held.ShortNames, name) {
			have = name
		}
		if !others.resources.free(name, have) {
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
