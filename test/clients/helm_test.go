package clients

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/action"
	"helm.sh/helm/v4/pkg/kube"
	"helm.sh/helm/v4/pkg/release/common"
	release "helm.sh/helm/v4/pkg/release/v1"
	"helm.sh/helm/v4/pkg/storage/driver"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"
)

// TestHelm takes a chart with everything in it through its life, on three servers: each action is asked of another one.
// A step starts from what the one before left.
func TestHelm(t *testing.T) {
	t.Parallel()
	c := start(t, 3, hollowFlags()...)
	startHollowNode(t, c.configs[0])
	h := newHelm(t, c, map[string]any{"webhook": startJudge(t)})
	for _, step := range []struct {
		name string
		do   func(*testing.T, *helm)
	}{
		{"dry run", dryRun},
		{"install", install},
		{"test", testRelease},
		{"a name that is taken", taken},
		{"fields of others", conflict},
		{"upgrade", upgrade},
		{"refused by a webhook and by CEL", refusedBerths},
		{"a hook that fails", failingHook},
		{"rolled back since it does not get ready", rolledBack},
		{"rollback", rollback},
		{"uninstall", uninstall},
		{"applied by the client", clientSide},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.do(t, h) }) {
			return
		}
	}
}

func berth(name string) *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(schema.GroupVersionKind{Group: "harbour.example.com", Version: "v1", Kind: "Berth"})
	o.SetNamespace(port)
	o.SetName(name)
	return o
}

// cranes are what a release's berth has.
func (h *helm) cranes(t *testing.T, name string) int64 {
	t.Helper()
	o := berth(name)
	h.must(t, name, o)
	n, _, err := unstructured.NestedInt64(o.Object, "spec", "cranes")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// ready is the release's deployment, all of whose pods are up to date and available.
func (h *helm) ready(t *testing.T, name string, replicas int32) {
	t.Helper()
	var d appsv1.Deployment
	h.must(t, name, &d)
	s := d.Status
	if *d.Spec.Replicas != replicas || s.ObservedGeneration != d.Generation || s.Replicas != replicas || s.UpdatedReplicas != replicas || s.AvailableReplicas != replicas {
		t.Errorf("%d replicas are asked for, want %d; %+v", *d.Spec.Replicas, replicas, s)
	}
}

func expectStatus(t *testing.T, r *release.Release, version int, status common.Status) {
	t.Helper()
	if r.Version != version || r.Info.Status != status {
		t.Errorf("revision %d is %s (%s), want revision %d to be %s", r.Version, r.Info.Status, r.Info.Description, version, status)
	}
}

// dryRun asks the cluster what a chart looks up, and changes nothing.
func dryRun(t *testing.T, h *helm) {
	r, err := h.install(t, pilot, map[string]any{"berth": false}, func(i *action.Install) { i.DryRunStrategy = action.DryRunServer })
	if err != nil {
		t.Fatal(err)
	}
	var namespaces corev1.NamespaceList
	if err := h.client().List(t.Context(), &namespaces); err != nil {
		t.Fatal(err)
	}
	if _, err := action.NewStatus(h.actions(t)).Run(pilot); !errors.Is(err, driver.ErrReleaseNotFound) {
		t.Errorf("a dry run made a release: %v", err)
	}
	data, _, _ := unstructured.NestedStringMap(object(t, r.Manifest, "ConfigMap", pilot).Object, "data")
	if data["namespaces"] != strconv.Itoa(len(namespaces.Items)) || data["serves"] != "false" || data["revision"] != "1" {
		t.Errorf("the chart was told %v", data)
	}
	if err := h.client().Get(t.Context(), ctrlclient.ObjectKey{Name: port}, &corev1.Namespace{}); !apierrors.IsNotFound(err) {
		t.Errorf("a dry run made its namespace: %v", err)
	}
}

// object finds one in a manifest.
func object(t *testing.T, manifest, kind, name string) *unstructured.Unstructured {
	t.Helper()
	for text := range strings.SplitSeq(manifest, "\n---\n") {
		o := &unstructured.Unstructured{}
		if err := yaml.Unmarshal([]byte(text), &o.Object); err != nil {
			t.Fatal(err)
		}
		if o.Object != nil && o.GetKind() == kind && o.GetName() == name {
			return o
		}
	}
	t.Fatalf("no %s %s in:\n%s", kind, name, manifest)
	return nil
}

func install(t *testing.T, h *helm) {
	r, err := h.install(t, pilot, nil)
	if err != nil {
		t.Fatal(err)
	}
	expectStatus(t, r, 1, common.StatusDeployed)
	expectStatus(t, h.last(t, pilot), 1, common.StatusDeployed)
	if r.Info.Notes != "harbour has 3 cranes.\n" {
		t.Errorf("notes: %q", r.Info.Notes)
	}
	if p := phases(r); len(p) != 2 || p[release.HookPreInstall] != release.HookPhaseSucceeded || p[release.HookPostInstall] != release.HookPhaseSucceeded {
		t.Errorf("hooks: %v", p)
	}
	h.ready(t, pilot, 2)
	// One hook is deleted when it has succeeded, the other one stays.
	if err := h.get(t, "harbour-pre-install", &batchv1.Job{}); !apierrors.IsNotFound(err) {
		t.Errorf("the hook before installing is still there: %v", err)
	}
	var job batchv1.Job
	h.must(t, "harbour-post-install", &job)
	if job.Status.Succeeded != 1 {
		t.Errorf("the hook after installing: %+v", job.Status)
	}
	o := berth(pilot)
	h.must(t, pilot, o)
	if depth, _, _ := unstructured.NestedInt64(o.Object, "spec", "depth"); depth != 12 || !slices.Equal(managers(t, o), []string{"helm Apply"}) {
		t.Errorf("the berth: %v", o)
	}
	var config corev1.ConfigMap
	h.must(t, pilot, &config)
	if config.Data["serves"] != "true" {
		t.Errorf("the chart's own definition was not discovered: %v", config.Data)
	}
	status := action.NewStatus(h.actions(t))
	status.ShowResourcesTable = true
	r, err = typed(status.Run(pilot))
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"v1/Deployment", "v1/Pod(related)", "v1/Berth", "v1/Secret"} {
		if len(r.Info.Resources[kind]) == 0 {
			t.Errorf("status has no %s", kind)
		}
	}
}

// testRelease runs the chart's test.
func testRelease(t *testing.T, h *helm) {
	tests := action.NewReleaseTesting(h.actions(t))
	tests.Namespace, tests.Timeout = port, settle
	found, shutdown, err := tests.Run(pilot)
	if err != nil {
		t.Fatal(err)
	}
	if err := shutdown(); err != nil {
		t.Error(err)
	}
	r, err := typed(found, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := phases(r)[release.HookTest]; p != release.HookPhaseSucceeded {
		t.Errorf("the test %s", p)
	}
}

func taken(t *testing.T, h *helm) {
	_, err := h.install(t, pilot, nil)
	refused(t, err, "cannot reuse a name")
	// What another release owns is not taken over.
	_, err = h.install(t, "pirate", nil, func(i *action.Install) {
		i.PostRenderer = renamed{}
		i.DisableHooks = true
	})
	refused(t, err, "invalid ownership metadata", `current value is "harbour"`)
}

// renamed gives a release's objects the names of another one.
type renamed struct{}

func (renamed) Run(manifests *bytes.Buffer) (*bytes.Buffer, error) {
	return bytes.NewBuffer(bytes.ReplaceAll(manifests.Bytes(), []byte("name: pirate\n"), []byte("name: harbour\n"))), nil
}

// conflict: a field that somebody else has applied stays theirs until Helm is told to force.
func conflict(t *testing.T, h *helm) {
	const autopilot = "autopilot"
	scale := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": pilot, "namespace": port},
		"spec": map[string]any{"replicas": int64(5)},
	}}
	applied := ctrlclient.ApplyConfigurationFromUnstructured(scale)
	err := h.client().Apply(t.Context(), applied, ctrlclient.FieldOwner(autopilot))
	if !apierrors.IsConflict(err) {
		t.Fatalf("apply a field that Helm owns: %v", err)
	}
	if err := h.client().Apply(t.Context(), applied, ctrlclient.FieldOwner(autopilot), ctrlclient.ForceOwnership); err != nil {
		t.Fatal(err)
	}
	more := map[string]any{"replicas": 3}
	_, err = h.upgrade(t, pilot, more)
	refused(t, err, "conflict", autopilot, ".spec.replicas")
	expectStatus(t, h.last(t, pilot), 2, common.StatusFailed)
	r, err := h.upgrade(t, pilot, more, func(u *action.Upgrade) { u.ForceConflicts = true })
	if err != nil {
		t.Fatal(err)
	}
	expectStatus(t, r, 3, common.StatusDeployed)
	h.ready(t, pilot, 3)
	var d appsv1.Deployment
	h.must(t, pilot, &d)
	if m := managers(t, &d); slices.Contains(m, autopilot+" Apply") || !slices.Contains(m, "helm Apply") {
		t.Errorf("it is managed by %q", m)
	}
}

func upgrade(t *testing.T, h *helm) {
	var before, after corev1.Secret
	h.must(t, "harbour-key", &before)
	r, err := h.upgrade(t, pilot, map[string]any{"cranes": 4, "light": false, "image": "registry.example.com/harbour:2"})
	if err != nil {
		t.Fatal(err)
	}
	expectStatus(t, r, 4, common.StatusDeployed)
	if p := phases(r); p[release.HookPreUpgrade] != release.HookPhaseSucceeded || p[release.HookPostUpgrade] != release.HookPhaseSucceeded {
		t.Errorf("hooks: %v", p)
	}
	h.ready(t, pilot, 2)
	h.must(t, "harbour-key", &after)
	if key := string(after.Data["key"]); len(key) != 32 || key != string(before.Data["key"]) {
		t.Errorf("the key was %q, and is %q", before.Data["key"], key)
	}
	if err := h.get(t, "harbour-light", &corev1.ConfigMap{}); !apierrors.IsNotFound(err) {
		t.Errorf("what the chart has no more is still there: %v", err)
	}
	if n := h.cranes(t, pilot); n != 4 {
		t.Errorf("the berth has %d cranes", n)
	}
}

func refusedBerths(t *testing.T, h *helm) {
	_, err := h.upgrade(t, pilot, map[string]any{"cranes": unlucky})
	refused(t, err, noLuck)
	expectStatus(t, h.last(t, pilot), 5, common.StatusFailed)
	_, err = h.upgrade(t, pilot, map[string]any{"cranes": 11})
	refused(t, err, "a berth has room for ten cranes")
	_, err = h.upgrade(t, pilot, map[string]any{"replicas": -1})
	refused(t, err, "replicas", "minimum")
	if n := h.cranes(t, pilot); n != 4 {
		t.Errorf("the berth has %d cranes", n)
	}
}

func failingHook(t *testing.T, h *helm) {
	_, err := h.upgrade(t, pilot, map[string]any{"cranes": 5, "hooks": map[string]any{"fate": "fails"}})
	refused(t, err, "pre-upgrade hooks failed")
	expectStatus(t, h.last(t, pilot), 7, common.StatusFailed)
	if n := h.cranes(t, pilot); n != 4 {
		t.Errorf("the berth has %d cranes", n)
	}
}

func rolledBack(t *testing.T, h *helm) {
	_, err := h.upgrade(t, pilot, map[string]any{"cranes": 6, "fate": "hangs"}, func(u *action.Upgrade) {
		u.RollbackOnFailure, u.Timeout = true, quick
	})
	refused(t, err, "has been rolled back", "Deployment/port/harbour")
	expectStatus(t, h.last(t, pilot), 9, common.StatusDeployed)
	h.ready(t, pilot, 2)
	if n := h.cranes(t, pilot); n != 4 {
		t.Errorf("the berth has %d cranes", n)
	}
}

func rollback(t *testing.T, h *helm) {
	if err := h.rollback(t, pilot, 1); err != nil {
		t.Fatal(err)
	}
	r := h.last(t, pilot)
	expectStatus(t, r, 10, common.StatusDeployed)
	if p := phases(r); p[release.HookPreRollback] != release.HookPhaseSucceeded {
		t.Errorf("hooks: %v", p)
	}
	h.ready(t, pilot, 2)
	h.must(t, "harbour-light", &corev1.ConfigMap{})
	if n := h.cranes(t, pilot); n != 3 {
		t.Errorf("the berth has %d cranes", n)
	}
	var config corev1.ConfigMap
	h.must(t, pilot, &config)
	if config.Data["revision"] != "1" {
		t.Errorf("what was rolled back says it is revision %s", config.Data["revision"])
	}
}

func uninstall(t *testing.T, h *helm) {
	if err := h.uninstall(t, pilot); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]ctrlclient.Object{
		pilot: &appsv1.Deployment{}, "harbour-light": &corev1.ConfigMap{}, "harbour-key": &corev1.Secret{}, "harbour-pre-delete": &batchv1.Job{},
	} {
		if err := h.get(t, name, o); !apierrors.IsNotFound(err) {
			t.Errorf("%T %s is still there: %v", o, name, err)
		}
	}
	// The definition of berths stays, as Helm promises.
	if err := h.get(t, "berths.harbour.example.com", &apiextensionsv1.CustomResourceDefinition{}); err != nil {
		t.Errorf("the definition: %v", err)
	}
	if err := h.get(t, pilot, berth(pilot)); !apierrors.IsNotFound(err) {
		t.Errorf("the berth: %v", err)
	}
	var secrets corev1.SecretList
	if err := h.client().List(t.Context(), &secrets, ctrlclient.InNamespace(port), ctrlclient.MatchingLabels{"owner": "helm"}); err != nil || len(secrets.Items) != 0 {
		t.Errorf("%d revisions are still kept, %v", len(secrets.Items), err)
	}
	eventually(t, "its pods are gone", func() error {
		var pods corev1.PodList
		err := h.client().List(context.Background(), &pods, ctrlclient.InNamespace(port), ctrlclient.MatchingLabels{"app.kubernetes.io/instance": pilot})
		if err == nil && len(pods.Items) > 0 {
			err = fmt.Errorf("there are %d", len(pods.Items))
		}
		return err
	})
}

// clientSide is the way of Helm 3: the difference is made by the client, as a patch. An upgrade then changes over to
// what the server applies.
func clientSide(t *testing.T, h *helm) {
	const name = "old"
	r, err := h.install(t, name, nil, func(i *action.Install) { i.ServerSideApply, i.WaitStrategy = false, kube.LegacyStrategy })
	if err != nil {
		t.Fatal(err)
	}
	expectStatus(t, r, 1, common.StatusDeployed)
	h.ready(t, name, 2)
	if r, err = h.upgrade(t, name, map[string]any{"replicas": 1, "cranes": 2}, func(u *action.Upgrade) { u.WaitStrategy = kube.LegacyStrategy }); err != nil {
		t.Fatal(err)
	}
	h.ready(t, name, 1)
	var d appsv1.Deployment
	h.must(t, name, &d)
	if m := managers(t, &d); r.ApplyMethod != string(release.ApplyMethodClientSideApply) || slices.Contains(m, "helm Apply") {
		t.Errorf("%s, managed by %q", r.ApplyMethod, m)
	}
	if _, err = h.upgrade(t, name, map[string]any{"replicas": 3, "cranes": 1}, func(u *action.Upgrade) { u.ServerSideApply = "true" }); err != nil {
		t.Fatal(err)
	}
	h.ready(t, name, 3)
	h.must(t, name, &d)
	if m := managers(t, &d); !slices.Contains(m, "helm Apply") {
		t.Errorf("managed by %q", m)
	}
	if n := h.cranes(t, name); n != 1 {
		t.Errorf("the berth has %d cranes", n)
	}
	if err := h.uninstall(t, name); err != nil {
		t.Fatal(err)
	}
}
