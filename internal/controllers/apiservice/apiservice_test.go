package apiservice

import (
	"context"
	"errors"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/controllertest"
)

func TestDecide(t *testing.T) {
	ships := schema.GroupVersion{Group: "example.com", Version: "v1"}
	want := local(ships, always)
	kept, changed, started, users := local(ships, always), local(ships, always), local(ships, atStart), local(ships, always)
	changed.Spec.Service = &apiregistrationv1.ServiceReference{Namespace: "a", Name: "b"}
	started.Spec.VersionPriority = 7
	delete(users.Labels, managedLabel)
	for name, c := range map[string]struct {
		have, want *apiregistrationv1.APIService
		do         action
	}{
		"neither is nor should be":      {nil, nil, nothing},
		"is not yet":                    {nil, want, create},
		"is as it should be":            {kept, want, nothing},
		"was given away":                {changed, want, update},
		"should be no longer":           {kept, nil, remove},
		"is a user's":                   {users, want, nothing},
		"is a user's, and not served":   {users, nil, nothing},
		"is somebody else's to look at": {started, want, nothing},
	} {
		if got := decide(c.have, c.want, func(managed string) bool { return managed == always }); got != c.do {
			t.Errorf("%s: %d, want %d", name, got, c.do)
		}
	}
}

// TestExamine: what a service looks like, before its server is asked.
func TestExamine(t *testing.T) {
	ref := apiregistrationv1.ServiceReference{Namespace: "ns", Name: "sample", Port: ptr.To[int32](8443)}
	service := func(port int32) *corev1.Service {
		return &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, Ports: []corev1.ServicePort{{Name: "http", Port: 80}, {Name: "api", Port: port}}}}
	}
	slices := func(port string, endpoints ...discoveryv1.Endpoint) []discoveryv1.EndpointSlice {
		return []discoveryv1.EndpointSlice{{Endpoints: endpoints, Ports: []discoveryv1.EndpointPort{{Name: &port, Port: ptr.To[int32](1)}}}}
	}
	up := discoveryv1.Endpoint{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}
	down := discoveryv1.Endpoint{Addresses: []string{"10.0.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}}
	untold := discoveryv1.Endpoint{Addresses: []string{"10.0.0.3"}}
	external := &corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "api.example.com"}}
	for name, c := range map[string]struct {
		service   *corev1.Service
		endpoints []discoveryv1.EndpointSlice
		reason    string
	}{
		"no service":              {nil, slices("api", up), "ServiceNotFound"},
		"another port":            {service(443), slices("api", up), "ServicePortError"},
		"no endpoints at all":     {service(8443), nil, "EndpointsNotFound"},
		"none that is ready":      {service(8443), slices("api", down), "MissingEndpoints"},
		"none of the port":        {service(8443), slices("http", up), "MissingEndpoints"},
		"one that is ready":       {service(8443), slices("api", down, up), ""},
		"one that says nothing":   {service(8443), slices("api", untold), ""},
		"a name outside":          {external, nil, ""},
		"one of several is ready": {service(8443), append(slices("api", down), slices("api", up)...), ""},
	} {
		got, ok := examine(ref, c.service, c.endpoints)
		if got.Reason != c.reason || ok != (c.reason == "") || !ok && (got.Status != apiregistrationv1.ConditionFalse || got.Message == "") {
			t.Errorf("%s: %+v, %v, want %q", name, got, ok, c.reason)
		}
	}
	ref.Port = nil
	if c, ok := examine(ref, service(443), slices("api", up)); !ok {
		t.Errorf("without a port: %+v", c)
	}
}

func TestAgain(t *testing.T) {
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	for since, want := range map[time.Duration]time.Duration{0: time.Second, 20 * time.Second: 5 * time.Second, time.Hour: 30 * time.Second} {
		c := &apiregistrationv1.APIServiceCondition{Status: apiregistrationv1.ConditionFalse, LastTransitionTime: metav1.NewTime(now.Add(-since))}
		if got := again(c, now); got != want {
			t.Errorf("%v after it was lost: in %v, want %v", since, got, want)
		}
		if c.Status = apiregistrationv1.ConditionTrue; again(c, now) != latest {
			t.Errorf("one that is available: in %v", again(c, now))
		}
	}
}

// prober answers for all servers.
type prober struct{ err error }

func (p *prober) ProbeAPIService(context.Context, *apiregistrationv1.APIService) error { return p.err }

func remote() *apiregistrationv1.APIService {
	return &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: "v1.wardle.example.com"}, Spec: apiregistrationv1.APIServiceSpec{
		Group: "wardle.example.com", Version: "v1", Service: &apiregistrationv1.ServiceReference{Namespace: "ns", Name: "sample", Port: ptr.To[int32](443)}}}
}

// TestAvailability: an APIService's condition follows its service, its endpoints and its server.
func TestAvailability(t *testing.T) {
	svc := remote()
	w := controllertest.New(t, svc)
	asked := &prober{err: errors.New("it is silent")}
	c := NewAvailability(w.Deps(), asked)
	c.Watches[0].Requests(barqueclient.Event{New: svc})
	expect := func(what string, status apiregistrationv1.ConditionStatus, reason string) {
		t.Helper()
		result := w.Reconcile(c, svc)
		conditions := controllertest.Reload(w, svc).Status.Conditions
		if len(conditions) != 1 || conditions[0].Type != apiregistrationv1.Available || conditions[0].Status != status || conditions[0].Reason != reason {
			t.Fatalf("%s: %+v", what, conditions)
		}
		if local := reason == "Local"; (result.RequeueAfter == 0) != local {
			t.Errorf("%s: looked at again in %v", what, result.RequeueAfter)
		}
	}
	expect("nothing is there", apiregistrationv1.ConditionFalse, "ServiceNotFound")
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "sample"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 443}}}}
	w.MustCreate(service)
	if got := c.Watches[1].Requests(barqueclient.Event{New: service}); len(got) != 1 || got[0].Name != svc.Name {
		t.Errorf("a service asks for %v", got)
	}
	expect("a service", apiregistrationv1.ConditionFalse, "EndpointsNotFound")
	endpoints := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "sample-1", Labels: map[string]string{discoveryv1.LabelServiceName: "sample"}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}}}, Ports: []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To[int32](8443)}},
	}
	w.MustCreate(endpoints)
	if got := c.Watches[2].Requests(barqueclient.Event{New: endpoints}); len(got) != 1 || got[0].Name != svc.Name {
		t.Errorf("endpoints ask for %v", got)
	}
	expect("a server that is silent", apiregistrationv1.ConditionFalse, "FailedDiscoveryCheck")
	first := controllertest.Reload(w, svc).Status.Conditions[0].LastTransitionTime
	w.Clock.Step(time.Minute)
	asked.err = nil
	expect("one that answers", apiregistrationv1.ConditionTrue, "Passed")
	if at := controllertest.Reload(w, svc).Status.Conditions[0].LastTransitionTime; at.Sub(first.Time) != time.Minute {
		t.Errorf("it turned at %v", at)
	}
	controllertest.Change(w, svc, func(svc *apiregistrationv1.APIService) { svc.Spec.Service = nil })
	expect("a local one", apiregistrationv1.ConditionTrue, "Local")
	c.Watches[0].Requests(barqueclient.Event{Old: remote(), New: svc})
	if got := c.Watches[1].Requests(barqueclient.Event{New: service}); len(got) != 0 {
		t.Errorf("a service that no APIService names asks for %v", got)
	}
}

// TestDefinitionsAreRegistered: versions come and go with what definitions serve.
func TestDefinitionsAreRegistered(t *testing.T) {
	version := func(name string, served bool) apiextensionsv1.CustomResourceDefinitionVersion {
		return apiextensionsv1.CustomResourceDefinitionVersion{Name: name, Served: served}
	}
	crd := &apiextensionsv1.CustomResourceDefinition{ObjectMeta: metav1.ObjectMeta{Name: "ships.example.com"}, Spec: apiextensionsv1.CustomResourceDefinitionSpec{
		Group: "example.com", Versions: []apiextensionsv1.CustomResourceDefinitionVersion{version("v1", true), version("v2", false)}}}
	w := controllertest.New(t, crd)
	c := NewRegistration(w.Deps())
	settle := func(e barqueclient.Event) {
		t.Helper()
		for _, watch := range c.Watches {
			for _, req := range watch.Requests(e) {
				if _, err := c.Reconcile(t.Context(), req); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	find := func(name string) *apiregistrationv1.APIService {
		t.Helper()
		svc := &apiregistrationv1.APIService{}
		if err := w.Get(t.Context(), client.ObjectKey{Name: name}, svc); apierrors.IsNotFound(err) {
			return nil
		} else if err != nil {
			t.Fatal(err)
		}
		return svc
	}
	settle(barqueclient.Event{New: crd})
	v1 := find("v1.example.com")
	if v1 == nil || v1.Spec.GroupPriorityMinimum != 1000 || v1.Spec.VersionPriority != 100 || v1.Labels[managedLabel] != "true" || v1.Spec.Service != nil {
		t.Fatalf("registered %+v", v1)
	}
	if find("v2.example.com") != nil {
		t.Error("a version that is not served is registered")
	}
	stolen := v1.DeepCopy()
	stolen.Spec.Service = &apiregistrationv1.ServiceReference{Namespace: "a", Name: "b"}
	if err := w.Update(t.Context(), stolen); err != nil {
		t.Fatal(err)
	}
	settle(barqueclient.Event{Old: v1, New: stolen})
	if got := find("v1.example.com"); got.Spec.Service != nil {
		t.Errorf("a service takes a definition's place: %+v", got.Spec)
	}
	old := crd.DeepCopy()
	controllertest.Change(w, crd, func(crd *apiextensionsv1.CustomResourceDefinition) {
		crd.Spec.Versions = []apiextensionsv1.CustomResourceDefinitionVersion{version("v2", true)}
	})
	settle(barqueclient.Event{Old: old, New: crd})
	if find("v1.example.com") != nil || find("v2.example.com") == nil {
		t.Error("versions do not follow the definition")
	}
	if err := w.Delete(t.Context(), crd); err != nil {
		t.Fatal(err)
	}
	settle(barqueclient.Event{Old: crd})
	if find("v2.example.com") != nil {
		t.Error("a version stays when its definition is gone")
	}
}

// TestBuiltinVersionsAreRegistered: as they should be at the start, whatever is there; and users' own are left alone.
func TestBuiltinVersionsAreRegistered(t *testing.T) {
	old := local(schema.GroupVersion{Group: "extensions", Version: "v1beta1"}, atStart)
	stolen := local(schema.GroupVersion{Group: "apps", Version: "v1"}, atStart)
	stolen.Spec.Service = &apiregistrationv1.ServiceReference{Namespace: "a", Name: "b"}
	users := local(schema.GroupVersion{Group: "batch", Version: "v1"}, "")
	users.Labels, users.Spec.Service = nil, &apiregistrationv1.ServiceReference{Namespace: "a", Name: "b"}
	custom := local(schema.GroupVersion{Group: "example.com", Version: "v1"}, always)
	w := controllertest.New(t, old, stolen, users, custom)
	for range 2 {
		if err := RegisterBuiltin(t.Context(), w); err != nil {
			t.Fatal(err)
		}
		var list apiregistrationv1.APIServiceList
		if err := w.List(t.Context(), &list); err != nil {
			t.Fatal(err)
		}
		found := map[string]apiregistrationv1.APIService{}
		for _, svc := range list.Items {
			found[svc.Name] = svc
		}
		if len(found) != len(builtin())+1 {
			t.Errorf("%d are registered", len(found))
		}
		if _, ok := found["v1beta1.extensions"]; ok {
			t.Error("a version of an older release stays")
		}
		if found["v1.apps"].Spec.Service != nil || found["v1.batch"].Spec.Service == nil || found["v1.example.com"].Labels[managedLabel] != always {
			t.Error("what was there is not as it should be")
		}
		core := found["v1."]
		if core.Spec.GroupPriorityMinimum != 18000 || core.Spec.VersionPriority != 1 || core.Labels[managedLabel] != "onstart" {
			t.Errorf("the core group is %+v", core)
		}
		if _, ok := found["v1.apiregistration.k8s.io"]; ok {
			t.Error("the group of APIServices is registered")
		}
	}
}
