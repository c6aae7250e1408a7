package clients

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	kubernetes "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
	"sigs.k8s.io/controller-runtime/pkg/webhook/conversion"

	"barque.dev/internal/testkit"
	"barque.dev/test/plane"
)

const (
	fleet    = "default" // the namespace of voyages
	unload   = shipping + "/unload"
	election = "voyages"
	arrived  = "Arrived"
)

// A harbourMaster is the world outside the cluster that the operator must keep in step: a place is kept for every
// voyage until it has been unloaded.
type harbourMaster struct {
	mu     sync.Mutex
	places map[string]int64 // by voyage, for how many days
}

func (m *harbourMaster) keep(voyage string, days int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.places[voyage] = days
}

func (m *harbourMaster) release(voyage string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.places, voyage)
}

func (m *harbourMaster) kept() map[string]int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.places)
}

// operator brings voyages to where they go: a place outside, a ConfigMap that they own, and their status.
type operator struct {
	ctrlclient.Client
	master *harbourMaster
}

func (o *operator) Reconcile(ctx context.Context, r ctrl.Request) (ctrl.Result, error) {
	var v Voyage
	if err := o.Get(ctx, r.NamespacedName, &v); err != nil {
		return ctrl.Result{}, ctrlclient.IgnoreNotFound(err)
	}
	if v.DeletionTimestamp != nil {
		o.master.release(v.Name)
		if controllerutil.RemoveFinalizer(&v, unload) {
			return ctrl.Result{}, ctrlclient.IgnoreNotFound(o.Update(ctx, &v))
		}
		return ctrl.Result{}, nil
	}
	if controllerutil.AddFinalizer(&v, unload) {
		if err := o.Update(ctx, &v); err != nil {
			return ctrl.Result{}, err
		}
	}
	o.master.keep(v.Name, v.Spec.Days)
	cargo := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: v.Namespace, Name: v.Name}}
	if _, err := controllerutil.CreateOrUpdate(ctx, o.Client, cargo, func() error {
		cargo.Data = map[string]string{"days": strconv.FormatInt(v.Spec.Days, 10)}
		return controllerutil.SetControllerReference(&v, cargo, o.Scheme())
	}); err != nil {
		return ctrl.Result{}, err
	}
	before := v.Status
	v.Status = VoyageStatus{Phase: arrived, ObservedGeneration: v.Generation}
	if v.Status == before {
		return ctrl.Result{}, nil
	}
	return ctrl.Result{}, o.Status().Update(ctx, &v)
}

// An instance is one process' worth of the operator.
type instance struct {
	manager ctrl.Manager
	ended   chan error
}

// startInstance starts the operator with one server's address, until the test ends or it loses its lease.
func startInstance(t *testing.T, config *rest.Config, scheme *runtime.Scheme, master *harbourMaster) *instance {
	t.Helper()
	lease, renew, retry := 3*time.Second, 2*time.Second, 250*time.Millisecond
	m, err := ctrl.NewManager(rest.CopyConfig(config), ctrl.Options{
		Scheme: scheme, Metrics: server.Options{BindAddress: "0"}, Controller: ctrlconfig.Controller{SkipNameValidation: new(true)},
		LeaderElection: true, LeaderElectionID: election, LeaderElectionNamespace: fleet,
		LeaseDuration: &lease, RenewDeadline: &renew, RetryPeriod: &retry,
	})
	if err != nil {
		t.Fatal(err)
	}
	o := &operator{Client: m.GetClient(), master: master}
	if err := ctrl.NewControllerManagedBy(m).For(&Voyage{}).Owns(&corev1.ConfigMap{}).Complete(o); err != nil {
		t.Fatal(err)
	}
	i := &instance{manager: m, ended: make(chan error, 1)}
	ctx, stop := context.WithCancel(context.Background())
	go func() { i.ended <- m.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		select {
		case <-i.ended:
		case <-time.After(settle):
			t.Error("an instance of the operator does not end")
		}
	})
	return i
}

// elected waits until the instance leads.
func (i *instance) elected(t *testing.T) {
	t.Helper()
	select {
	case <-i.manager.Elected():
	case err := <-i.ended:
		i.ended <- err
		t.Fatalf("the operator ended: %v", err)
	case <-time.After(settle):
		t.Fatal("the operator is not elected")
	}
}

// startWebhooks installs the definition of voyages and who converts, completes and judges them, as envtest does that
// for its users, and serves them until the test ends.
func startWebhooks(t *testing.T, config *rest.Config, scheme *runtime.Scheme) {
	t.Helper()
	fail, none := admissionregistrationv1.Fail, admissionregistrationv1.SideEffectClassNone
	at := func(path string) admissionregistrationv1.WebhookClientConfig {
		return admissionregistrationv1.WebhookClientConfig{Service: &admissionregistrationv1.ServiceReference{Namespace: fleet, Name: "operator", Path: &path}}
	}
	rules := []admissionregistrationv1.RuleWithOperations{{
		Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create, admissionregistrationv1.Update},
		Rule:       admissionregistrationv1.Rule{APIGroups: []string{shipping}, APIVersions: []string{"v1"}, Resources: []string{"voyages"}},
	}}
	// Both are asked for what comes as v2 too, which is converted for them.
	equivalent := admissionregistrationv1.Equivalent
	env := &envtest.Environment{
		UseExistingCluster: new(true), Config: config, Scheme: scheme,
		CRDInstallOptions: envtest.CRDInstallOptions{Paths: []string{"testdata/voyages.yaml"}, ErrorIfPathMissing: true},
		WebhookInstallOptions: envtest.WebhookInstallOptions{
			IgnoreSchemeConvertible: true,
			MutatingWebhooks: []*admissionregistrationv1.MutatingWebhookConfiguration{{
				ObjectMeta: metav1.ObjectMeta{Name: "voyages"},
				Webhooks: []admissionregistrationv1.MutatingWebhook{{
					Name: "default.voyages." + shipping, ClientConfig: at("default"), Rules: rules, FailurePolicy: &fail,
					MatchPolicy: &equivalent, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
				}},
			}},
			ValidatingWebhooks: []*admissionregistrationv1.ValidatingWebhookConfiguration{{
				ObjectMeta: metav1.ObjectMeta{Name: "voyages"},
				Webhooks: []admissionregistrationv1.ValidatingWebhook{{
					Name: "validate.voyages." + shipping, ClientConfig: at("validate"), Rules: rules, FailurePolicy: &fail,
					MatchPolicy: &equivalent, SideEffects: &none, AdmissionReviewVersions: []string{"v1"},
				}},
			}},
		},
	}
	if _, err := env.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.WebhookInstallOptions.Cleanup(); err != nil {
			t.Error(err)
		}
	})
	registry, err := converters(scheme)
	if err != nil {
		t.Fatal(err)
	}
	o := env.WebhookInstallOptions
	hooks := webhook.NewServer(webhook.Options{Host: o.LocalServingHost, Port: o.LocalServingPort, CertDir: o.LocalServingCertDir})
	hooks.Register("/convert", conversion.NewWebhookHandler(scheme, registry))
	hooks.Register("/default", admission.WithDefaulter[*Voyage](scheme, pilotage{}))
	hooks.Register("/validate", admission.WithValidator[*Voyage](scheme, pilotage{}))
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- hooks.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the webhooks: %v", err)
		}
	})
	eventually(t, "webhooks are served", func() error { return hooks.StartedChecker()(nil) })
}

// leader is the number of the server that leads.
func (c *cluster) leader(t *testing.T, client ctrlclient.Client) int {
	t.Helper()
	var lease coordinationv1.Lease
	if err := client.Get(t.Context(), ctrlclient.ObjectKey{Namespace: metav1.NamespaceSystem, Name: "kube-controller-manager"}, &lease); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(c.servers, func(s plane.Server) bool { return s.Name == *lease.Spec.HolderIdentity })
	if i < 0 {
		t.Fatalf("%s leads, which is no server", *lease.Spec.HolderIdentity)
	}
	return i
}

func voyage(i int) *Voyage {
	v := &Voyage{ObjectMeta: metav1.ObjectMeta{Namespace: fleet, Name: fmt.Sprintf("voyage-%d", i)}}
	v.Spec.From, v.Spec.To = "Plymouth", "Halifax"
	return v
}

// sail creates voyages, and insists: a server's death may fail a request, but not the next ones for long.
func sail(client ctrlclient.Client, from, to int) error {
	for i := from; i < to; i++ {
		if err := testkit.Poll(settle, func() error {
			return ctrlclient.IgnoreAlreadyExists(client.Create(context.Background(), voyage(i)))
		}); err != nil {
			return fmt.Errorf("voyage %d: %w", i, err)
		}
	}
	return nil
}

// inStep checks that the cluster, the operator's objects and the world outside agree on which voyages there are.
func inStep(client ctrlclient.Client, master *harbourMaster, want map[string]int64) error {
	var voyages VoyageList
	var cargo corev1.ConfigMapList
	err := errors.Join(client.List(context.Background(), &voyages, ctrlclient.InNamespace(fleet)), client.List(context.Background(), &cargo, ctrlclient.InNamespace(fleet)))
	if err != nil {
		return err
	}
	there, loaded := map[string]int64{}, map[string]int64{}
	for _, v := range voyages.Items {
		if v.Status.Phase != arrived || v.Status.ObservedGeneration != v.Generation {
			return fmt.Errorf("%s at generation %d: %+v", v.Name, v.Generation, v.Status)
		}
		there[v.Name] = v.Spec.Days
	}
	for _, c := range cargo.Items {
		if !strings.HasPrefix(c.Name, "voyage-") {
			continue // the authority's, which every namespace has
		}
		if loaded[c.Name], err = strconv.ParseInt(c.Data["days"], 10, 64); err != nil {
			return err
		}
	}
	for what, got := range map[string]map[string]int64{"voyages": there, "cargo": loaded, "places": master.kept()} {
		if !maps.Equal(got, want) {
			return fmt.Errorf("%d %s, want %d: %v", len(got), what, len(want), got)
		}
	}
	return nil
}

// TestOperatorMoves kills the server that leads, to which the leading instance of an operator speaks, while voyages are
// made. The other instance, at another server, goes on where the first one stopped.
func TestOperatorMoves(t *testing.T) {
	t.Parallel()
	c := start(t, 3)
	scheme := runtime.NewScheme()
	if err := kubernetes.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	addVoyages(scheme)
	var clients []ctrlclient.Client
	for _, config := range c.configs {
		client, err := ctrlclient.New(config, ctrlclient.Options{Scheme: scheme})
		if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, client)
	}
	leader := c.leader(t, clients[0])
	second, third := (leader+1)%3, (leader+2)%3
	user := clients[third]
	startWebhooks(t, c.configs[third], scheme)
	master := &harbourMaster{places: map[string]int64{}}
	one := startInstance(t, c.configs[leader], scheme, master)
	one.elected(t)
	other := startInstance(t, c.configs[second], scheme, master)

	if err := sail(user, 0, 20); err != nil {
		t.Fatal(err)
	}
	want := map[string]int64{}
	for i := range 20 {
		want[voyage(i).Name] = defaultDays
	}
	eventually(t, "the voyages arrive", func() error { return inStep(user, master, want) })
	versions(t, user, clients[second])
	want["voyage-0"] = 2
	eventually(t, "a voyage takes less time", func() error { return inStep(user, master, want) })

	sailing := make(chan error, 1)
	go func() { sailing <- sail(user, 20, 60) }()
	c.programs.Kill(func(p *plane.Process) bool { return p.Name == c.servers[leader].Name })
	select {
	case err := <-one.ended:
		one.ended <- err
		if err == nil {
			t.Error("the instance whose server died ended without an error")
		}
	case <-time.After(settle):
		t.Fatal("the instance whose server died goes on")
	}
	other.elected(t)
	if err := <-sailing; err != nil {
		t.Fatal(err)
	}
	for i := 20; i < 60; i++ {
		want[voyage(i).Name] = defaultDays
	}
	eventually(t, "the voyages arrive after a server's death", func() error { return inStep(user, master, want) })
	for i := range 30 {
		if err := user.Delete(t.Context(), voyage(i)); err != nil {
			t.Fatal(err)
		}
		delete(want, voyage(i).Name)
	}
	eventually(t, "half of them are unloaded", func() error { return inStep(user, master, want) })
	if now := c.leader(t, user); now == leader {
		t.Errorf("server %d leads, which is dead", now)
	}
}

// versions reads and writes voyages by both versions, and what the webhooks refuse.
func versions(t *testing.T, user, another ctrlclient.Client) {
	t.Helper()
	var v VoyageV2
	if err := another.Get(t.Context(), ctrlclient.ObjectKeyFromObject(voyage(0)), &v); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(v.Spec.Ports, []string{"Plymouth", "Halifax"}) || v.Spec.Hours != 24*defaultDays || v.Status.Phase != arrived {
		t.Errorf("as v2: %+v, %+v", v.Spec, v.Status)
	}
	v.Spec.Hours = 48
	if err := another.Update(t.Context(), &v); err != nil {
		t.Errorf("update as v2: %v", err)
	}
	back := ctrlclient.RawPatch(types.MergePatchType, []byte(`{"spec":{"ports":["Plymouth","Plymouth"]}}`))
	if err := user.Patch(t.Context(), &v, back); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "from Plymouth to Plymouth is no voyage") {
		t.Errorf("a voyage to where it starts: %v", err)
	}
	nowhere := voyage(-1)
	nowhere.Name, nowhere.Spec.To = "nowhere", nowhere.Spec.From
	if err := user.Create(t.Context(), nowhere); !apierrors.IsForbidden(err) {
		t.Errorf("a voyage to where it starts: %v", err)
	}
}
