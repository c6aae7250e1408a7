package apiservice

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration/v1/helper"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

// A Prober asks the server of an APIService for what it must have, within a bound of its own.
type Prober interface {
	ProbeAPIService(ctx context.Context, svc *apiregistrationv1.APIService) error
}

type availability struct {
	deps   kit.Deps
	prober Prober

	mu sync.Mutex
	// users are the APIServices by the service that they name. What an earlier term of leadership saw last may be among
	// them.
	users map[types.NamespacedName]map[string]bool
}

// NewAvailability makes the controller that keeps the condition Available.
func NewAvailability(deps kit.Deps, prober Prober) kit.Controller {
	a := &availability{deps: deps, prober: prober, users: map[types.NamespacedName]map[string]bool{}}
	return kit.Controller{
		Name: "apiservice-availability",
		Watches: []kit.Watch{
			{Kind: &apiregistrationv1.APIService{}, Requests: a.fromAPIService},
			{Kind: &corev1.Service{}, Requests: func(e barqueclient.Event) []reconcile.Request {
				return a.of(e.Object().GetNamespace(), e.Object().GetName())
			}},
			{Kind: &discoveryv1.EndpointSlice{}, Requests: func(e barqueclient.Event) []reconcile.Request {
				return a.of(e.Object().GetNamespace(), e.Object().GetLabels()[discoveryv1.LabelServiceName])
			}},
		},
		Reconcile: a.reconcile,
	}
}

// fromAPIService notes which service an APIService names, and asks for it.
func (a *availability) fromAPIService(e barqueclient.Event) []reconcile.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	if key, ok := named(e.Old); ok {
		delete(a.users[key], e.Object().GetName())
	}
	if key, ok := named(e.New); ok {
		if a.users[key] == nil {
			a.users[key] = map[string]bool{}
		}
		a.users[key][e.Object().GetName()] = true
	}
	return kit.Self(e)
}

// named is the service that an APIService names; false if it is none that names one.
func named(obj client.Object) (types.NamespacedName, bool) {
	svc, ok := obj.(*apiregistrationv1.APIService)
	if !ok || svc == nil || svc.Spec.Service == nil {
		return types.NamespacedName{}, false
	}
	return types.NamespacedName{Namespace: svc.Spec.Service.Namespace, Name: svc.Spec.Service.Name}, true
}

// of asks for the APIServices of a service.
func (a *availability) of(namespace, name string) []reconcile.Request {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []reconcile.Request
	for user := range a.users[types.NamespacedName{Namespace: namespace, Name: name}] {
		out = append(out, reconcile.Request{NamespacedName: types.NamespacedName{Name: user}})
	}
	return out
}

func (a *availability) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var svc apiregistrationv1.APIService
	if err := a.deps.Client.Get(ctx, req.NamespacedName, &svc); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	condition, err := a.judge(ctx, &svc)
	if err != nil {
		return reconcile.Result{}, err
	}
	condition.Type, condition.LastTransitionTime = apiregistrationv1.Available, metav1.NewTime(a.deps.Clock.Now())
	changed := svc.DeepCopy()
	helper.SetAPIServiceCondition(changed, condition)
	if !equality.Semantic.DeepEqual(svc.Status, changed.Status) {
		if err := a.deps.Client.Status().Update(ctx, changed); client.IgnoreNotFound(err) != nil {
			return reconcile.Result{}, fmt.Errorf("update the status of APIService %s: %w", svc.Name, err)
		}
	}
	if svc.Spec.Service == nil {
		return reconcile.Result{}, nil
	}
	now := helper.GetAPIServiceConditionByType(changed, apiregistrationv1.Available)
	return reconcile.Result{RequeueAfter: again(now, a.deps.Clock.Now())}, nil
}

// Bounds on the time between two looks at a server: many things that matter to whether it can be reached, such as the
// network between, change nothing that could be followed.
const (
	soonest = time.Second
	latest  = 30 * time.Second
)

// again is when a server is looked at again. One that was lost just now may be back soon.
func again(condition *apiregistrationv1.APIServiceCondition, now time.Time) time.Duration {
	if condition.Status == apiregistrationv1.ConditionTrue {
		return latest
	}
	return max(soonest, min(now.Sub(condition.LastTransitionTime.Time)/4, latest))
}

// judge finds out whether requests for an APIService can be served.
func (a *availability) judge(ctx context.Context, svc *apiregistrationv1.APIService) (apiregistrationv1.APIServiceCondition, error) {
	if svc.Spec.Service == nil {
		return helper.NewLocalAvailableAPIServiceCondition(), nil
	}
	ref := *svc.Spec.Service
	service := &corev1.Service{}
	err := a.deps.Client.Get(ctx, types.NamespacedName{Namespace: ref.Namespace, Name: ref.Name}, service)
	if apierrors.IsNotFound(err) {
		service = nil
	} else if err != nil {
		return apiregistrationv1.APIServiceCondition{}, fmt.Errorf("get service %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	var endpoints discoveryv1.EndpointSliceList
	err = a.deps.Client.List(ctx, &endpoints, client.InNamespace(ref.Namespace), client.MatchingLabels{discoveryv1.LabelServiceName: ref.Name})
	if err != nil {
		return apiregistrationv1.APIServiceCondition{}, fmt.Errorf("list the endpoints of service %s/%s: %w", ref.Namespace, ref.Name, err)
	}
	if c, ok := examine(ref, service, endpoints.Items); !ok {
		return c, nil
	}
	if err := a.prober.ProbeAPIService(ctx, svc); err != nil {
		return unavailable("FailedDiscoveryCheck", "%v", err), nil
	}
	return apiregistrationv1.APIServiceCondition{Status: apiregistrationv1.ConditionTrue, Reason: "Passed", Message: "all checks passed"}, nil
}

// unavailable is a condition that says no, and why. Reasons are those of kube-aggregator.
func unavailable(reason, format string, args ...any) apiregistrationv1.APIServiceCondition {
	return apiregistrationv1.APIServiceCondition{Status: apiregistrationv1.ConditionFalse, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// examine tells whether a service looks as if a server could be reached by it; if not, the condition says why. service is nil
// if there is none.
func examine(ref apiregistrationv1.ServiceReference, service *corev1.Service, endpoints []discoveryv1.EndpointSlice) (apiregistrationv1.APIServiceCondition, bool) {
	ok := apiregistrationv1.APIServiceCondition{}
	if service == nil {
		return unavailable("ServiceNotFound", "service/%s in %q is not present", ref.Name, ref.Namespace), false
	}
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		return ok, true // its endpoints are elsewhere
	}
	number := int32(443)
	if ref.Port != nil {
		number = *ref.Port
	}
	i := slices.IndexFunc(service.Spec.Ports, func(p corev1.ServicePort) bool { return p.Port == number })
	if i < 0 {
		return unavailable("ServicePortError", "service/%s in %q is not listening on port %d", ref.Name, ref.Namespace, number), false
	}
	if len(endpoints) == 0 {
		return unavailable("EndpointsNotFound", "cannot find endpointslices for service/%s in %q", ref.Name, ref.Namespace), false
	}
	name := service.Spec.Ports[i].Name
	if !slices.ContainsFunc(endpoints, func(s discoveryv1.EndpointSlice) bool { return ready(s, name) }) {
		return unavailable("MissingEndpoints", "endpointslices for service/%s in %q have no addresses with port name %q", ref.Name, ref.Namespace, name), false
	}
	return ok, true
}

// ready tells whether a slice has a ready endpoint with a port of the name.
func ready(s discoveryv1.EndpointSlice, port string) bool {
	return slices.ContainsFunc(s.Endpoints, func(e discoveryv1.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready }) &&
		slices.ContainsFunc(s.Ports, func(p discoveryv1.EndpointPort) bool { return p.Name != nil && *p.Name == port && p.Port != nil })
}
