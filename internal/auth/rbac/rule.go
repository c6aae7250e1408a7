package rbac

import (
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// A query is a request's attributes, read once for all rules.
type query struct {
	verb        string
	isResource  bool
	group       string
	resource    string // with "/subresource" when there is one
	subresource string
	name        string
	path        string
}

func newQuery(a authorizer.Attributes) query {
	q := query{verb: a.GetVerb(), isResource: a.IsResourceRequest()}
	if !q.isResource {
		q.path = a.GetPath()
		return q
	}
	q.group, q.resource, q.subresource, q.name = a.GetAPIGroup(), a.GetResource(), a.GetSubresource(), a.GetName()
	if q.subresource != "" {
		q.resource += "/" + q.subresource
	}
	return q
}

// Allows tells whether one of the rules allows the request.
func Allows(a authorizer.Attributes, rules []rbacv1.PolicyRule) bool {
	q := newQuery(a)
	for i := range rules {
		if q.allowedBy(&rules[i]) {
			return true
		}
	}
	return false
}

func (q *query) allowedBy(r *rbacv1.PolicyRule) bool {
	if !hasOrAll(r.Verbs, q.verb) {
		return false
	}
	if !q.isResource {
		return q.pathIn(r.NonResourceURLs)
	}
	return hasOrAll(r.APIGroups, q.group) && q.resourceIn(r.Resources) &&
		(len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, q.name))
}

func hasOrAll(list []string, want string) bool {
	for _, have := range list {
		if have == want || have == rbacv1.VerbAll {
			return true
		}
	}
	return false
}

// resourceIn tells whether a rule's resources cover the request's: "*", "pods", "pods/log" or
// "*/scale".
func (q *query) resourceIn(list []string) bool {
	for _, have := range list {
		if have == rbacv1.ResourceAll || have == q.resource {
			return true
		}
		if q.subresource == "" {
			continue
		}
		if sub, ok := strings.CutPrefix(have, "*/"); ok && sub == q.subresource {
			return true
		}
	}
	return false
}

// pathIn tells whether a rule's paths cover the request's; a trailing "*" covers what follows.
func (q *query) pathIn(list []string) bool {
	for _, have := range list {
		if have == rbacv1.NonResourceAll || have == q.path {
			return true
		}
		if strings.HasSuffix(have, "*") && strings.HasPrefix(q.path, strings.TrimRight(have, "*")) {
			return true
		}
	}
	return false
}
