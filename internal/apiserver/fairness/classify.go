package fairness

import (
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// flow is a flow schema as requests meet it: where those that match go, and what of them makes a flow of its own.
type flow struct {
	schema string
	level  *level
	stats  *stats
	by     flowcontrolv1.FlowDistinguisherMethodType // empty: all are one flow
	rules  []flowcontrolv1.PolicyRulesWithSubjects
	hash   uint64
	// For response headers; shared.
	schemaUID, levelUID []string
}

// classifier finds the flow schema of requests. Which rules may concern a user is found out once and remembered, for
// what is left to compare then is a few short strings. It is safe for concurrent use.
type classifier struct {
	flows    []*flow // by precedence
	fallback *flow
	seed     maphash.Seed

	users atomic.Pointer[sync.Map] // user name to *person
	known atomic.Int64
}

// maxUsers bounds how many users are remembered; when there are more, all are forgotten.
const maxUsers = 8192

// person is what is remembered of a user: the rules whose subjects include them while they are in these groups.
type person struct {
	groups []string
	rules  []personal
}

type personal struct {
	flow *flow
	hash uint64 // of the flow, if the schema tells flows apart by user
	rule *flowcontrolv1.PolicyRulesWithSubjects
}

func newClassifier(flows []*flow, fallback *flow, seed maphash.Seed) *classifier {
	c := &classifier{flows: flows, fallback: fallback, seed: seed}
	c.users.Store(&sync.Map{})
	for _, f := range flows {
		f.hash = maphash.String(seed, f.schema)
	}
	return c
}

// find returns the flow schema that a request matches first, and the hash of its flow.
func (c *classifier) find(info *request.RequestInfo, who user.Info) (*flow, uint64) {
	rules := c.person(who).rules
	for i := range rules {
		r := &rules[i]
		if !matches(info, r.rule) {
			continue
		}
		if r.flow.by == flowcontrolv1.FlowDistinguisherMethodByNamespaceType {
			return r.flow, r.flow.hash ^ maphash.String(c.seed, info.Namespace)
		}
		return r.flow, r.hash
	}
	// Users that are neither authenticated nor unauthenticated don't exist, but are nobody's reason to fail.
	return c.fallback, c.fallback.hash
}

func (c *classifier) person(who user.Info) *person {
	name, groups := who.GetName(), who.GetGroups()
	users := c.users.Load()
	if v, ok := users.Load(name); ok {
		if p := v.(*person); slices.Equal(p.groups, groups) {
			return p
		}
	} else if c.known.Add(1) > maxUsers {
		c.known.Store(1)
		users = &sync.Map{}
		c.users.Store(users)
	}
	p := &person{groups: slices.Clone(groups)}
	for _, f := range c.flows {
		hash := f.hash
		if f.by == flowcontrolv1.FlowDistinguisherMethodByUserType {
			hash ^= maphash.String(c.seed, name)
		}
		for i := range f.rules {
			if slices.ContainsFunc(f.rules[i].Subjects, func(s flowcontrolv1.Subject) bool { return includes(&s, name, groups) }) {
				p.rules = append(p.rules, personal{flow: f, hash: hash, rule: &f.rules[i]})
			}
		}
	}
	users.Store(name, p)
	return p
}

// includes tells whether a rule's subject is the user, or has them in it.
func includes(s *flowcontrolv1.Subject, name string, groups []string) bool {
	switch s.Kind {
	case flowcontrolv1.SubjectKindUser:
		return s.User != nil && (s.User.Name == flowcontrolv1.NameAll || s.User.Name == name)
	case flowcontrolv1.SubjectKindGroup:
		return s.Group != nil && (s.Group.Name == flowcontrolv1.NameAll || slices.Contains(groups, s.Group.Name))
	case flowcontrolv1.SubjectKindServiceAccount:
		a := s.ServiceAccount
		switch {
		case a == nil:
			return false
		case a.Name == flowcontrolv1.NameAll:
			return strings.HasPrefix(name, serviceaccount.MakeUsername(a.Namespace, ""))
		}
		return serviceaccount.MatchesUsername(a.Namespace, a.Name, name)
	}
	return false
}

// matches tells whether a rule is about what a request asks for.
func matches(info *request.RequestInfo, rule *flowcontrolv1.PolicyRulesWithSubjects) bool {
	if !info.IsResourceRequest {
		for i := range rule.NonResourceRules {
			r := &rule.NonResourceRules[i]
			if names(r.Verbs, flowcontrolv1.VerbAll, info.Verb) && slices.ContainsFunc(r.NonResourceURLs, func(u string) bool { return leadsTo(u, info.Path) }) {
				return true
			}
		}
		return false
	}
	for i := range rule.ResourceRules {
		r := &rule.ResourceRules[i]
		if names(r.Verbs, flowcontrolv1.VerbAll, info.Verb) && names(r.APIGroups, flowcontrolv1.APIGroupAll, info.APIGroup) &&
			namesResource(r.Resources, info.Resource, info.Subresource) && covers(r, info.Namespace) {
			return true
		}
	}
	return false
}

func covers(r *flowcontrolv1.ResourcePolicyRule, namespace string) bool {
	if namespace == "" {
		return r.ClusterScope
	}
	return names(r.Namespaces, flowcontrolv1.NamespaceEvery, namespace)
}

// names tells whether a list has an element, or stands for everything.
func names(list []string, all, element string) bool {
	return len(list) == 1 && list[0] == all || slices.Contains(list, element)
}

// namesResource is names of "resource" or "resource/subresource".
func namesResource(list []string, resource, subresource string) bool {
	if subresource == "" {
		return names(list, flowcontrolv1.ResourceAll, resource)
	}
	if len(list) == 1 && list[0] == flowcontrolv1.ResourceAll {
		return true
	}
	return slices.ContainsFunc(list, func(s string) bool {
		r, sub, ok := strings.Cut(s, "/")
		return ok && r == resource && sub == subresource
	})
}

// leadsTo tells whether a rule's URL is a path, or has it below it.
func leadsTo(url, path string) bool {
	if url == flowcontrolv1.NonResourceAll || url == path {
		return true
	}
	prefix := strings.TrimSuffix(url, "*")
	if !strings.HasSuffix(prefix, "/") {
		return len(path) > len(prefix) && path[:len(prefix)] == prefix && path[len(prefix)] == '/'
	}
	return strings.HasPrefix(path, prefix)
}

// distinguish is what makes a request's flow another than others of its schema.
func (f *flow) distinguish(t *Ticket) string {
	switch f.by {
	case flowcontrolv1.FlowDistinguisherMethodByUserType:
		return t.user.GetName()
	case flowcontrolv1.FlowDistinguisherMethodByNamespaceType:
		return t.info.Namespace
	}
	return ""
}
