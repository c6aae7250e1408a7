package registry

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// completeFamilies fills in a service's IP families and policy from what it says, what it was,
// and what the cluster has (KEP-563). Addresses that contradict them are errors.
func (c *clusterIPs) completeFamilies(service, before *corev1.Service) error {
	spec := &service.Spec
	if !hasClusterIP(service) || c.prefersAsBefore(service, before) {
		return nil
	}
	if spec.IPFamilyPolicy == nil {
		spec.IPFamilyPolicy = defaultPolicy(service, before)
	}
	single := *spec.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack
	if before != nil {
		if err := reduceFamilies(service, before, single); err != nil {
			return err
		}
	}
	if single && (len(spec.ClusterIPs) > 1 || len(spec.IPFamilies) > 1) {
		return invalidService(service, field.Invalid(field.NewPath("spec", "ipFamilyPolicy"), spec.IPFamilyPolicy,
			"must be 'RequireDualStack' or 'PreferDualStack' when multiple cluster IPs or IP families are specified"))
	}
	if err := c.familiesOfAddresses(service); err != nil {
		return err
	}
	if spec.ClusterIP == corev1.ClusterIPNone && len(spec.Selector) == 0 {
		// Whoever sets its endpoints decides; the cluster need not have the family.
		if len(spec.IPFamilies) == 0 {
			spec.IPFamilies = c.families()[:1]
		}
		if len(spec.IPFamilies) < 2 && !single {
			spec.IPFamilies = append(spec.IPFamilies, otherFamily(spec.IPFamilies[0]))
		}
		return nil
	}
	return c.checkFamilies(service, single)
}

// checkFamilies holds the families to what the cluster has, and adds what the policy wants.
func (c *clusterIPs) checkFamilies(service *corev1.Service, single bool) error {
	spec, have := &service.Spec, c.families()
	if *spec.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack && len(have) < 2 {
		return invalidService(service, field.Invalid(field.NewPath("spec", "ipFamilyPolicy"), spec.IPFamilyPolicy,
			"this cluster is not configured for dual-stack services"))
	}
	for i, family := range spec.IPFamilies {
		if !slices.Contains(have, family) {
			return invalidService(service, field.Invalid(field.NewPath("spec", "ipFamilies").Index(i), family, "not configured on this cluster"))
		}
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = slices.Clone(have[:1])
	}
	if !single && len(spec.IPFamilies) == 1 && len(have) == 2 {
		spec.IPFamilies = append(spec.IPFamilies, otherFamily(spec.IPFamilies[0]))
	}
	return nil
}

// prefersAsBefore tells whether an update leaves the families alone: a service that prefers two
// is not changed because the cluster was.
func (c *clusterIPs) prefersAsBefore(service, before *corev1.Service) bool {
	prefers := func(s *corev1.Service) bool {
		return s.Spec.IPFamilyPolicy != nil && *s.Spec.IPFamilyPolicy == corev1.IPFamilyPolicyPreferDualStack
	}
	return before != nil && service.Spec.Type == before.Spec.Type && prefers(service) &&
		(before.Spec.IPFamilyPolicy == nil || prefers(before)) &&
		slices.Equal(service.Spec.ClusterIPs, before.Spec.ClusterIPs) &&
		slices.Equal(service.Spec.IPFamilies, before.Spec.IPFamilies)
}

func defaultPolicy(service, before *corev1.Service) *corev1.IPFamilyPolicy {
	policy := corev1.IPFamilyPolicySingleStack
	switch {
	case before != nil && before.Spec.IPFamilyPolicy != nil:
		policy = *before.Spec.IPFamilyPolicy
	case service.Spec.ClusterIP == corev1.ClusterIPNone && len(service.Spec.Selector) == 0:
		policy = corev1.IPFamilyPolicyRequireDualStack
	}
	return &policy
}

// reduceFamilies lets an update to a single stack give up the second family without saying so,
// and other updates not at all.
func reduceFamilies(service, before *corev1.Service, single bool) error {
	spec, old := &service.Spec, before.Spec
	if single {
		if slices.Equal(spec.ClusterIPs, old.ClusterIPs) && len(spec.ClusterIPs) > 1 {
			spec.ClusterIPs = spec.ClusterIPs[:1]
		}
		if slices.Equal(spec.IPFamilies, old.IPFamilies) && len(spec.IPFamilies) > 1 {
			spec.IPFamilies = spec.IPFamilies[:1]
		}
		return nil
	}
	fewer := func(now, was int) bool { return now > 0 && now < was }
	if fewer(len(spec.ClusterIPs), len(old.ClusterIPs)) || fewer(len(spec.IPFamilies), len(old.IPFamilies)) {
		return invalidService(service, field.Invalid(field.NewPath("spec", "ipFamilyPolicy"), spec.IPFamilyPolicy,
			"must be 'SingleStack' to release the secondary cluster IP or IP family"))
	}
	return nil
}

// familiesOfAddresses adds the families that the given addresses imply.
func (c *clusterIPs) familiesOfAddresses(service *corev1.Service) error {
	spec := &service.Spec
	for i, ip := range spec.ClusterIPs {
		if ip == corev1.ClusterIPNone {
			break
		}
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			if ip == "" {
				continue
			}
			return invalidService(service, field.Invalid(field.NewPath("spec", "clusterIPs").Index(i), ip, "must be a valid IP address"))
		}
		family := familyOf(addr.Unmap())
		if i < len(spec.IPFamilies) {
			if spec.IPFamilies[i] != family {
				return invalidService(service, field.Invalid(field.NewPath("spec", "clusterIPs").Index(i), ip,
					fmt.Sprintf("expected an %v value as indicated by `ipFamilies[%v]`", spec.IPFamilies[i], i)))
			}
			continue
		}
		if !slices.Contains(c.families(), family) {
			return invalidService(service, field.Invalid(field.NewPath("spec", "clusterIPs").Index(i), spec.ClusterIPs,
				fmt.Sprintf("%s is not configured on this cluster", family)))
		}
		spec.IPFamilies = append(spec.IPFamilies, family)
	}
	return nil
}

func otherFamily(f corev1.IPFamily) corev1.IPFamily {
	if f == corev1.IPv4Protocol {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}
