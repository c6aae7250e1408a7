package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// While several writers write through the virtual IP, an informer and a dynamic client end up with
// exactly what is there, and no watch skips or repeats a version.
func TestClientsUnderLoad(t *testing.T) {
	t.Parallel()
	ns := shared.namespace(t)
	client := shared.client(t)

	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(ns))
	informer := factory.Core().V1().ConfigMaps()
	var mu sync.Mutex
	last := map[string]int{}
	_, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) { observe(t, &mu, last, obj) }, UpdateFunc: func(_, obj any) { observe(t, &mu, last, obj) },
	})
	if err != nil {
		t.Fatal(err)
	}
	factory.Start(t.Context().Done())
	factory.WaitForCacheSync(t.Context().Done())

	watched := make(chan error, 1)
	go func() { watched <- watchAll(t.Context(), client, ns) }()
	load(t, client, ns)
	if err := <-watched; err != nil {
		t.Error(err)
	}

	config, err := shared.Config()
	if err != nil {
		t.Fatal(err)
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	list, err := dyn.Resource(corev1.SchemeGroupVersion.WithResource("configmaps")).Namespace(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "load=yes"})
	if err != nil {
		t.Fatal(err)
	}
	truth := map[string]string{}
	for _, item := range list.Items {
		truth[item.GetName()], _, _ = unstructured.NestedString(item.Object, "data", "n")
	}
	if len(truth) != writers {
		t.Errorf("%d objects, want %d: %v", len(truth), writers, truth)
	}
	eventually(t, 20*time.Second, "the informer's cache", func() error {
		cached := map[string]string{}
		for _, obj := range informer.Informer().GetStore().List() {
			if cm := obj.(*corev1.ConfigMap); cm.Labels["load"] == "yes" {
				cached[cm.Name] = cm.Data["n"]
			}
		}
		if !maps.Equal(cached, truth) {
			return fmt.Errorf("cache %v, truth %v", cached, truth)
		}
		return nil
	})
}

const (
	writers       = 4
	writesPerName = 40
)

// load lets every writer count up in an object of its own.
func load(t testing.TB, client kubernetes.Interface, ns string) {
	t.Helper()
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			name := fmt.Sprintf("w%d", w)
			cm, err := client.CoreV1().ConfigMaps(ns).Create(t.Context(), &corev1.ConfigMap{
				ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"load": "yes"}}, Data: map[string]string{"n": "0"},
			}, metav1.CreateOptions{})
			for n := 1; n <= writesPerName && err == nil; n++ {
				cm.Data["n"] = strconv.Itoa(n)
				cm, err = client.CoreV1().ConfigMaps(ns).Update(t.Context(), cm, metav1.UpdateOptions{})
			}
			if err != nil {
				t.Errorf("writer %s: %v", name, err)
			}
		})
	}
	group.Wait()
}

// observe notes the count in a ConfigMap and complains when it goes back.
func observe(t testing.TB, mu *sync.Mutex, last map[string]int, obj any) {
	cm, ok := obj.(*corev1.ConfigMap)
	if !ok || cm.Labels["load"] != "yes" {
		return
	}
	n, err := strconv.Atoi(cm.Data["n"])
	mu.Lock()
	defer mu.Unlock()
	if before, seen := last[cm.Name]; err != nil || seen && n < before {
		t.Errorf("%s went from %d to %d (%v)", cm.Name, before, n, err)
	}
	last[cm.Name] = n
}

// watchAll streams the list and then every change (KEP-3157), until all writers are done. It wants
// the bookmark that ends the list, versions that only grow, and each write once.
func watchAll(ctx context.Context, client kubernetes.Interface, ns string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	initial := true
	w, err := client.CoreV1().ConfigMaps(ns).Watch(ctx, metav1.ListOptions{
		AllowWatchBookmarks: true, SendInitialEvents: &initial, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
	})
	if err != nil {
		return err
	}
	defer w.Stop()
	version, listed := uint64(0), false
	counts := map[string]int{}
	finished := 0
	for event := range w.ResultChan() {
		cm, ok := event.Object.(*corev1.ConfigMap)
		if !ok {
			return fmt.Errorf("watch: %s %v", event.Type, event.Object)
		}
		if event.Type == watch.Bookmark {
			listed = listed || cm.Annotations[metav1.InitialEventsAnnotationKey] == "true"
		}
		v, err := strconv.ParseUint(cm.ResourceVersion, 10, 64)
		if err != nil || listed && v < version {
			return fmt.Errorf("watch: version %q after %d (%v)", cm.ResourceVersion, version, err)
		}
		version = max(version, v)
		if event.Type == watch.Bookmark || cm.Labels["load"] != "yes" {
			continue
		}
		n, err := strconv.Atoi(cm.Data["n"])
		before, seen := counts[cm.Name]
		if err != nil || seen && n != before+1 {
			return fmt.Errorf("watch: %s went from %d to %d (%v)", cm.Name, before, n, err)
		}
		counts[cm.Name] = n
		if n == writesPerName {
			finished++
		}
		if finished == writers {
			if !listed {
				return errors.New("watch: no bookmark ended the list")
			}
			return nil
		}
	}
	return fmt.Errorf("watch ended early, at %v", counts)
}

// Pages of a list are of one version, whatever is written between them; a stale version is a
// conflict, and a version from the future is not answered.
func TestListsAndVersions(t *testing.T) {
	t.Parallel()
	ns := shared.namespace(t)
	maps := shared.client(t).CoreV1().ConfigMaps(ns)
	for i := range 7 {
		if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("c", i), Labels: map[string]string{"p": "1"}}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	page, err := maps.List(t.Context(), metav1.ListOptions{Limit: 3, LabelSelector: "p=1"})
	if err != nil || len(page.Items) != 3 || page.Continue == "" {
		t.Fatalf("first page: %d items, continue %q, %v", len(page.Items), page.Continue, err)
	}
	if err := maps.Delete(t.Context(), "c5", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	got, version := len(page.Items), page.ResourceVersion
	for page.Continue != "" {
		if page, err = maps.List(t.Context(), metav1.ListOptions{Limit: 3, LabelSelector: "p=1", Continue: page.Continue}); err != nil {
			t.Fatal(err)
		}
		got += len(page.Items)
		if page.ResourceVersion != version {
			t.Errorf("a page of version %s in a list of version %s", page.ResourceVersion, version)
		}
	}
	if got != 7 {
		t.Errorf("%d items over all pages, want 7", got)
	}
	stale := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "c1", ResourceVersion: "1"}}
	if _, err := maps.Update(t.Context(), stale, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("update of a stale version: %v", err)
	}
	if _, err := maps.List(t.Context(), metav1.ListOptions{ResourceVersion: "999999999", ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan}); !apierrors.IsTimeout(err) || !apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge) {
		t.Errorf("list of the future: %v", err)
	}
}
