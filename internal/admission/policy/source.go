package policy

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission/plugin/policy/generic"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/admission/state"
)

// source pairs policies with their bindings. It looks at the image when a request comes in, so that
// a change is effective from the moment when the image holds it, and compiles a policy once.
type source[P, B client.Object, E generic.Evaluator] struct {
	image              Image
	policies, bindings schema.GroupResource
	policyOf           func(B) string
	paramOf            func(P) *admissionv1.ParamKind
	compile            func(P) E

	pairs atomic.Pointer[pairs[P, B, E]]

	mu       sync.Mutex
	compiled map[string]compiled[E] // by policy
}

// pairs is what a source made of two tables.
type pairs[P, B client.Object, E generic.Evaluator] struct {
	policies, bindings int64 // the tables' revisions
	hooks              []generic.PolicyHook[P, B, E]
	params             bool // whether any policy has parameters
}

type compiled[E generic.Evaluator] struct {
	version   string // the policy's
	evaluator E
}

// hooks returns the policies that are bound.
func (s *source[P, B, E]) hooks() ([]generic.PolicyHook[P, B, E], error) {
	policies, bindings := s.image.Table(s.policies), s.image.Table(s.bindings)
	if policies == nil || bindings == nil {
		return nil, nil
	}
	changed, n := policies.Changed()
	rebound, m := bindings.Changed()
	if n == 0 || m == 0 {
		return nil, nil
	}
	now := s.pairs.Load()
	if now == nil || now.policies != changed || now.bindings != rebound {
		var err error
		if now, err = s.pair(changed, rebound); err != nil {
			return nil, err
		}
	}
	if !now.params {
		return now.hooks, nil
	}
	// Kinds of parameters come and go with their definitions.
	hooks := slices.Clone(now.hooks)
	for i := range hooks {
		hook := &hooks[i]
		if kind := s.paramOf(hook.Policy); kind != nil {
			hook.ParamInformer, hook.ParamScope, hook.ConfigurationError = parameters(s.image, kind)
		}
	}
	return hooks, nil
}

// pair looks at both tables again. The revisions are no newer than what it sees.
func (s *source[P, B, E]) pair(policies, bindings int64) (*pairs[P, B, E], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.pairs.Load(); now != nil && now.policies == policies && now.bindings == bindings {
		return now, nil // another request was faster
	}
	bound := map[string][]B{}
	err := state.Each(s.image, s.bindings, "", func(obj runtime.Object) bool {
		if binding, ok := obj.(B); ok {
			bound[s.policyOf(binding)] = append(bound[s.policyOf(binding)], binding)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.bindings, err)
	}
	next := &pairs[P, B, E]{policies: policies, bindings: bindings}
	keep := map[string]compiled[E]{}
	err = state.Each(s.image, s.policies, "", func(obj runtime.Object) bool {
		policy, ok := obj.(P)
		if !ok || len(bound[policy.GetName()]) == 0 {
			return true
		}
		c, ok := s.compiled[policy.GetName()]
		if !ok || c.version != policy.GetResourceVersion() {
			c = compiled[E]{version: policy.GetResourceVersion(), evaluator: s.compile(policy)}
		}
		keep[policy.GetName()] = c
		next.params = next.params || s.paramOf(policy) != nil
		next.hooks = append(next.hooks, generic.PolicyHook[P, B, E]{Policy: policy, Bindings: bound[policy.GetName()], Evaluator: c.evaluator})
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.policies, err)
	}
	slices.SortFunc(next.hooks, func(a, b generic.PolicyHook[P, B, E]) int { return cmp.Compare(a.Policy.GetName(), b.Policy.GetName()) })
	s.compiled = keep
	s.pairs.Store(next)
	return next, nil
}
