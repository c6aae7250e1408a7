package clients

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/action"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/kube"
	releaser "helm.sh/helm/v4/pkg/release"
	release "helm.sh/helm/v4/pkg/release/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	kubernetes "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	port  = "port"    // the namespace of the releases
	pilot = "harbour" // the release's name
)

// A helm runs Helm's actions, and looks at what came of them, each time by the next server of a cluster.
type helm struct {
	cluster *cluster
	clients []ctrlclient.Client // one a server
	turn    int
	// values are given to every action, unless it gives others.
	values map[string]any
}

func newHelm(t *testing.T, c *cluster, values map[string]any) *helm {
	t.Helper()
	// As the command line names itself.
	before := kube.ManagedFieldsManager
	kube.ManagedFieldsManager = "helm"
	t.Cleanup(func() { kube.ManagedFieldsManager = before })
	scheme := runtime.NewScheme()
	if err := errors.Join(kubernetes.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	h := &helm{cluster: c, values: values}
	for _, config := range c.configs {
		client, err := ctrlclient.New(config, ctrlclient.Options{Scheme: scheme})
		if err != nil {
			t.Fatal(err)
		}
		h.clients = append(h.clients, client)
	}
	return h
}

// next is the number of the server whose turn it is.
func (h *helm) next() int {
	h.turn++
	return h.turn % len(h.clients)
}

// client is an administrator's at the next server.
func (h *helm) client() ctrlclient.Client { return h.clients[h.next()] }

// actions is what every action starts from: nothing is remembered from those before.
func (h *helm) actions(t *testing.T) *action.Configuration {
	t.Helper()
	kubeconfig, namespace, cache := h.cluster.servers[h.next()].Kubeconfig(), port, t.TempDir()
	flags := genericclioptions.NewConfigFlags(true).WithDiscoveryQPS(-1)
	flags.KubeConfig, flags.Namespace, flags.CacheDir = &kubeconfig, &namespace, &cache
	flags.WithWrapConfigFn(func(config *rest.Config) *rest.Config {
		config.QPS, config.WarningHandler = -1, rest.NoWarnings{}
		return config
	})
	cfg := action.NewConfiguration(action.ConfigurationSetLogger(slog.DiscardHandler))
	if err := cfg.Init(flags, port, "secret"); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func loadChart(t *testing.T) *chart.Chart {
	t.Helper()
	c, err := loader.Load("testdata/harbour")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// with are the values of all actions, and others over them.
func (h *helm) with(values map[string]any) map[string]any {
	all := maps.Clone(h.values)
	maps.Copy(all, values)
	return all
}

// quick is how long an action waits for what never comes, and may wait for what comes then.
const quick = 10 * time.Second

func (h *helm) install(t *testing.T, name string, values map[string]any, change ...func(*action.Install)) (*release.Release, error) {
	t.Helper()
	i := action.NewInstall(h.actions(t))
	i.ReleaseName, i.Namespace, i.CreateNamespace = name, port, true
	i.WaitStrategy, i.Timeout = kube.StatusWatcherStrategy, settle
	for _, c := range change {
		c(i)
	}
	return typed(i.RunWithContext(t.Context(), loadChart(t), h.with(values)))
}

func (h *helm) upgrade(t *testing.T, name string, values map[string]any, change ...func(*action.Upgrade)) (*release.Release, error) {
	t.Helper()
	u := action.NewUpgrade(h.actions(t))
	u.Namespace = port
	u.WaitStrategy, u.Timeout = kube.StatusWatcherStrategy, settle
	for _, c := range change {
		c(u)
	}
	return typed(u.RunWithContext(t.Context(), name, loadChart(t), h.with(values)))
}

func (h *helm) rollback(t *testing.T, name string, revision int) error {
	t.Helper()
	r := action.NewRollback(h.actions(t))
	r.Version, r.WaitStrategy, r.Timeout = revision, kube.StatusWatcherStrategy, settle
	return r.Run(name)
}

func (h *helm) uninstall(t *testing.T, name string) error {
	t.Helper()
	u := action.NewUninstall(h.actions(t))
	u.WaitStrategy, u.Timeout, u.DeletionPropagation = kube.StatusWatcherStrategy, settle, "foreground"
	_, err := u.Run(name)
	return err
}

// last is a release's newest revision, as the cluster keeps it.
func (h *helm) last(t *testing.T, name string) *release.Release {
	t.Helper()
	found, err := action.NewHistory(h.actions(t)).Run(name)
	if err != nil {
		t.Fatalf("history of %s: %v", name, err)
	}
	var newest *release.Release
	for _, f := range found {
		r, err := typed(f, nil)
		if err != nil {
			t.Fatal(err)
		}
		if newest == nil || r.Version > newest.Version {
			newest = r
		}
	}
	return newest
}

func typed(r releaser.Releaser, err error) (*release.Release, error) {
	if err != nil {
		return nil, err
	}
	found, ok := r.(*release.Release)
	if !ok {
		return nil, fmt.Errorf("a release is a %T", r)
	}
	return found, nil
}

// get reads an object of the releases' namespace, or of none.
func (h *helm) get(t *testing.T, name string, into ctrlclient.Object) error {
	t.Helper()
	return h.client().Get(t.Context(), ctrlclient.ObjectKey{Namespace: port, Name: name}, into)
}

// must is get of what must be there.
func (h *helm) must(t *testing.T, name string, into ctrlclient.Object) {
	t.Helper()
	if err := h.get(t, name, into); err != nil {
		t.Fatal(err)
	}
}

// refused checks an error that must have come, by parts of its words.
func refused(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("it was done, and should have been refused: %q", words)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

// phases are how the hooks of a release ended that were run, by the event they are for.
func phases(r *release.Release) map[release.HookEvent]release.HookPhase {
	found := map[release.HookEvent]release.HookPhase{}
	for _, hook := range r.Hooks {
		if hook.LastRun.Phase == "" || hook.LastRun.Phase == release.HookPhaseUnknown {
			continue
		}
		for _, event := range hook.Events {
			found[event] = hook.LastRun.Phase
		}
	}
	return found
}

// managers are who manages fields of an object, other than its status, and by which operation.
func managers(t *testing.T, o ctrlclient.Object) []string {
	t.Helper()
	accessor, err := meta.Accessor(o)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, m := range accessor.GetManagedFields() {
		if m.Subresource == "" {
			found = append(found, m.Manager+" "+string(m.Operation))
		}
	}
	slices.Sort(found)
	return found
}
